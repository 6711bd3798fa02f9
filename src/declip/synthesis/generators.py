"""The table of all generators: what each does, where its masks lie, and which names stand for several of them.

To add a generator, write a function as `classical` has them and give it a row here, or in `classical.GENERATORS`.
"""

from __future__ import annotations

from collections.abc import Sequence

from declip.errors import DatasetError
from declip.synthesis import classical, splices
from declip.synthesis.editing import Family, Generator
from declip.synthesis.inpainters import INPAINTERS
from declip.synthesis.upscalers import UPSCALERS, largest_mask

__all__ = ["ALL_GENERATORS", "GENERATORS", "SETS", "SPLICE_OBJECT", "expand", "family_of"]

SPLICE_OBJECT = "splice-object"
_LOCAL = Generator(family="regeneration")
_GLOBAL = Generator(family="regeneration", place="everywhere")

GENERATORS: dict[str, Generator] = {
    **classical.GENERATORS,
    SPLICE_OBJECT: Generator(family="splice", apply=splices.splice_object, needs_donor=True, place="donor"),
    "regenerate-local": _LOCAL,
    "regenerate-global": _GLOBAL,
    "zoo-local": _LOCAL,
    "zoo-global": _GLOBAL,
    **{name: Generator(family="regeneration", max_pixels=largest_mask(name)) for name in UPSCALERS},
    **dict.fromkeys(INPAINTERS, Generator(family="in-painting")),
}
ALL_GENERATORS: tuple[str, ...] = tuple(GENERATORS)
# Short names for several generators.
SETS: dict[str, tuple[str, ...]] = {
    "all-classical": tuple(classical.GENERATORS),
    "splice": tuple(name for name, row in classical.GENERATORS.items() if row.family == "splice"),
    "regenerate": ("regenerate-local", "regenerate-global"),
    "zoo": ("zoo-local", "zoo-global"),
    "upscale": tuple(UPSCALERS),
}


def expand(names: Sequence[str]) -> tuple[str, ...]:
    """Replace names of SETS by their generators. Raises DatasetError for an unknown name, or none."""
    expanded = tuple(name for given in names for name in SETS.get(given, (given,)))
    unknown = sorted(set(expanded) - GENERATORS.keys())
    if unknown or not expanded:
        came = f"unknown generators {', '.join(unknown)}" if unknown else "no generators"
        raise DatasetError(f"{came}; expected some of {', '.join((*ALL_GENERATORS, *SETS))}")
    return expanded


def family_of(generator: str) -> Family:
    """Return what kind of manipulation one of ALL_GENERATORS is."""
    return GENERATORS[generator].family
