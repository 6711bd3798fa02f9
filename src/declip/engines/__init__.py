"""Engines: normalised pictures → logits, by ONNX Runtime (the light core), OpenVINO or torch.

All are thread-safe. The exact ones compute in fp32 and give the same numbers (export is checked to 1e-4); the fast
ones are as exact as their proof says (`declip.models.probe`). An engine works on in a fork of its process (not on a
GPU), and travels to other processes (pickle) as the file it was opened from.
"""

from declip.engines.base import Engine, Wrapped
from declip.engines.opening import model_file, open_engine

__all__ = ["Engine", "Wrapped", "model_file", "open_engine"]
