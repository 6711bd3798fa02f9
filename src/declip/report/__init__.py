"""The report on one photo, and whether an edit could have been seen in it."""

from __future__ import annotations

from typing import Any

import lazy_loader

from declip.errors import naming_extras

# __init__.pyi lists what there is. Looked up when it is used: only the page needs the extra `report`.
_find, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> Any:
    with naming_extras():
        return _find(name)
