"""What the engines share: how they are opened, travel to other processes, and share out the pictures of a batch."""

from __future__ import annotations

import hashlib
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from declip.errors import SpecError, WeightsError
from declip.models.photo_mean import PHOTO_MEAN, TILE_MEAN
from declip.models.respec import onnx_bytes
from declip.process import PerProcess, cores
from declip.spec import ModelSpec, Precision

__all__ = ["NO_BF16", "SMALL", "Engine", "Exported", "Opened", "Wrapped", "mean_state"]

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

    def state(self, views: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Learn of a whole photo what its tiles are computed with, once and before them.

        views: of one photo, as `TiledPhoto.views` chooses them: {"image": (K, 3, S, S) float32 normalised RGB}.
        Returns (1, …) arrays, which are inputs of `logits` for each of its tiles; none where tiles need nothing.
        """
        ...

    def logits(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """{"image": (N, 3, S, S) float32 normalised RGB, …} → (N, T, T) float32 raw logits.

        Beside the image there may be what `state` gave for the photo of each row; without it, a tile is all there is.
        """
        ...


class Wrapped:
    """An engine that does what another one does, under another description if one is given.

    Subclasses change a part of it.
    """

    def __init__(self, engine: Engine, spec: ModelSpec | None = None) -> None:
        self.engine = engine
        self.spec = engine.spec if spec is None else spec
        self.model = engine.model
        self.sha256 = engine.sha256
        self.precision = engine.precision

    def state(self, views: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Learn as `Engine.state`."""
        return self.engine.state(views)

    def logits(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """Compute as `Engine.logits`."""
        return self.engine.logits(inputs)


def mean_state(means: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
    """Return the state of a photo of whose views these are the means, (K, C) float32."""
    return {PHOTO_MEAN: means.mean(axis=0, keepdims=True, dtype=np.float64).astype(np.float32)}


class Opened:
    """What an engine of a file was opened with; pickled, it is this, and opens the file again.

    The embedded model and those of the catalogue travel by name, since each machine has them at a place of its own.
    Raises SpecError for an impossible number of threads or name of a device.
    """

    spec: ModelSpec
    sha256: str

    def __init__(self, path: Path, threads: int | None, device: str | None) -> None:
        if threads is not None and (not isinstance(threads, int) or isinstance(threads, bool) or threads < 1):
            raise SpecError(f"threads is {threads!r}; expected a whole number >= 1, or None for one for each core")
        if device is not None and not re.fullmatch(r"cpu|mps|(cuda|xpu)(:\d+)?", str(device)):
            raise SpecError(
                f"declip cannot use device {device!r}; expected 'cpu', 'cuda' (or 'cuda:1' …), or 'mps' or 'xpu' with "
                "torch"
            )
        self.model = path.stem
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


class Exported(Opened, ABC):
    """An engine of an .onnx file. Of a small network, threads compute a picture of a batch each."""

    def __init__(self, path: Path, threads: int | None, device: str | None) -> None:
        super().__init__(path, threads, device)
        content = onnx_bytes(path)
        digest = self.sha256 = hashlib.sha256(content).hexdigest()
        self._on_gpu = device not in (None, "cpu")
        self._count = threads or cores()
        self._pool: PerProcess[ThreadPoolExecutor] | None = None
        if len(content) < SMALL and not self._on_gpu:
            self._pool = PerProcess(partial(ThreadPoolExecutor, self._count, thread_name_prefix="declip-engine"))
        self._first = first = [content]

        def read() -> bytes:
            if first:
                return first.pop()
            again = onnx_bytes(path)
            if hashlib.sha256(again).hexdigest() != digest:
                raise WeightsError(f"{path} was replaced since it was opened; load it anew")
            return again

        # The file's bytes, as they are here already, or else (in a fork) from the same file.
        self._read = read

    def state(self, views: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """{"image": (K, 3, S, S) float32} → the mean of its tiles' means, if the model's statistics are the photo's."""
        return {} if self.spec.statistics == "tile" else mean_state(self._each(views, TILE_MEAN))

    def logits(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """{"image": (N, 3, S, S) float32} → (N, T, T) float32."""
        return self._each(inputs, "logits")

    def _each(self, inputs: Mapping[str, NDArray[Any]], output: str) -> NDArray[np.float32]:
        """Compute one of the network's outputs."""
        if self._pool is None:
            return self._run(inputs, output)
        singles = [{name: rows[i : i + 1] for name, rows in inputs.items()} for i in range(len(inputs["image"]))]
        # Going through threads costs a single one more than it gains.
        run = map if min(self._count, len(singles)) == 1 else self._pool().map
        return np.concatenate(list(run(lambda single: self._run(single, output), singles)))

    @abstractmethod
    def _run(self, inputs: Mapping[str, NDArray[Any]], output: str) -> NDArray[np.float32]:
        """Compute one of the network's outputs in the caller's thread."""
