"""Write docs/recipes.md: each key of a training recipe, its values, default and meaning, from the dataclasses.

python tools/recipe_page.py
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import types
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from declip.spec import BackboneSpec, DecoderSpec, ModelSpec
from declip.training import TrainConfig, recipe

PAGE = Path(__file__).resolve().parents[1] / "docs" / "recipes.md"
HEAD = """# Keys of a training recipe

`declip train` reads a recipe in TOML ([train.md](train.md)); `recipes/` has examples. A key that is left out has its
default. TOML has no word for none: leave the key out. `--set lr=3e-4` and `--set model.overlap=32` change single keys.
`python tools/recipe_page.py` writes this page from the code.
"""
TABLES = (
    ("Training: the keys above the first table", TrainConfig),
    ("The network: `[model]`", ModelSpec),
    ("Each backbone: `[[model.backbones]]`", BackboneSpec),
    ("The decoder: `[model.decoder]`", DecoderSpec),
)
NAMES = {int: "whole number", float: "number", bool: "`true` or `false`", str: "text"}


def page() -> str:
    """Return docs/recipes.md."""
    parts = [HEAD]
    for title, kind in TABLES:
        # "a" | "b" is how docstrings write choices; in a table the bar would begin a cell.
        rows = "\n".join(f"| {' | '.join(cell.replace(' | ', ', ') for cell in row)} |" for row in table(kind))
        parts.append(f"## {title}\n\n| key | values | default | meaning |\n|---|---|---|---|\n{rows}\n")
    return "\n".join(parts)


def table(kind: Any) -> list[tuple[str, str, str, str]]:
    """Return (key, values, default, meaning) of each field. Raises KeyError for one that the docstring leaves out."""
    hints, said = get_type_hints(kind), meanings(kind)
    fields = dataclasses.fields(kind)
    return [(f"`{f.name}`", values(f.name, hints[f.name], kind), default(f), said[f.name]) for f in fields]


def meanings(kind: Any) -> dict[str, str]:
    """Return what a docstring says of each field, as "name: text" or "name, name: text" from a line or sentence on."""
    name = "|".join(field.name for field in dataclasses.fields(kind))
    text = re.sub(r"\n {4,}", " ", inspect.getdoc(kind) or "")
    found = re.split(rf"(?:^|(?<=\. ))((?:{name})(?:, (?:{name}))*): ", text, flags=re.MULTILINE)
    pairs = [(names, said.split("\n\n")[0].strip()) for names, said in zip(found[1::2], found[2::2], strict=True)]
    return {key: said for names, said in pairs for key in names.split(", ")}


def values(name: str, hint: Any, kind: Any) -> str:
    """Return in words what a key can be."""
    if name == "augment":  # the type says text; the recipe checks the names
        return "list of " + ", ".join(f'`"{choice}"`' for choice in recipe._CHOICES[name])
    if isinstance(hint, types.UnionType) or get_origin(hint) is Union:
        return " or ".join(dict.fromkeys(values(name, part, kind) for part in get_args(hint) if part is not type(None)))
    if get_origin(hint) is Literal:
        return ", ".join(f'`"{choice}"`' for choice in get_args(hint))
    if get_origin(hint) is tuple:
        inner = get_args(hint)
        count = "" if inner[-1] is Ellipsis else f"{len(inner)} "
        return f"list of {count}{values(name, inner[0], kind)}s"
    if dataclasses.is_dataclass(hint):
        return "table"
    ranges = [words for fields, _, words in recipe._RANGES if kind is TrainConfig and name in fields]
    return " ".join([NAMES[hint], *ranges])


def default(field: dataclasses.Field[Any]) -> str:
    """Return a default as TOML has it."""
    if field.default is dataclasses.MISSING:
        return "required"
    return "none" if field.default is None else f"`{json.dumps(field.default)}`"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
