"""A folder of tensors by key, which processes may share."""

from __future__ import annotations

import json
import logging
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from declip.files import make_folder, write_atomic

__all__ = ["TensorStore"]

_log = logging.getLogger(__name__)


class TensorStore:
    """A folder of tensors by key: entries appear whole, carry a checksum, and may be written by several at once.

    about: what is kept here, written beside it for people.
    """

    def __init__(self, folder: Path, about: dict[str, Any]) -> None:
        self.folder = folder
        self._checked: set[str] = set()
        make_folder(folder)
        if not (folder / "about.json").exists():
            write_atomic(folder / "about.json", json.dumps(about, indent=1) + "\n")

    def path(self, key: str) -> Path:
        """Return where the entry of a key is, or would be."""
        return self.folder / key[:2] / f"{key}.safetensors"

    def has(self, key: str, names: Sequence[str]) -> bool:
        """Return whether there is an entry with tensors of these names, without looking at their values."""
        try:
            with safe_open(self.path(key), framework="pt") as file:
                return set(names) <= set(file.keys())
        except (SafetensorError, OSError):
            return False

    def read(self, key: str) -> dict[str, Tensor] | None:
        """Return the tensors of a key, memory-mapped; None if there are none, or if they are damaged (which is logged).

        The checksum is compared when a key is first read: an epoch later it would only take time.
        """
        path = self.path(key)
        try:
            with safe_open(path, framework="pt") as file:
                checksum = (file.metadata() or {}).get("crc32")
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        except FileNotFoundError:
            return None
        except (SafetensorError, OSError) as error:
            _log.warning("%s is damaged and computed anew: %s", path, error)
            return None
        if key not in self._checked:
            if checksum != _checksum(tensors):
                _log.warning("%s is damaged and computed anew: its checksum is wrong", path)
                return None
            self._checked.add(key)
        return tensors

    def write(self, key: str, tensors: dict[str, Tensor]) -> None:
        """Keep the tensors of a key."""
        path = self.path(key)
        about = {"crc32": _checksum(tensors)}
        # What a power cut damages is computed anew: waiting for the disk would cost each of thousands of entries time.
        write_atomic(path, lambda partial: save_file(tensors, partial, metadata=about), sync=False)


def _checksum(tensors: dict[str, Tensor]) -> str:
    value = 0
    for name in sorted(tensors):
        value = zlib.crc32(tensors[name].reshape(-1).view(torch.uint8).numpy().data, value)
    return f"{value:08x}"
