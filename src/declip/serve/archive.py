"""What `--keep` writes: for every localized picture a folder with the file, its maps and its row."""

from __future__ import annotations

import json
import secrets
import time
from pathlib import Path

from declip.images.mapfiles import write_mask, write_scores
from declip.images.overlay import overlay_png
from declip.results import Localization, Photo

__all__ = ["keep"]


def keep(folder: Path, photo: Photo, result: Localization) -> Path:
    """Write photo (the file's bytes as they came), scores.png, mask.png, overlay.png and result.json to a new folder.

    Return its path in folder: the time (UTC) and a random word; the client's file name is only in result.json. It
    appears whole or, after a crash, under a name that begins with a dot. Raises OSError.
    """
    name = f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{secrets.token_hex(8)}"
    partial = folder / f".{name}"
    partial.mkdir(parents=True)
    (partial / "photo").write_bytes(photo.data)
    write_scores(partial / "scores.png", result.scores)
    write_mask(partial / "mask.png", result.mask)
    (partial / "overlay.png").write_bytes(overlay_png(photo, result))
    (partial / "result.json").write_text(json.dumps(result.to_dict()) + "\n", encoding="utf-8")
    return partial.rename(folder / name)
