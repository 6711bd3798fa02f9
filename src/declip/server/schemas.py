"""What the service answers, for its OpenAPI description. The rows are `Localization.to_dict()`; a test compares."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from declip.types import Mode, Verdict

__all__ = [
    "ErrorRow",
    "Maps",
    "Model",
    "Models",
    "ProblemBody",
    "RegionRow",
    "Results",
    "Row",
    "State",
    "localize_body",
]

_Share = Field(ge=0, le=1)


class _Schema(BaseModel):
    model_config = ConfigDict(extra="forbid")


class RegionRow(_Schema):
    """A connected part of the mask."""

    bbox: tuple[int, int, int, int] = Field(description="x0, y0, x1, y1 in px, half-open")
    area: float = Field(ge=0, le=1, description="share of the photo")
    score: float = Field(ge=0, le=1, description="mean of its scores")


class Maps(_Schema):
    """Maps that were asked for, as base64 of PNG files (in the zip: their names)."""

    scores: str | None = Field(None, description="16-bit grey, 65535 = 1.0")
    mask: str | None = Field(None, description="8-bit grey, 255 = manipulated")
    overlay: str | None = Field(None, description="RGB")


class Row(_Schema):
    """A picture's result, as `declip localize --json` prints it."""

    image: str = Field(description="the file name as it was sent")
    width: int = Field(ge=1, description="px, upright")
    height: int = Field(ge=1, description="px, upright")
    score: float = Field(ge=0, le=1, description="of the whole image")
    verdict: Verdict | None = Field(description="null without a calibration for this mode")
    false_alarm_rate: float | None = Field(ge=0, le=1, description="of untouched photos that reach score_threshold")
    score_threshold: float | None = Field(ge=0, le=1)
    threshold: float = Field(ge=0, le=1, description="parts of scores at or above it are in the mask …")
    peak: float = Field(ge=0, le=1, description="… if a score in them is at or above this")
    area: float = Field(ge=0, le=1, description="share of the photo inside the mask")
    regions: list[RegionRow] = Field(description="the 50 largest, largest first")
    model: str
    sha256: str = Field(description="of the weight file")
    seconds: float = Field(ge=0, description="that decoding and localizing took, without waiting")
    maps: Maps | None = None


class ErrorRow(_Schema):
    """A picture that could not be localized."""

    image: str
    error: str = Field(description="what is wrong, for people")
    kind: str = Field(description="for machines: format, corrupt, too-large, input, write or internal")


class Results(_Schema):
    """One row per file, in order."""

    results: list[Row | ErrorRow]


class ProblemBody(_Schema):
    """RFC 9457. errors: the rows of single pictures, where all of them failed."""

    type: Literal["about:blank"]
    title: str
    status: int
    detail: str
    errors: list[ErrorRow] | None = None


class Model(_Schema):
    """A model that is served."""

    name: str
    sha256: str
    default: bool
    modes: list[Mode] = Field(description="its own first")
    threshold: float = Field(ge=0, le=1, description="of the mask, unless a request gives its own …")
    peak: float = Field(ge=0, le=1, description="… which then is all; else a part of the mask must reach this")
    input_size: int = Field(description="px")
    calibrated_mode: Mode | None = Field(description="the mode in which it gives verdicts")
    false_alarm_rates: list[float] = Field(description="of the verdicts 'manipulated' and 'inconclusive'")
    summary: str | None
    trained_on: str | None
    license: str | None


class Models(_Schema):
    """The models that are served, the default first, and the limits of a request."""

    models: list[Model]
    limits: dict[str, float] = Field(description="request_bytes, files, pixels (of each picture), seconds")


class State(_Schema):
    """Whether the service is there."""

    status: Literal["ok"]


def localize_body(models: list[str], files: int) -> dict[str, Any]:
    """The OpenAPI requestBody of /v1/localize."""
    properties = {
        "file": {
            "type": "array",
            "items": {"type": "string", "format": "binary"},
            "minItems": 1,
            "maxItems": files,
            "description": "The pictures; the field is repeated for several.",
        },
        "model": {"type": "string", "enum": models},
        "mode": {"type": "string", "enum": ["whole", "tiled"], "description": "Default: the model's own."},
        "threshold": {"type": "number", "minimum": 0, "maximum": 1, "description": "Of the mask."},
        "maps": {
            "type": "string",
            "pattern": "^(scores|mask|overlay)(,(scores|mask|overlay))*$",
            "description": "Maps that come with the answer, separated by commas.",
        },
    }
    schema = {"type": "object", "properties": properties, "required": ["file"], "additionalProperties": False}
    return {"required": True, "content": {"multipart/form-data": {"schema": schema}}}
