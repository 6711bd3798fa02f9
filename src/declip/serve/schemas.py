"""The bodies of answers, for the OpenAPI description. A test compares the rows with `Localization.to_dict()`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from declip import provenance
from declip.report.probes import Kind
from declip.report.wording import Tone
from declip.results import Verdict
from declip.spec import Found, Mode, Precision

__all__ = ["DetectabilityBody", "ErrorRow", "MetadataBody", "Models", "Problem", "Results", "Row", "State"]

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]


class _Schema(BaseModel):
    model_config = ConfigDict(extra="forbid")


Box = tuple[int, int, int, int]


class RegionRow(_Schema):
    """A part of the mask."""

    bbox: Box = Field(description="x0, y0, x1, y1 in px, half-open")
    area: Share = Field(description="share of the photo")
    score: Share = Field(description="mean of its scores")
    rank: Share | None = Field(description="share of untouched photos of this size without so strong a part")
    verdict: Found | None = Field(description="what that rank stands for; null without a verdict on the photo")
    clue: str = Field(description='what found it: "model", or a kind of clue, as "copy-move"')
    reason: str | None = Field(description="why, in a sentence or two for people; null of the model, which knows none")
    parts: list[Box] = Field(description="boxes of a part and of its repetition; empty where nothing repeats")
    transform: tuple[float, float, float, float, float, float] | None = Field(
        description="maps (x, y) px of the first part to the second: (a x + b y + c, d x + e y + f)"
    )
    directed: bool = Field(description="the second part is likely the copy of the first")


class Maps(_Schema):
    """The maps that were asked for, as base64 of PNG files, the photo of a JPEG (in the zip: their names)."""

    scores: str | None = Field(None, description="16-bit grey, 65535 = 1.0")
    mask: str | None = Field(None, description="8-bit grey, 255 = manipulated")
    overlay: str | None = Field(None, description="RGB")
    photo: str | None = Field(None, description="upright, as it was examined; at most 16,384 px a side")


class FieldBody(_Schema):
    """A name and its value, as the file has them: hostile input for whoever shows them."""

    name: str
    value: str


class ReasonBody(_Schema):
    """A code as its standard writes it, and what it says in plain words."""

    code: str
    text: str


class CredentialsBody(_Schema):
    """What the file says of how it was made: content credentials (C2PA), XMP, texts of generators."""

    state: provenance.State = Field(description="of the content credentials")
    meaning: str = Field(description="the state in plain words")
    headline: str | None = Field(description="what must stand beside any verdict on the pixels; null: nothing is said")
    generator: provenance.Generator | None = Field(description="what the file says of generators; null is no statement")
    reasons: list[ReasonBody] = Field(description="the checks, by their C2PA status codes")
    says: list[ReasonBody] = Field(description="the file's own statements")
    fields: list[FieldBody] = Field(description="who made and signed the credentials, and their actions")


class StepBody(_Schema):
    """A verdict, and the largest share of untouched photos that get it or a stronger one."""

    word: Found
    rate: Share


class Words(_Schema):
    """A verdict in plain words."""

    tone: Tone
    title: str
    summary: str = Field(description="how strong the strongest part is among untouched photos, or why no verdict")
    flagged: str = Field(description="what is in the mask")
    meaning: list[str]
    caution: str = Field(description="the first thing that does not follow")
    because: str = Field(description="why it does not follow")
    unsaid: list[str] = Field(description="what else does not follow")
    limits: list[str] = Field(description="what no model of this kind can see")
    no_probability: str
    steps: list[StepBody] = Field(description="the verdicts that a photo of this size can have, the strongest first")


class Row(_Schema):
    """A picture's result, as `declip localize --json` prints it."""

    image: str = Field(description="the file name as it was sent")
    width: Positive = Field(description="px, upright")
    height: Positive = Field(description="px, upright")
    verdict: Verdict | None = Field(description="null without a calibration for this mode and size, or at a threshold")
    score: Share | None = Field(
        description="with a verdict: share of untouched photos of this size without so strong a part (null: not "
        "examined); else the image score",
    )
    false_alarm_rate: Share | None = Field(
        description="share of untouched photos that get this verdict or a stronger one"
    )
    untouched: Count | None = Field(description="with how many untouched photos it was compared")
    not_examined: str | None = Field(description="why there is no verdict on such a picture: no photograph, say")
    area: Share = Field(description="share of the photo inside the mask")
    regions: list[RegionRow] = Field(description="the parts of the mask: at most 50, the strongest (or largest) first")
    clues: list[str] = Field(description="the kinds of clues that looked at it, beside the model")
    threshold: Share = Field(description="lowest score in a part of the mask")
    image_score: Share = Field(description="the network's own number for the whole image")
    provenance: CredentialsBody | None = Field(description="what the file says of how it was made")
    notes: list[str] = Field(description="what of the file was not examined, for people")
    pages: Positive = Field(description="how many pictures the file holds")
    page: Positive = Field(description="which of them was examined, from 1")
    model: str
    sha256: str = Field(description="of the weight file")
    mode: Mode
    precision: Precision
    seconds: float = Field(ge=0, description="that decoding and localizing took, without waiting")
    words: Words | None = Field(None, description="where words were asked for")
    maps: Maps | None = Field(None, description="where maps were asked for")


