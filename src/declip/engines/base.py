"""What the engines share: threads for the pictures of a batch, and how they travel to other processes."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from declip.errors import SpecError
from declip.process import PerProcess, cores
from declip.spec import ModelSpec, Precision

__all__ = ["NO_BF16", "SMALL", "Engine", "Opened", "Pool", "Wrapped"]

NO_BF16 = "this processor has no instructions for bf16: precision 'fast' computes %s in fp32"

# Bytes of a network that is small: its operators are over before a thread is woken, so that each thread computes a
# picture of its own; a large one shares each operator out among them.
SMALL = 64 << 20


@runtime_checkable
class Engine(Protocol):
    """Computes logits; thread-safe. One per weight file and runtime."""

    @property
    def spec(self) -> ModelSpec: ...

    @property
    def model(self) -> str:
        """A short name for results: the catalogue's, or the file's."""
        ...

    @property
    def sha256(self) -> str:
        """Of the weight file."""
        ...

    @property
    def precision(self) -> Precision:
        """What it does compute in, whatever was asked for: "exact" is fp32, "fast" is less."""
        ...

    def logits(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """{"image": (N, 3, S, S) float32 normalised RGB, …} → (N, T, T) float32 raw logits."""
        ...


class Wrapped:
    """An engine that does what another one does, under another description if one is given."""

    def __init__(self, engine: Engine, spec: ModelSpec | None = None) -> None:
        self.engine = engine
        self._spec = spec

    @property
    def spec(self) -> ModelSpec:
        """The one that is given, else the other's."""
        return self._spec or self.engine.spec

    @property
    def model(self) -> str:
        """The other's."""
        return self.engine.model

    @property
    def sha256(self) -> str:
        """The other's."""
        return self.engine.sha256

    @property
    def precision(self) -> Precision:
        """The other's."""
        return self.engine.precision

    def logits(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """As `Engine.logits`."""
        return self.engine.logits(inputs)


class Pool:
    """Threads that each compute a picture of a batch."""

    def __init__(self, threads: int | None) -> None:
        self.count = threads or cores()
        self._threads = PerProcess(partial(ThreadPoolExecutor, self.count, thread_name_prefix="declip-engine"))

    def run(
        self, run: Callable[[Mapping[str, NDArray[Any]]], NDArray[np.float32]], inputs: Mapping[str, NDArray[Any]]
    ) -> NDArray[np.float32]:
        """Compute the logits of a batch from those of its pictures."""
        singles = [{name: rows[i : i + 1] for name, rows in inputs.items()} for i in range(len(inputs["image"]))]
        # Going through threads costs a single one more than it gains.
        found = map(run, singles) if min(self.count, len(singles)) == 1 else self._threads().map(run, singles)
        return np.concatenate(list(found))


class Opened:
    """What an engine of a file was opened with; pickled, it is this, and opens the file again.

    The embedded model and those of the catalogue travel by name, since each machine has them at a place of its own.
    """

    model: str
    sha256: str

    def __init__(self, path: Path, threads: int | None, device: str | None) -> None:
        _check_threads(threads)
        _check_device(device)
        self._path = path
        self._threads = threads
        self._device_asked = device
        self._wish: Precision = "exact"
        self._offline = False
        self._process = os.getpid()

    def __reduce__(self) -> tuple[Callable[..., Engine], tuple[Any, ...]]:
        from declip.engines.opening import portable, reopen  # which imports this

        source = portable(self._path)
        return reopen, (source, self.sha256, self._threads, self._device_asked, self._wish, self._offline)


def _check_threads(threads: object) -> None:
    if threads is not None and (not isinstance(threads, int) or isinstance(threads, bool) or threads < 1):
        raise SpecError(f"threads is {threads!r}; expected a whole number >= 1, or None for one for each core")


def _check_device(device: object) -> None:
    if device is not None and not (isinstance(device, str) and re.fullmatch(r"cpu|mps|(cuda|xpu)(:\d+)?", device)):
        raise SpecError(
            f"declip cannot use device {device!r}; expected 'cpu', 'cuda' (or 'cuda:1' …), or 'mps' or 'xpu' with torch"
        )
