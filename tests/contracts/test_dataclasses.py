"""What dataclass makes by itself, repr and ==, fits the fields: pixels and files are neither shown nor compared."""

from __future__ import annotations

import builtins
import dataclasses
import importlib
import inspect
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Any

import numpy as np
import torch

import declip

PACKAGE = Path(declip.__file__).parent
MODULES = sorted(
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    for path in PACKAGE.rglob("*.py")
    if not path.name.startswith("__")
)


def kinds(annotation: Any) -> Iterator[Any]:
    """The annotation, and what stands in its brackets or between its bars."""
    yield typing.get_origin(annotation) or annotation
    if typing.get_origin(annotation) in (typing.Union, UnionType, tuple, list, dict):
        for part in typing.get_args(annotation):
            yield from kinds(part)


class Names(dict[str, Any]):
    """The names of a module; what is imported for type checkers only is an object like any other."""

    def __missing__(self, name: str) -> Any:
        if hasattr(builtins, name):
            raise KeyError(name)
        return object


def faults(cls: type) -> list[str]:
    """The fields whose contents would be printed, or compared element by element."""
    hints = typing.get_type_hints(cls, localns=Names(vars(sys.modules[cls.__module__])))
    made: Any = vars(cls)["__dataclass_params__"]
    found = []
    for field in dataclasses.fields(cls):
        held = set(kinds(hints[field.name]))
        arrays = held & {np.ndarray, torch.Tensor}
        if (arrays or bytes in held) and field.repr and made.repr:
            found.append(f"{field.name} is printed: field(repr=False)")
        if arrays and field.compare and made.eq:
            found.append(f"{field.name} is compared: eq=False")
    return found


def test_pixels_and_files_are_neither_printed_nor_compared() -> None:
    for module in MODULES:
        for name, cls in vars(importlib.import_module(f"declip.{module}")).items():
            if inspect.isclass(cls) and dataclasses.is_dataclass(cls) and cls.__module__ == f"declip.{module}":
                assert not faults(cls), f"{module}.{name}"


def test_the_rule_can_fail() -> None:
    @dataclasses.dataclass
    class Bad:
        pixels: np.ndarray[Any, Any] | None
        data: bytes
        parts: tuple[torch.Tensor, ...] = dataclasses.field(repr=False)

    hints = {"pixels": np.ndarray[Any, Any] | None, "data": bytes, "parts": tuple[torch.Tensor, ...]}
    Bad.__annotations__ = hints
    assert [fault.split()[0] for fault in faults(Bad)] == ["pixels", "pixels", "data", "parts"]
