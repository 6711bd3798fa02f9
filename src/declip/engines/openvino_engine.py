"""OpenVINO: the fast engine of exported models."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
from numpy.typing import NDArray

from declip.engines.base import NO_BF16, Exported
from declip.errors import MissingExtraError, SpecError, WeightsError
from declip.models import photo_mean, probe
from declip.models.respec import parse_onnx, spec_of
from declip.process import PerProcess
from declip.spec import PROBE_KEY, ModelSpec, Precision

__all__ = ["OpenVinoEngine"]

_log = logging.getLogger(__name__)
# Most that two exact engines' logits differ by, as `export` checks it.
EXACT = 1e-4


class OpenVinoEngine(Exported):
    """An exported .onnx on OpenVINO, in bf16 where the CPU has it and else in fp32: what "fast" means for .onnx.

    In fp32 it is an exact engine, and `precision` says so, where its answer to the probe is ONNX Runtime's up to 1e-4.
    threads: at work on a batch (None = one for each core). Raises MissingExtraError without OpenVINO, SpecError where
    it does not pass the probe.
    """

    def __init__(self, path: Path, *, threads: int | None = None, device: str | None = None) -> None:
        super().__init__(path, threads, device)
        self._wish = "fast"
        if self._on_gpu:
            raise SpecError(f"the fast engine of .onnx files runs on the CPU; got device {device!r}")
        if "openvino" not in sys.modules:
            # Importing it sends its maker a message, unless it finds nothing to send it with.
            sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
        try:
            import openvino
        except ModuleNotFoundError as error:
            raise MissingExtraError("openvino", "openvino") from error
        model = parse_onnx(path, self._first[0])
        metadata = {entry.key: entry.value for entry in model.metadata_props}
        self.spec: ModelSpec = spec_of(path, metadata)
        # It knows no inputs that may be left out.
        self._default: dict[str, NDArray[np.float32]] = {}
        if self.spec.statistics == "photo":
            photo_mean.check(path, {value.name for value in model.graph.input})
            self._default[photo_mean.PHOTO_MEAN] = np.full((1, photo_mean.required(model)), np.nan, np.float32)
        if PROBE_KEY not in metadata:
            raise WeightsError(f"{path} has no probe to prove a fast engine on; make it anew with `declip export`")
        lower = "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        if not lower:
            _log.warning(NO_BF16, self.model)
        config = {
            "INFERENCE_PRECISION_HINT": "bf16" if lower else "f32",
            "INFERENCE_NUM_THREADS": self._count,
            "NUM_STREAMS": self._count if self._pool else 1,
        }
        self._requests = PerProcess(partial(_open, path, self._read, self.spec, bool(self._pool), config))
        expected = probe.unpack(metadata[PROBE_KEY])
        found = self.logits({"image": probe.picture(self.spec)})
        probe.check(self.spec, expected, found, what=f"OpenVINO's {path.name}")
        exact = not lower and probe.distance(expected, found) <= EXACT
        self.precision: Precision = "exact" if exact else "fast"

    def _run(self, inputs: Mapping[str, NDArray[Any]], output: str) -> NDArray[np.float32]:
        requests = self._requests()
        request = requests.get()
        try:
            return np.array(request.infer(self._default | dict(inputs))[output], np.float32)
        finally:
            requests.put(request)


def _open(
    path: Path, read: Callable[[], bytes], spec: ModelSpec, single: bool, config: dict[str, Any]
) -> SimpleQueue[Any]:
    """Compile a model for this process; return its requests, one per stream. single: it is given one input at a time.

    Raises WeightsError for a bad file.
    """
    import openvino

    core = openvino.Core()
    content, width = read(), 0
    if spec.statistics == "photo":
        parsed = parse_onnx(path, content)
        width = photo_mean.required(parsed)
        content = parsed.SerializeToString()
    try:
        model = core.read_model(content)
    except RuntimeError as error:
        raise WeightsError(f"{path} cannot be opened by OpenVINO: {error}") from error
    if single:  # it computes known shapes faster
        shapes = {"image": [1, 3, spec.input_size, spec.input_size]}
        model.reshape(shapes | ({photo_mean.PHOTO_MEAN: [1, width]} if width else {}))
    compiled = core.compile_model(model, "CPU", config)
    requests: SimpleQueue[Any] = SimpleQueue()
    for _ in range(config["NUM_STREAMS"]):
        requests.put(compiled.create_infer_request())
    return requests
