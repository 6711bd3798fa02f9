"""What a data set is made of: a recipe, read from a TOML file or made in Python.

declip has two recipes: "fresh" (the defaults: files as somebody has just saved them) and "lived" (pictures with a
history). Their files, in the folder `recipes`, show all settings.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import tomllib
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from declip.errors import DatasetError
from declip.files import read_text
from declip.results import check_several
from declip.synthesis.generators import expand
from declip.synthesis.history import History, Saving
from declip.synthesis.masks import MASKS, SMALLEST_SIDE, MaskKind
from declip.synthesis.networks import Networks

__all__ = ["RECIPES", "Layout", "Recipe"]

Layout = Literal["manifest", "dolos"]
Settings = TypeVar("Settings")

_FOLDER = Path(__file__).parent / "recipes"
RECIPES = ("fresh", "lived")


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """What a data set is made of.

    generators: names of ALL_GENERATORS or SETS, taken in turn; one that is named twice is twice as frequent.
    masks: kinds of mask to draw from, of MASKS.
    seed: integer >= 0; decides all that is random. split: written into the manifest.
    layout: of the files, see `pipeline`; the manifest is written in either.
    per_photo: manipulated pictures per photo. count: in its place, how many there shall be in all; then photos are
        drawn so that no source (`sources.source_of`) has more than the share `cap`.
    size: px, the longer side of the crops; a photo larger than this is cropped at a random place, a smaller one is used
        whole. smallest_size: the longer side is drawn log-uniformly between this and `size`; None: it is `size`.
    narrowest: the shorter side as a share of the longer one is drawn from [narrowest, 1].
    downscaled: share of the crops that are made smaller, where the photo is large enough, by smallest_scale to 0.9.
    saving: what else happens to the pictures, each step independently of the others; or history: what they go through.
    networks: weights of the learnt generators.
    """

    generators: tuple[str, ...] = ("all-classical",)
    masks: tuple[MaskKind, ...] = ("random", "object")
    seed: int = 0
    split: str = "train"
    layout: Layout = "manifest"
    per_photo: int = 1
    count: int | None = None
    cap: float = 0.08
    size: int = 512
    smallest_size: int | None = None
    narrowest: float = 1.0
    downscaled: float = 0.2
    smallest_scale: float = 0.4
    saving: Saving = field(default_factory=Saving)
    history: History | None = None
    networks: Networks = field(default_factory=Networks)

    def __post_init__(self) -> None:
        check_several(self.generators, "generators=[…]")
        check_several(self.masks, "masks=[…]")
        object.__setattr__(self, "generators", expand(self.generators))
        # Their order does not matter to who writes a recipe, but it does to the random choice.
        kinds = tuple(kind for kind in MASKS if kind in self.masks)
        if not kinds or set(self.masks) - set(MASKS):
            raise DatasetError(f"masks are {', '.join(self.masks) or 'none'}; expected some of {', '.join(MASKS)}")
        object.__setattr__(self, "masks", kinds)
        least = {"seed": 0, "per_photo": 1, "count": 1, "size": SMALLEST_SIDE, "smallest_size": SMALLEST_SIDE}
        for name, low in least.items():
            value = getattr(self, name)
            if value is not None and value < low:
                raise DatasetError(f"{name} is {value}; expected at least {low}")
        if self.smallest_size is not None and self.smallest_size > self.size:
            raise DatasetError(f"smallest_size is {self.smallest_size}; expected at most the size, {self.size}")
        for name in ("cap", "narrowest", "downscaled", "smallest_scale"):
            if not 0 <= getattr(self, name) <= 1:
                raise DatasetError(f"{name} is {getattr(self, name)}; expected a share in [0, 1]")
        if self.layout not in get_args(Layout):
            raise DatasetError(f"layout is {self.layout}; expected {' or '.join(get_args(Layout))}")
        if self.history is not None and self.saving != Saving():
            raise DatasetError("a recipe has the settings of saving or those of history, not both")

    @classmethod
    def read(cls, source: str | Path = "fresh", changes: Sequence[str] = ()) -> Recipe:
        """Read a recipe.

        source: one of RECIPES, or a TOML file. changes: "key=value" over what is there, in TOML's syntax, where texts
        need no quotes and lists may be separated by commas: "saving.jpeg=0.3", "generators=telea,splice".

        Raises DatasetError if the file cannot be read, or for a setting that there is not or that has a wrong value.
        """
        path = _FOLDER / f"{source}.toml" if source in RECIPES else Path(source)
        try:
            table = tomllib.loads(read_text(path))
        except OSError as error:
            raise DatasetError(
                f"the recipe {source} cannot be read: {error}; declip has {' and '.join(RECIPES)}"
            ) from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise DatasetError(f"the recipe {path} is no TOML: {error}") from error
        for change in changes:
            _merge(table, _parsed(change))
        return _made(cls, table, "")


def _parsed(change: str) -> dict[str, Any]:
    key, sign, value = change.partition("=")
    if not (key and sign):
        raise DatasetError(f"got {change}; expected KEY=VALUE")
    for written in (value, json.dumps(value)):
        try:
            return tomllib.loads(f"{key} = {written}")
        except tomllib.TOMLDecodeError:
            continue
    raise DatasetError(f"got {change}; expected KEY=VALUE with a key such as size or saving.jpeg")


def _merge(table: dict[str, Any], change: Mapping[str, Any]) -> None:
    for key, value in change.items():
        if isinstance(value, dict) and isinstance(table.get(key), dict):
            _merge(table[key], value)
        else:
            table[key] = value


def _made(kind: type[Settings], table: Mapping[str, Any], where: str) -> Settings:
    """Make a dataclass of settings from a table, strictly; where: the keys that lead to it, for messages."""
    hints = get_type_hints(kind)
    for key in table:
        if key not in hints:
            near = difflib.get_close_matches(key, hints, n=1) or sorted(hints)
            raise DatasetError(f"a recipe has no setting {where}{key}; did you mean {' or '.join(near)}?")
    return kind(**{key: _value(hints[key], value, where + key) for key, value in table.items()})


def _value(hint: Any, value: Any, name: str) -> Any:
    """Bring a value of TOML to the type of its setting."""
    choices = get_args(hint)
    if get_origin(hint) in (Union, types.UnionType):
        return _value(choices[0], value, name)  # the others are None, and Path beside text
    if dataclasses.is_dataclass(hint) and isinstance(hint, type) and isinstance(value, dict):
        return _made(hint, value, f"{name}.")
    if get_origin(hint) is tuple:
        values = value.split(",") if isinstance(value, str) else value
        if isinstance(values, list) and (choices[-1] is Ellipsis or len(values) == len(choices)):
            return tuple(_value(choices[0], part, name) for part in values)
    elif get_origin(hint) is Literal and type(value) is type(choices[0]):
        return value  # its recipe checks which of them it is
    elif get_origin(hint) is not None and isinstance(value, dict):
        return {key: _value(str, part, f"{name}.{key}") for key, part in value.items()}
    elif hint is float and type(value) in (int, float):
        return float(value)
    elif type(value) is hint:
        return value
    raise DatasetError(f"{name} is {value!r}; expected {getattr(hint, '__name__', str(hint))}")