class ErrorRow(_Schema):
    """A picture that could not be localized."""

    image: str
    error: str = Field(description="what is wrong, for people")
    kind: str = Field(description="for machines: format, corrupt, too-large, input, write or internal")


class Results(_Schema):
    """One row per file, in order."""

    results: list[Row | ErrorRow]


class Problem(_Schema):
    """RFC 9457. errors: the rows of single pictures, where all of them failed."""

    type: Literal["about:blank"]
    title: str
    status: int
    detail: str
    errors: list[ErrorRow] | None = None


class SizeVerdicts(_Schema):
    """What photos of one size are compared with."""

    size: str
    untouched: Count = Field(description="photos")
    pieces: Count = Field(description="pictures that they are: whole photos and pieces")
    steps: list[StepBody]


class Model(_Schema):
    """A model that is served."""

    name: str
    sha256: str
    default: bool
    modes: list[Mode] = Field(description="its own first")
    threshold: Share = Field(description="lowest score in the mask, unless a request gives its own")
    input_size: int = Field(description="px")
    calibrated_mode: Mode | None = Field(description="the mode in which it gives verdicts")
    verdicts: list[SizeVerdicts] = Field(description="which verdicts photos of each size can have")
    summary: str | None
    trained_on: str | None
    license: str | None


class Models(_Schema):
    """The models that are served, the default first, and the limits of a request."""

    models: list[Model]
    limits: dict[str, float] = Field(description="request_bytes, files, pixels (of each picture), seconds")


class JpegBody(_Schema):
    """How a JPEG was saved the last time."""

    tables: list[list[int]] = Field(description="quantisation steps, each table 64, row by row")
    quality: int = Field(ge=1, le=100, description="of libjpeg's, whose tables come nearest")
    distance: float = Field(ge=0, description="mean absolute difference of the steps to those; 0: these very tables")
    subsampling: str = Field(description='as "4:2:0"; "" where it is none of the usual')
    progressive: bool


class MetadataBody(_Schema):
    """What a picture file says of itself. Anybody can write, change and remove it."""

    image: str = Field(description="the file name as it was sent")
    format: str
    bytes: Count
    sha256: str
    stored_height: Positive = Field(description="px, before the orientation is applied")
    stored_width: Positive = Field(description="px, before the orientation is applied")
    orientation: int = Field(ge=1, le=8)
    exif: list[FieldBody]
    software: list[FieldBody]
    withheld: list[str] = Field(description="names of what is in the file and not shown")
    has_position: bool
    position: list[FieldBody] = Field(description="empty unless it was asked for")
    free_text: list[FieldBody] = Field(description="empty unless the position was asked for: it may name a place")
    jpeg: JpegBody | None
    thumbnail: tuple[int, int] | None = Field(description="height, width of the small picture in the file")
    credentials: CredentialsBody
    preview: str | None = Field(description="that small picture, base64 of a JPEG of at most 320 px")


class ShareBody(_Schema):
    """How many edits of a kind were found."""

    kind: Kind
    found: Count
    tried: Positive
    low: Share = Field(description="end of the exact binomial interval of the share")
    high: Share = Field(description="its other end")


class EditBody(_Schema):
    """One edit that was put into the picture, and what came of it."""

    kind: Kind
    box: tuple[int, int, int, int] = Field(description="x0, y0, x1, y1 in px, half-open")
    area: Share = Field(description="share of the photo")
    iou: Share = Field(description="of its place with the flagged parts that touch it")
    found: bool


class ControlBody(_Schema):
    """A copy of the picture that was saved without any edit."""

    verdict: Verdict
    area: Share = Field(description="share that is flagged")


class DetectabilityBody(_Schema):
    """Which small known edits would have been found in the picture. It is a test of the method, and no verdict."""

    image: str = Field(description="the file name as it was sent")
    width: Positive = Field(description="px, upright")
    height: Positive = Field(description="px, upright")
    sentences: list[str] = Field(description="what was found, what follows from it, and what does not")
    kinds: list[ShareBody]
    confidence: Share = Field(description="of the intervals")
    least_iou: Share = Field(description="from which an edit counts as found")
    area: Share = Field(description="mean share of the photo that an edit has")
    edits: list[EditBody]
    control: ControlBody
    rounds: Positive = Field(description="how many copies with edits were localized")
    seed: str = Field(description="SHA-256 of the file, from which all that is random follows")
    model: str
    sha256: str = Field(description="of the weight file")
    mode: Mode
    precision: Precision
    declip: str
    seconds: float = Field(ge=0)


class State(_Schema):
    """The process answers, or takes pictures."""

    status: Literal["ok"]
