"""Parts from other packages: backbones and decoders that a description names by their class.

"my_package.module:Class" is a class of a module. "declip.backbones:NAME" and "declip.decoders:NAME" are entry points of
these groups, which an installed package declares.

A weight file holds such names, too, and must not have anything imported by the one who opens it: only what is imported
already is found, entry points, and the modules that the environment variable DECLIP_PARTS lists, separated by commas.
A training imports what its recipe names.
"""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from importlib.metadata import entry_points
from typing import Any

from torch import nn

from declip.errors import SpecError
from declip.spec import ModelSpec, is_own

__all__ = ["import_parts", "make_part", "source_of"]

_GROUPS = ("declip.backbones", "declip.decoders")


def import_parts(spec: ModelSpec) -> None:
    """Import the modules of the parts that a description names. Raises SpecError for one that cannot be imported."""
    kinds = [] if spec.decoder is None else [spec.decoder.kind]
    for name in filter(is_own, [*(row.name for row in spec.backbones), *kinds]):
        module = name.partition(":")[0]
        if module not in _GROUPS:
            _import(module, name)


def make_part(name: str, *arguments: Any) -> nn.Module:
    """Return an instance of the class that a name means. Raises SpecError if there is none, or no torch module."""
    module, _, attribute = name.partition(":")
    if module in _GROUPS:
        found: Any = _entry_point(module, attribute)
    else:
        if module in os.environ.get("DECLIP_PARTS", "").split(","):
            _import(module, name)
        if module not in sys.modules:
            raise SpecError(
                f"the model has the part {name}, and {module} is not imported. If you trust it, import it first, or "
                f"set DECLIP_PARTS={module}"
            )
        found = getattr(sys.modules[module], attribute, None)
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise SpecError(f"{name} is {found!r}; expected a class of torch modules (nn.Module)")
    try:
        return found(*arguments)
    except TypeError as error:
        raise SpecError(f"{name} cannot be made from {arguments}: {error}") from error


def source_of(part: nn.Module) -> str:
    """Return the source text of the module that a part's class is from. Raises SpecError if there is none."""
    try:
        return inspect.getsource(sys.modules[type(part).__module__])
    except (OSError, TypeError) as error:
        raise SpecError(
            f"the source of {type(part).__name__} cannot be read, so its features cannot be told from those of another "
            "version: set views = 0 in the recipe, which keeps none"
        ) from error


def _import(module: str, name: str) -> None:
    try:
        importlib.import_module(module)
    except ImportError as error:
        raise SpecError(f"{name} cannot be imported: {error}; is its folder in PYTHONPATH?") from error


def _entry_point(group: str, name: str) -> Any:
    points = entry_points(group=group)
    if name not in points.names:
        raise SpecError(f"no installed package declares {name!r} in {group}; declared are {sorted(points.names)}")
    return points[name].load()
