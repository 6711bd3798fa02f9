"""The words that descriptions of models are made of, and what sets the architectures apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, get_args

from declip.errors import SpecError

__all__ = [
    "ARCHITECTURES",
    "STATISTICS",
    "Architecture",
    "DecoderKind",
    "Found",
    "ImageScore",
    "Mode",
    "Precision",
    "Reference",
    "Target",
    "Traits",
    "check",
    "check_choice",
    "is_own",
]

# Backbones that are fixed filters: nothing to load, one layer (declip.nn.statistics).
STATISTICS = ("pixels", "residual-statistics", "block-statistics", "quantization-statistics")

Architecture = Literal["declip", "patch-forensics", "grad-cam", "pscc-net", "cat-net"]
DecoderKind = Literal["linear", "attention", "conv-4", "conv-12", "conv-20", "dilated"]
Mode = Literal["whole", "tiled"]
Target = Literal["mask", "image"]  # what a network learns: every pixel, or one label for the whole picture
ImageScore = Literal["mean", "mean-logit", "top"]
Reference = Literal["tile", "photo"]  # against whose mean a decoder measures features
Precision = Literal["exact", "fast"]
Found = Literal["manipulated", "inconclusive"]  # the verdicts that a part can have


def is_own(name: str) -> bool:
    """Return whether this names a part of another package: "my_package.module:Class" (see `declip.nn.own`)."""
    return ":" in name


def check(condition: bool, message: str) -> None:
    """Raise SpecError with the message unless the condition holds."""
    if not condition:
        raise SpecError(message)


def check_choice(value: object, alias: Any, name: str) -> None:
    """Raise SpecError, which names the choices, unless the value is one of those of a Literal."""
    allowed = get_args(alias)
    check(value in allowed, f"{name} is {value!r}; expected one of {', '.join(map(repr, allowed))}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Traits:
    """What the code outside `declip.nn` has to know about an architecture.

    has_decoder: it is a decoder on frozen backbones; of the others the whole network is learnt.
    layers: where its one backbone, an Xception, can be cut; empty = it names no backbone (or any, with a decoder).
    modes: the modes that its description can have.
    size_fields, size_step: these fields of a ModelSpec must be multiples of size_step, px.
    has_width: `ModelSpec.width` can be chosen.
    targets: what it can learn. image_score: the score that is trained where the target is "image".
    reads_coefficients: it also takes the JPEG coefficients of the file itself, on the grid of the file.
    resizes_bicubic: its maps are resized to the photo bicubically, as its authors do; others bilinearly.
    has_fast_engine: it can compute in bf16. exportable: its ONNX file computes what torch computes.
    """

    has_decoder: bool = False
    layers: range = range(0)
    modes: tuple[Mode, ...] = ("whole", "tiled")
    size_fields: tuple[str, ...] = ()
    size_step: int = 1
    has_width: bool = False
    targets: tuple[Target, ...] = ("mask",)
    image_score: ImageScore = "mean-logit"
    reads_coefficients: bool = False
    resizes_bicubic: bool = False
    has_fast_engine: bool = False
    exportable: bool = True


ARCHITECTURES: Mapping[Architecture, Traits] = MappingProxyType(
    {
        "declip": Traits(has_decoder=True, targets=("mask", "image"), has_fast_engine=True),
        "patch-forensics": Traits(
            layers=range(1, 6),
            modes=("whole",),
            targets=("mask", "image"),
            image_score="mean",  # each patch learns the label of its picture: the mean of their scores is trained
            resizes_bicubic=True,
            has_fast_engine=True,
        ),
        "grad-cam": Traits(layers=range(4, 5), modes=("whole",), targets=("image",)),
        "pscc-net": Traits(size_fields=("output_size",), size_step=8, exportable=False),
        "cat-net": Traits(
            modes=("tiled",),  # a squashed picture has no coefficients of its own
            size_fields=("input_size", "overlap"),
            size_step=8,  # the grid of JPEG
            has_width=True,
            reads_coefficients=True,
            exportable=False,
        ),
    }
)
