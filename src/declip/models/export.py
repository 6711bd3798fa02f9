"""Export a model to ONNX, checked against torch before the file is kept."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray

from declip.errors import ExportError
from declip.files import write_atomic
from declip.models import checkpoint, photo_mean, probe
from declip.nn.model import DeclipNet, Network
from declip.spec import PROBE_KEY, SPEC_KEY

__all__ = ["to_onnx"]

TOLERANCE = 1e-4


def to_onnx(source: str | Path, out: str | Path) -> Path:
    """Export a .safetensors checkpoint to ONNX: image (N, 3, S, S) float32 → logits (N, T, T) float32, N free.

    A model whose statistics are those of the photo has an input and an output more (`photo_mean.open_up`).

    The metadata hold the ModelSpec and the answer to a probe, by which fast engines prove themselves. Normalisation
    (`to_input`) and sigmoid stay outside. The file is kept only if its logits for N = 1 and 3 differ from torch's by at
    most 1e-4; otherwise ExportError is raised. It is also raised for PSCC-Net and CAT-Net: what torch's exporter makes
    of them computes something else.
    """
    out = Path(out)
    if Path(source).suffix != ".safetensors":
        advice = "an .onnx file is exported already, and `declip convert` makes a checkpoint of an official .pth"
        raise ExportError(f"got {source}; expected a .safetensors checkpoint: {advice}")
    net, spec = checkpoint.load(Path(source))
    if not spec.traits.exportable:
        raise ExportError(
            f"{source} holds {spec.architecture}, of which this release makes no ONNX file that computes what torch "
            "computes; use the .safetensors file as it is"
        )
    example = torch.randn(2, 3, spec.input_size, spec.input_size, generator=torch.Generator().manual_seed(0))
    with warnings.catch_warnings(), torch.inference_mode():
        # The exporter warns of its own internals (deprecated copies, opset steps), not of results.
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program = torch.onnx.export(
            net,
            (example,),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=4096)},),
            input_names=["image"],
            output_names=["logits"],
            opset_version=18,
            verbose=False,
        )
    if program is None:
        raise ExportError(f"torch.onnx gave no program for {source}")
    model = program.model_proto
    if spec.statistics == "photo":
        photo_mean.open_up(model, str(source))
    with torch.inference_mode():
        answer = net(torch.from_numpy(probe.picture(spec))).numpy()
    onnx.helper.set_model_props(model, {SPEC_KEY: spec.to_json(), PROBE_KEY: probe.pack(answer)})
    content = model.SerializeToString()
    _check(net, content, example)
    write_atomic(out, content)
    return out


def _check(net: Network, content: bytes, example: torch.Tensor) -> None:
    """Raise ExportError where ONNX Runtime's logits for one and three pictures are not torch's."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # its warnings are about graph clean-ups, not about results
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    measures = session.get_overridable_initializers()
    for batch in (example[:1], torch.cat([example, example[:1].flip(-1)])):
        with torch.inference_mode():
            expected = net(batch).numpy()
        _compare(session.run(["logits"], {"image": batch.numpy()})[0], expected)
        if measures:
            assert isinstance(net, DeclipNet)
            with torch.inference_mode():
                mean = net.means(batch).flip(0) + 0.1  # those of another picture
                expected = net(batch, mean).numpy()
            given = {"image": batch.numpy(), photo_mean.PHOTO_MEAN: mean.numpy()}
            _compare(session.run(["logits"], given)[0], expected)


def _compare(found: NDArray[np.float32], expected: NDArray[np.float32]) -> None:
    """Raise ExportError where logits are not the expected ones."""
    difference = float(np.abs(found - expected).max())
    if not difference <= TOLERANCE:  # not: also catches nan
        raise ExportError(
            f"the file's logits differ from torch's by {difference:.2e} (at most {TOLERANCE:.0e}): it is not kept"
        )
