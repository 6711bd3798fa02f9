"""Export to ONNX, checked against torch before the file is kept."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import numpy as np
import onnx
import torch

from declip.engines import SPEC_KEY, OnnxEngine
from declip.errors import ExportError
from declip.nn import checkpoint
from declip.types import ModelSpec

__all__ = ["to_onnx"]

TOLERANCE = 1e-4


def to_onnx(source: str | Path, out: str | Path) -> Path:
    """Export a .safetensors checkpoint to ONNX: image (N, 3, S, S) float32 → logits (N, T, T) float32, N free.

    CAT-Net's file takes coefficients (N, S, S) and table (N, 8, 8) as well, both float32, of the JPEG itself.
    The ModelSpec goes into the metadata; normalisation stays outside (`image.to_input`), sigmoid too. The file is
    kept only if its logits for N = 1 and 3 differ from torch's by at most 1e-4; otherwise ExportError.
    """
    out = Path(out)
    net, spec = checkpoint.load(Path(source))
    example = _example(spec)
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(out.name + ".part.onnx")
    try:
        with warnings.catch_warnings(), torch.inference_mode():
            # The exporter warns of its own internals (deprecated copies, opset steps), not of results.
            warnings.simplefilter("ignore")
            logging.getLogger("torch.onnx").setLevel(logging.ERROR)
            program = torch.onnx.export(
                net,
                tuple(example.values()),
                dynamo=True,
                dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=4096)},) * len(example),
                input_names=list(example),
                output_names=["logits"],
                opset_version=18,
                verbose=False,
            )
        if program is None:
            raise ExportError(f"torch.onnx gave no program for {source}")
        model = program.model_proto
        entry = model.metadata_props.add()
        entry.key, entry.value = SPEC_KEY, spec.to_json()
        onnx.save_model(model, str(partial))
        _check(net, partial, example)
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)
    return out


def _example(spec: ModelSpec) -> dict[str, torch.Tensor]:
    """Two inputs of a network, by name."""
    generator = torch.Generator().manual_seed(0)
    side = spec.input_size
    example = {"image": torch.randn(2, 3, side, side, generator=generator)}
    if spec.architecture == "cat-net":
        example["coefficients"] = torch.randint(-30, 31, (2, side, side), generator=generator).float()
        example["table"] = torch.randint(1, 65, (2, 8, 8), generator=generator).float()
    return example


def _check(net: torch.nn.Module, path: Path, example: dict[str, torch.Tensor]) -> None:
    engine = OnnxEngine(path)
    one = {name: value[:1] for name, value in example.items()}
    three = {name: torch.cat([value, value[:1].flip(-1)]) for name, value in example.items()}
    for batch in (one, three):
        with torch.inference_mode():
            expected = net(**batch).numpy()
        found = engine.logits({name: value.numpy() for name, value in batch.items()})
        difference = float(np.abs(found - expected).max())
        if not difference <= TOLERANCE:  # not: also catches nan
            raise ExportError(
                f"the file's logits differ from torch's by {difference:.2e} (at most {TOLERANCE:.0e}): it is not kept"
            )
