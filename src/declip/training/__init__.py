"""Training a decoder on frozen features."""

from declip.training.training import Run, TrainConfig, parts_of, train

__all__ = ["Run", "TrainConfig", "parts_of", "train"]
