"""ONNX Runtime: the engine of the light core."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from declip.engines.base import Exported
from declip.errors import SpecError, WeightsError
from declip.models import photo_mean
from declip.models.respec import spec_of
from declip.process import PerProcess, check_process
from declip.spec import ModelSpec, Precision

__all__ = ["OnnxEngine"]


class OnnxEngine(Exported):
    """An exported .onnx on ONNX Runtime; the ModelSpec travels in its metadata.

    threads: at work on a batch (None = one for each core). device: "cpu", "cuda" or "cuda:1" (the second GPU);
    None = the CPU. Raises SpecError where ONNX Runtime computes on something else than what was asked for.
    """

    precision: Precision = "exact"

    def __init__(self, path: Path, *, threads: int | None = None, device: str | None = None) -> None:
        super().__init__(path, threads, device)
        # Since 1.29 its builds send usage to its maker, unless they find this before anything else.
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
        import onnxruntime

        kind = (device or "cpu").partition(":")[0]
        if (
            kind not in ("cpu", "cuda")
            or f"{kind.upper()}ExecutionProvider" not in onnxruntime.get_available_providers()
        ):
            raise SpecError(
                f"this ONNX Runtime cannot use device {device!r}; expected 'cpu', or 'cuda' (or 'cuda:1' …) with "
                "onnxruntime-gpu"
            )
        threads = 1 if self._pool else self._count
        self._session = PerProcess(partial(_open, path, self._read, threads, device if self._on_gpu else None))
        session = self._session()
        self.spec: ModelSpec = spec_of(path, session.get_modelmeta().custom_metadata_map)
        if self.spec.statistics == "photo":
            photo_mean.check(path, {value.name for value in session.get_overridable_initializers()})

    def _run(self, inputs: Mapping[str, NDArray[Any]], output: str) -> NDArray[np.float32]:
        if self._on_gpu:
            check_process(self._process, f"{self.model} on the GPU")
        found: NDArray[np.float32]
        (found,) = self._session().run([output], dict(inputs))
        return found


def _open(path: Path, read: Callable[[], bytes], threads: int, device: str | None) -> Any:
    """Open an ONNX Runtime session, on the GPU `device` or else on the CPU, whose operators share `threads` threads.

    Raises WeightsError for a bad file, SpecError where the session is not on that device.
    """
    import onnxruntime

    content = read()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # its warnings are about graph clean-ups, not about results
    options.intra_op_num_threads = threads
    providers: list[Any] = ["CPUExecutionProvider"]
    if device is not None:
        # Without TF32, which GPUs take for fp32 otherwise and which has ten bits of it.
        number = int(device.partition(":")[2] or 0)
        providers.insert(0, ("CUDAExecutionProvider", {"device_id": number, "use_tf32": 0}))
    try:
        session = onnxruntime.InferenceSession(content, options, providers=providers)
    except Exception as error:  # onnxruntime's exceptions share no public base class
        if device is not None:
            raise SpecError(f"ONNX Runtime cannot use device {device!r} for {path}: {error}. {_CUDA_HELP}") from error
        raise WeightsError(f"{path} cannot be opened by ONNX Runtime: {error}") from error
    expected = "CPUExecutionProvider" if device is None else "CUDAExecutionProvider"
    found = session.get_providers()
    if found[:1] != [expected]:
        raise SpecError(
            f"ONNX Runtime was asked for device {device or 'cpu'!r} and fell back to {', '.join(found)}. {_CUDA_HELP}"
        )
    return session


_CUDA_HELP = (
    "Most often the libraries of CUDA or cuDNN are missing, or of another major version than this onnxruntime-gpu is "
    "built for, or there is no such GPU: install those libraries (pip install 'onnxruntime-gpu[cuda,cudnn]' brings "
    "them), or use device 'cpu'"
)
