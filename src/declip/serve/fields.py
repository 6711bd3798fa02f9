"""The fields beside the files of a form: which there are, their description for OpenAPI, and how they are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, cast, get_args

from declip.serve.problems import ProblemError
from declip.spec import Mode

__all__ = ["FIELDS", "MapName", "Options", "describe", "parse_flag", "parse_options"]

MapName: TypeAlias = Literal["scores", "mask", "overlay", "photo"]
MAPS: tuple[MapName, ...] = get_args(MapName)

# By the last part of the path.
FIELDS: Mapping[str, tuple[str, ...]] = {
    "localize": ("model", "mode", "threshold", "maps", "words"),
    "report": ("model", "mode", "threshold", "position"),
    "metadata": ("position",),
}
_FLAG = {"type": "string", "enum": ["true", "false"]}
_DESCRIBED: Mapping[str, Mapping[str, Any]] = {
    "model": {"type": "string", "description": "Default: the first."},
    "mode": {"type": "string", "enum": [*get_args(Mode)], "description": "Default: the model's own."},
    "threshold": {
        "type": "number",
        "minimum": 0,
        "maximum": 1,
        "description": "Lowest score in the mask. With it there is no verdict. Default: the model's own rule.",
    },
    "maps": {
        "type": "string",
        "pattern": f"^({'|'.join(MAPS)})(,({'|'.join(MAPS)}))*$",
        "description": "Maps that come with the answer, separated by commas.",
    },
    "words": {**_FLAG, "description": "Add the verdict in plain words to each row. Default: false."},
    "position": {**_FLAG, "description": "Tell the GPS position and free text, too. Default: false."},
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """What a request asks for. threshold: None = the model's own rule. maps, words: what comes with each row."""

    model: str
    mode: Mode
    threshold: float | None = None
    maps: tuple[MapName, ...] = ()
    words: bool = False


def describe(path: str, models: Sequence[str], files: int = 1) -> dict[str, Any]:
    """Describe the form of a path for OpenAPI. files: how many it may have."""
    properties: dict[str, Any] = {
        "file": {
            "type": "array",
            "items": {"type": "string", "format": "binary"},
            "minItems": 1,
            "maxItems": files,
            "description": "The pictures; the field is repeated for several." if files > 1 else "The picture.",
        }
    }
    properties |= {name: dict(_DESCRIBED[name]) for name in FIELDS[path]}
    if "model" in properties:
        properties["model"]["enum"] = [*models]
    schema = {"type": "object", "properties": properties, "required": ["file"], "additionalProperties": False}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}


def parse_options(fields: Mapping[str, str], modes: Mapping[str, Sequence[Mode]]) -> Options:
    """Read the fields of a form. modes: of each served model, its own first; the first model is the default.

    Raises ProblemError 422.
    """
    model = fields.get("model", next(iter(modes)))
    if model not in modes:
        raise ProblemError(422, f"the model is {model!r}; this service has {', '.join(modes)}")
    mode = fields.get("mode", modes[model][0])
    if mode not in modes[model]:
        raise ProblemError(422, f"the mode is {mode!r}; {model} has {' and '.join(modes[model])}")
    maps = tuple(dict.fromkeys(fields["maps"].split(","))) if "maps" in fields else ()
    for name in maps:
        if name not in MAPS:
            raise ProblemError(422, f"maps has {name!r}; expected some of {','.join(MAPS)}")
    return Options(
        model=model,
        mode=cast("Mode", mode),
        threshold=_threshold(fields["threshold"]) if "threshold" in fields else None,
        maps=cast("tuple[MapName, ...]", maps),
        words=parse_flag(fields, "words"),
    )


def parse_flag(fields: Mapping[str, str], name: str) -> bool:
    """Read a field that is "true" or "false", by default false. Raises ProblemError 422."""
    value = fields.get(name, "false")
    if value not in ("true", "false"):
        raise ProblemError(422, f"{name} is {value!r}; expected true or false")
    return value == "true"


def _threshold(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0 <= value <= 1:
        raise ProblemError(422, f"the threshold is {text!r}; expected a number in [0, 1], as scores are")
    return value
