"""Photos → manipulated photos with masks: data to train and to measure on, made from anybody's own pictures."""

from declip.errors import naming_extras

with naming_extras():
    from declip.synthesis.forging import forge
    from declip.synthesis.generators import ALL_GENERATORS, family_of
    from declip.synthesis.masks import MASKS
    from declip.synthesis.pipeline import synthesize
    from declip.synthesis.recipe import Recipe

__all__ = ["ALL_GENERATORS", "MASKS", "Recipe", "family_of", "forge", "synthesize"]
