"""Photos → manipulated photos with masks: data to train and to measure on, made from anybody's own pictures."""

from declip.synthesis.forging import ALL_GENERATORS, MASKS, family_of, forge
from declip.synthesis.pipeline import synthesize

__all__ = ["ALL_GENERATORS", "MASKS", "family_of", "forge", "synthesize"]
