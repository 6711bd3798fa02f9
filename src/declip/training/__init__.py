"""Training of a decoder on frozen features, or of a rival."""

from declip.training.recipe import TrainConfig
from declip.training.run import Run, fill_features, parts_of, train

__all__ = ["Run", "TrainConfig", "fill_features", "parts_of", "train"]
