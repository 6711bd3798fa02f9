"""Photos, samples and results, and what decides on mask and verdict.

Frozen, keyword-only dataclasses, validated when they are made. Sizes are (height, width) in pixels unless a name says
otherwise; `logits` are raw, `scores` are floats in [0, 1], a `mask` is boolean and True = manipulated.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from declip.errors import DeclipError, ImageError
from declip.regions import Decision, Finding, MaskRule, Region, Verdict
from declip.spec import Mode, Precision, check_choice

if TYPE_CHECKING:
    from PIL.Image import Image as PilImage

__all__ = [
    "SAMPLE",
    "Localization",
    "Photo",
    "Predictor",
    "ResultRow",
    "Sample",
    "Verdict",
    "check_samples",
    "check_several",
    "check_type",
]
Polarity = Literal["white", "black"]
Label = Literal["real", "fake"]

# How one comes by a sample, for messages.
SAMPLE = "declip.Sample(image=…, mask=…, label='fake'), or those of datasets.read_manifest"

# What the public API takes as a picture; `read_photo` describes each.
PictureLike: TypeAlias = (
    "str | Path | bytes | bytearray | memoryview | IO[bytes] | PilImage | NDArray[Any] | Tensor | Photo"
)


class Tensor(Protocol):
    """A torch tensor, without torch."""

    dtype: Any
    shape: Any

    def detach(self) -> Any: ...


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

    fake_is: which value of the mask FILE is manipulated; resolved only by `read_mask`, after which True =
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
        check_choice(self.label, Label, "label")
        check_choice(self.fake_is, Polarity, "fake_is")


@dataclass(frozen=True, kw_only=True, eq=False)
class Localization:
    """The result for one photo.

    scores: (H, W) float32 in [0, 1], 1 = manipulated, on the decoded upright photo's own pixel grid.
    rule: what of them and of the findings is in the mask; mask, regions, verdict and score all follow from these.
    clues: the kinds of those that looked. image_score: the network's own, in [0, 1] (see ModelSpec.image_score).
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
    findings: tuple[Finding, ...] = field(default=(), repr=False)
    clues: tuple[str, ...] = ()
    out_of_scope: str | None = None
    provenance: dict[str, Any] | None = field(default=None, repr=False)
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
        return self.rule.decide(self.scores, self.findings)

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
        if self.out_of_scope is None or self.verdict == "not examined":
            return self.notes
        return (*self.notes, self.out_of_scope)

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

    @property
    def row(self) -> ResultRow:
        """What the command line, the service, the report and batch jobs tell of it."""
        height, width = self.scores.shape
        given: dict[str, Any] = {"image": self.name, "width": width, "height": height, "regions": list(self.regions)}
        given |= {"clues": list(self.clues), "notes": list(self.said)}
        named = (column.name for column in dataclasses.fields(ResultRow) if column.name not in given)
        return ResultRow(**given, **{name: getattr(self, name) for name in named})

    def to_dict(self) -> dict[str, Any]:
        """Return the row as a dictionary: the keys of `ResultRow`."""
        return dataclasses.asdict(self.row)


@dataclass(frozen=True, kw_only=True, slots=True)
class ResultRow:
    """One result as JSON, Parquet and OpenAPI have it: the one list of its keys, in their order.

    width, height: of the upright photo, px. area: share of the photo inside the mask. All other fields are those of
    `Localization` that have their name.
    """

    image: str
    width: int
    height: int
    verdict: Verdict | None
    score: float | None
    false_alarm_rate: float | None
    untouched: int | None
    not_examined: str | None
    area: float
    regions: list[Region]
    clues: list[str]
    threshold: float
    image_score: float
    provenance: dict[str, Any] | None
    notes: list[str]
    pages: int
    page: int
    model: str
    sha256: str
    mode: Mode
    precision: Precision
    seconds: float


def check_type(given: object, kind: type, example: str) -> None:
    """Raise DeclipError unless given is of a type. example: how to come by such a value, for the message."""
    if not isinstance(given, kind):
        raise DeclipError(f"got {_shown(given)}; expected {kind.__name__}: {example}")


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
        raise ImageError(_shown(items), "input", f"one thing, where several are expected; give a list: {call}")


def check_samples(samples: Iterable[Sample], call: str) -> list[Sample]:
    """Return samples as a list. Raises ImageError as `check_several`, DeclipError where one of them is no Sample."""
    check_several(samples, call)
    samples = list(samples)
    for sample in samples:
        check_type(sample, Sample, SAMPLE)
    return samples


def _shown(given: object) -> str:
    """Return how a message names what was given: what is short as it is, all else by its type."""
    short = given is None or (isinstance(given, str) and len(given) < 80)
    return repr(given) if short else f"<{type(given).__name__}>"


@runtime_checkable
class Predictor(Protocol):
    """Maps pictures to results in order: a bad file is yielded as its ImageError, never raised."""

    def map(self, images: Iterable[PictureLike], batch_size: int = 8) -> Iterator[Localization | ImageError]: ...
