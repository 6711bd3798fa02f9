"""Engines: what computes logits, by ONNX Runtime, OpenVINO or torch."""

from declip.engines.engines import (
    OnnxEngine,
    OpenVinoEngine,
    TorchEngine,
    Wrapped,
    check_target,
    cores,
    in_torch_thread,
    model_file,
    open_engine,
    with_spec,
)

__all__ = [
    "OnnxEngine",
    "OpenVinoEngine",
    "TorchEngine",
    "Wrapped",
    "check_target",
    "cores",
    "in_torch_thread",
    "model_file",
    "open_engine",
    "with_spec",
]
