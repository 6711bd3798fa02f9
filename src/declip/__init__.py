"""declip shows where a photograph has been manipulated.

    import declip

    localizer = declip.load()
    result = localizer("photo.jpg")
    result.mask, result.score, result.verdict
    declip.overlay("photo.jpg", result).save("photo.overlay.png")

Importing it imports nothing else: each name is looked up when it is first used, so that what needs torch is loaded
only by those who use it.
"""

from __future__ import annotations

from typing import Any

import lazy_loader

from declip._version import __version__  # noqa: F401 (listed in the stub)
from declip.errors import naming_extras

# __init__.pyi lists what there is, for this and for type checkers.
_find, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> Any:
    with naming_extras():
        return _find(name)
