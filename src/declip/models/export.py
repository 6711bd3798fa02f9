"""Export to ONNX, checked against torch before the file is kept."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import numpy as np
import onnx
import torch

from declip.engines import probes
from declip.engines.engines import OnnxEngine
from declip.errors import ExportError
from declip.files import write_atomic
from declip.models import checkpoint
from declip.spec import PROBE_KEY, SPEC_KEY

__all__ = ["to_onnx"]

TOLERANCE = 1e-4


def to_onnx(source: str | Path, out: str | Path) -> Path:
    """Export a .safetensors checkpoint to ONNX: image (N, 3, S, S) float32 → logits (N, T, T) float32, N free.

    PSCC-Net and CAT-Net are refused: what the exporter makes of them computes something else. The ModelSpec goes into
    the metadata, as does the answer to a probe, on which fast engines prove themselves; normalisation stays outside
    (`to_input`), sigmoid too. The file is kept only if its logits for N = 1 and 3 differ from torch's by at most
    1e-4; otherwise ExportError.
    """
    out = Path(out)
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
    with torch.inference_mode():
        answer = net(torch.from_numpy(probes.picture(spec))).numpy()
    onnx.helper.set_model_props(model, {SPEC_KEY: spec.to_json(), PROBE_KEY: probes.pack(answer)})

    def write(partial: Path) -> None:
        partial.write_bytes(model.SerializeToString())
        _check(net, partial, example)

    write_atomic(out, write)
    return out


def _check(net: torch.nn.Module, path: Path, example: torch.Tensor) -> None:
    engine = OnnxEngine(path)
    for batch in (example[:1], torch.cat([example, example[:1].flip(-1)])):
        with torch.inference_mode():
            expected = net(batch).numpy()
        found = engine.logits({"image": batch.numpy()})
        difference = float(np.abs(found - expected).max())
        if not difference <= TOLERANCE:  # not: also catches nan
            raise ExportError(
                f"the file's logits differ from torch's by {difference:.2e} (at most {TOLERANCE:.0e}): it is not kept"
            )
