"""What `--keep` writes: for every localized picture a folder with the file, its maps and its row."""

from __future__ import annotations

import json
import logging
import secrets
import time
from pathlib import Path

from declip.errors import ImageError
from declip.images.mapfiles import write_mask, write_scores
from declip.images.overlay import overlay_png
from declip.results import Localization, Photo

__all__ = ["keep"]

_log = logging.getLogger(__name__)


def keep(folder: Path, photo: Photo, result: Localization) -> Path:
    """Write photo (the file's bytes as they came), scores.png, mask.png, overlay.png and result.json to a new folder.

    Return its path in folder: the time (UTC) and a random word; the client's file name is only in result.json. It
    appears whole or, after a crash, under a name that begins with a dot. Raises ImageError of kind "write".
    """
    try:
        return _write(folder, photo, result)
    except OSError as error:
        _log.error("cannot keep a picture", exc_info=error)
        message = f"the service cannot keep this picture: {error.strerror or error}"
        raise ImageError(photo.name, "write", message) from error


def _write(folder: Path, photo: Photo, result: Localization) -> Path:
    name = f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{secrets.token_hex(8)}"
    partial = folder / f".{name}"
    partial.mkdir(parents=True)
    (partial / "photo").write_bytes(photo.data)
    write_scores(partial / "scores.png", result.scores)
    write_mask(partial / "mask.png", result.mask)
    (partial / "overlay.png").write_bytes(overlay_png(photo, result))
    (partial / "result.json").write_text(json.dumps(result.to_dict()) + "\n", encoding="utf-8")
    return partial.rename(folder / name)
