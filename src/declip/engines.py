"""Engines: normalised pictures → logits, by ONNX Runtime (the light core), OpenVINO or torch.

`open_engine` picks by the file's suffix and the precision. All are thread-safe. The exact ones compute in fp32 and give
the same numbers (export is checked to 1e-4); the fast ones are as exact as their proof says (`declip.probes`).
`with_spec` writes a weight file anew with another description, its weights untouched.
"""

from __future__ import annotations

import hashlib
import logging
import os
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from queue import SimpleQueue
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from declip import probes
from declip.errors import DeclipError, MissingExtraError, SpecError, WeightsError
from declip.files import write_atomic
from declip.types import Engine, ModelSpec, Precision
from declip.weights import sha256_of

if TYPE_CHECKING:
    from declip.nn.model import Network

__all__ = [
    "OnnxEngine",
    "OpenVinoEngine",
    "TorchEngine",
    "Wrapped",
    "check_target",
    "cores",
    "in_torch_thread",
    "open_engine",
    "with_spec",
]

T = TypeVar("T")

_log = logging.getLogger(__name__)
NO_BF16 = "this processor has no instructions for bf16: precision 'fast' computes %s in fp32"

# Of an ONNX file's metadata: the ModelSpec, and the exact answer to the probe.
SPEC_KEY = "declip"
PROBE_KEY = "declip-probe"

# Bytes of a network that is small: its operators are over before a thread is woken, so that each thread computes a
# picture of its own; a large one shares each operator out among them.
SMALL = 64 << 20


class Wrapped:
    """An engine that does what another one does; subclasses change a part of it."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    @property
    def spec(self) -> ModelSpec:
        """The other's."""
        return self.engine.spec

    @property
    def model(self) -> str:
        """The other's."""
        return self.engine.model

    @property
    def sha256(self) -> str:
        """The other's."""
        return self.engine.sha256

    def logits(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """As `Engine.logits`."""
        return self.engine.logits(inputs)


class _Pool:
    """Threads that each compute a picture of a batch."""

    def __init__(self, threads: int | None) -> None:
        self.count = threads or cores()
        self._threads = ThreadPoolExecutor(self.count, thread_name_prefix="declip-engine")

    def run(
        self, run: Callable[[Mapping[str, NDArray[Any]]], NDArray[np.float32]], inputs: Mapping[str, NDArray[Any]]
    ) -> NDArray[np.float32]:
        """The logits of a batch, from those of its pictures."""
        singles = [{name: rows[i : i + 1] for name, rows in inputs.items()} for i in range(len(inputs["image"]))]
        # Going through threads costs a single one more than it gains.
        found = map(run, singles) if min(self.count, len(singles)) == 1 else self._threads.map(run, singles)
        return np.concatenate(list(found))


class OnnxEngine:
    """An exported .onnx on ONNX Runtime; the ModelSpec travels in its metadata.

    threads: at work on a batch (None = one for each core). device: "cpu" or "cuda"; None = the CPU.
    """

    def __init__(self, path: Path, *, threads: int | None = None, device: str | None = None) -> None:
        # Since 1.29 its builds send usage to its maker, unless they find this before anything else.
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
        import onnxruntime

        provider = {None: "CPUExecutionProvider", "cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
        if provider.get(device) not in onnxruntime.get_available_providers():
            raise SpecError(
                f"this ONNX Runtime cannot use device {device!r}; expected 'cpu', or 'cuda' with onnxruntime-gpu"
            )
        content = _onnx_bytes(path)
        self._pool = _Pool(threads) if device in (None, "cpu") and len(content) < SMALL else None
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # its warnings are about graph clean-ups, not about results
        options.intra_op_num_threads = 1 if self._pool else threads or 0
        try:
            self._session = onnxruntime.InferenceSession(
                content, options, providers=list(dict.fromkeys((provider[device], "CPUExecutionProvider")))
            )
        except Exception as error:  # onnxruntime's exceptions share no public base class
            raise WeightsError(f"{path} cannot be opened by ONNX Runtime: {error}") from error
        self.spec: ModelSpec = _spec_of(path, self._session.get_modelmeta().custom_metadata_map)
        self.model = path.stem
        self.sha256 = hashlib.sha256(content).hexdigest()

    def logits(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """{"image": (N, 3, S, S) float32} → (N, T, T) float32; CAT-Net: "coefficients" and "table", too."""
        return self._pool.run(self._run, inputs) if self._pool else self._run(inputs)

    def _run(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        logits: NDArray[np.float32]
        (logits,) = self._session.run(["logits"], dict(inputs))
        return logits


class OpenVinoEngine:
    """An exported .onnx on OpenVINO, in bf16 where the CPU has it and else in fp32: what "fast" means for .onnx.

    threads: at work on a batch (None = one for each core). Raises MissingExtraError without OpenVINO, SpecError where
    it does not pass the probe.
    """

    def __init__(self, path: Path, *, threads: int | None = None, device: str | None = None) -> None:
        import onnx

        if device not in (None, "cpu"):
            raise SpecError(f"the fast engine of .onnx files runs on the CPU; got device {device!r}")
        if "openvino" not in sys.modules:
            # Importing it sends its maker a message, unless it finds nothing to send it with.
            sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
        try:
            import openvino
        except ModuleNotFoundError as error:
            raise MissingExtraError("openvino", "openvino") from error
        content = _onnx_bytes(path)
        try:
            metadata = {entry.key: entry.value for entry in onnx.load_model_from_string(content).metadata_props}
        except Exception as error:  # protobuf's own, of a package that declip does not name
            raise WeightsError(f"{path} cannot be read as ONNX: {error}") from error
        self.spec: ModelSpec = _spec_of(path, metadata)
        if PROBE_KEY not in metadata:
            raise WeightsError(f"{path} has no probe to prove a fast engine on; make it anew with `declip export`")
        self.model = path.stem
        self.sha256 = hashlib.sha256(content).hexdigest()
        core = openvino.Core()
        try:
            model = core.read_model(content)
        except RuntimeError as error:
            raise WeightsError(f"{path} cannot be opened by OpenVINO: {error}") from error
        self._pool = _Pool(threads) if len(content) < SMALL else None
        streams = self._pool.count if self._pool else 1
        if self._pool:
            side = self.spec.input_size
            model.reshape({"image": [1, 3, side, side]})  # it computes known shapes faster
        lower = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        if not lower:
            _log.warning(NO_BF16, self.model)
        config = {
            "INFERENCE_PRECISION_HINT": "bf16" if lower else "f32",
            "INFERENCE_NUM_THREADS": threads or cores(),
            "NUM_STREAMS": streams,
        }
        compiled = core.compile_model(model, "CPU", config)
        self._requests: SimpleQueue[Any] = SimpleQueue()
        for _ in range(streams):
            self._requests.put(compiled.create_infer_request())
        found = self.logits({"image": probes.picture(self.spec)})
        probes.check(self.spec, probes.unpack(metadata[PROBE_KEY]), found, what=f"OpenVINO's {path.name}")

    def logits(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """{"image": (N, 3, S, S) float32} → (N, T, T) float32."""
        return self._pool.run(self._run, inputs) if self._pool else self._run(inputs)

    def _run(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        request = self._requests.get()
        try:
            return np.array(request.infer(dict(inputs))["logits"], np.float32)
        finally:
            self._requests.put(request)


def in_torch_thread(job: Callable[[], T]) -> T:
    """What a job on torch returns or raises; all of a process are done one after the other by the same thread.

    OpenMP keeps a team of threads for each thread that computes. Once the teams together have more threads than there
    are cores, those of GNU's library soon fall asleep where they wait for the next operator (`GOMP_SPINCOUNT` in its
    manual), and each operator has to wake them: RN50 then took 1.1 to 1.4 times as long on two cores. The job has as
    many threads as torch would use in the caller's. Not to be called from a job.
    """
    import torch

    count = torch.get_num_threads()  # torch's setting is of each thread

    def run() -> T:
        if torch.get_num_threads() != count:
            torch.set_num_threads(count)
        return job()

    return _torch_thread(os.getpid()).submit(run).result()


@cache
def _torch_thread(process: int) -> ThreadPoolExecutor:
    """The thread of a process: a fork has none of its parent's."""
    return ThreadPoolExecutor(1, thread_name_prefix="declip-torch")


class TorchEngine:
    """A .safetensors checkpoint on torch; on the CPU, it computes in the thread of `in_torch_thread`.

    device: "cpu", "cuda", "cuda:1", "mps"…; None = CUDA where there is one, else the CPU. threads is torch's own
    setting, which is global to the process; None leaves it. precision: "exact" is fp32; "fast" is bf16, of DeCLIP's own
    networks and Patch Forensics, compiled on CUDA; a CPU without bf16 computes in fp32, and the log says so. offline:
    never download a backbone's weights.
    """

    def __init__(
        self,
        path: Path,
        *,
        threads: int | None = None,
        device: str | None = None,
        precision: Precision = "exact",
        offline: bool = False,
    ) -> None:
        with ThreadPoolExecutor(1) as pool:
            digest = pool.submit(sha256_of, path)  # seconds for a gigabyte, while torch is imported
            try:
                import torch

                from declip.nn import backbones, checkpoint, lean, winograd
            except ModuleNotFoundError as error:
                if missing := MissingExtraError.behind(error):
                    raise missing from error
                raise
            if threads is not None:
                torch.set_num_threads(threads)
            self._torch = torch
            self._exact = backbones.exact
            net, self.spec = in_torch_thread(lambda: checkpoint.load(path, offline=offline))
            self.sha256 = digest.result()
        try:
            self._device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
            self._net: Callable[..., Any] = net.to(self._device).eval()
        except (RuntimeError, AssertionError) as error:  # an unknown word, or a device this machine or torch lacks
            raise SpecError(f"torch cannot use device {device!r}: {error}") from error
        self.model = path.stem
        self._precision: Precision = "exact"
        if precision == "fast" and self.spec.architecture not in ("declip", "patch-forensics"):
            raise SpecError(f"{self.spec.architecture} has no fast engine; use precision 'exact'")
        if precision == "fast" and not lean.has_bf16(self._device):
            _log.warning(NO_BF16, self.model)
            precision = "exact"
        if precision == "fast":
            in_torch_thread(lambda: self._quicken(net, lean))
        elif self.spec.architecture == "declip":
            in_torch_thread(lambda: self._fold(net, lean, winograd))

    def _fold(self, net: Network, lean: ModuleType, winograd: ModuleType) -> None:
        calls = lean.watch(net, self._torch.from_numpy(probes.picture(self.spec)).to(self._device))
        lean.fold(net, calls)
        if self._device.type == "cpu":
            lean.narrow(net)
            winograd.quicken(net, calls)

    def _quicken(self, net: Network, lean: ModuleType) -> None:
        probe = {"image": probes.picture(self.spec)}
        expected = probes.unpack(probes.pack(self._logits(probe)))
        if self.spec.architecture == "declip":
            lean.fold(net, lean.watch(net, self._torch.from_numpy(probe["image"]).to(self._device)))
        self._net = lean.quicken(net, compiled=self._device.type == "cuda")
        self._precision = "fast"
        probes.check(self.spec, expected, self._logits(probe), what=f"{self.model} in bf16 on {self._device}")

    def logits(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """{"image": (N, 3, S, S) float32} → (N, T, T) float32; CAT-Net: "coefficients" and "table", too."""
        return in_torch_thread(lambda: self._logits(inputs)) if self._device.type == "cpu" else self._logits(inputs)

    def _logits(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        torch, fast = self._torch, self._precision == "fast"
        with torch.inference_mode(), self._exact(), torch.autocast(self._device.type, torch.bfloat16, enabled=fast):
            tensors = {k: torch.from_numpy(np.ascontiguousarray(v)).to(self._device) for k, v in inputs.items()}
            logits: NDArray[np.float32] = self._net(**tensors).float().cpu().numpy()
        return logits


def open_engine(
    path: str | Path,
    *,
    threads: int | None = None,
    device: str | None = None,
    precision: Precision = "exact",
    offline: bool = False,
) -> Engine:
    """Open a weight file: .onnx with ONNX Runtime, or OpenVINO where precision is "fast"; .safetensors with torch.

    Raises WeightsError for another suffix or a bad file, MissingExtraError if torch or OpenVINO is needed and absent,
    SpecError for a device that cannot be had, or a fast engine that is not exact enough here.
    """
    path = Path(path)
    match path.suffix.lower():
        case ".onnx" if precision == "fast":
            return OpenVinoEngine(path, threads=threads, device=device)
        case ".onnx":
            return OnnxEngine(path, threads=threads, device=device)
        case ".safetensors":
            return TorchEngine(path, threads=threads, device=device, precision=precision, offline=offline)
        case ".pth" | ".pt":
            raise WeightsError(f"{path} is a pickle; turn it into .safetensors with `declip convert {path} --out …`")
    raise WeightsError(f"{path}: expected a .onnx or .safetensors file")


def with_spec(path: str | Path, spec: ModelSpec, out: str | Path, *, force: bool = False) -> Path:
    """Write a weight file anew with another ModelSpec; every tensor stays as it is, and no network is built.

    path: a .onnx or .safetensors. out: of the same suffix, not there yet unless force; it appears whole or not at all.
    Returns out. Raises as `check_target`, WeightsError for a bad file, MissingExtraError where .safetensors needs
    torch and it is absent.
    """
    path, out = Path(path), Path(out)
    check_target(path, out, force=force)
    if path.suffix.lower() == ".onnx":
        return _onnx_with_spec(path, spec, out)
    try:
        from declip.nn import checkpoint
    except ModuleNotFoundError as error:
        if missing := MissingExtraError.behind(error):
            raise missing from error
        raise
    return checkpoint.with_spec(path, spec, out)


def _onnx_bytes(path: Path) -> bytes:
    if not path.is_file():
        raise WeightsError(f"no ONNX file at {path}")
    return path.read_bytes()


def _spec_of(path: Path, metadata: Mapping[str, str]) -> ModelSpec:
    if SPEC_KEY not in metadata:
        raise WeightsError(f"{path} has no declip model description; make it with `declip export`")
    try:
        return ModelSpec.from_json(metadata[SPEC_KEY])
    except SpecError as error:
        raise WeightsError(f"{path}: {error}") from error


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_target(path: str | Path, out: str | Path, *, force: bool = False) -> None:
    """Whether `with_spec` can write out from path: to be asked before hours of computing.

    Raises WeightsError for a path that is neither .onnx nor .safetensors, or an out of another suffix; DeclipError if
    out exists, unless force.
    """
    path, out = Path(path), Path(out)
    if path.suffix.lower() not in (".onnx", ".safetensors"):
        raise WeightsError(f"{path}: expected a .onnx or .safetensors file")
    if out.suffix.lower() != path.suffix.lower():
        raise WeightsError(
            f"{out} cannot hold the weights of {path}: expected a name that ends in {path.suffix.lower()} "
            "(`declip export` turns .safetensors into .onnx)"
        )
    if out.is_dir():
        raise DeclipError(f"{out} is a folder; expected a file to write")
    if out.exists() and not force:
        raise DeclipError(f"{out} exists; --force (force=True) overwrites it")


def _onnx_with_spec(path: Path, spec: ModelSpec, out: Path) -> Path:
    import onnx

    content = _onnx_bytes(path)
    try:
        model = onnx.load_model_from_string(content)
    except Exception as error:  # protobuf's own, of a package that declip does not name
        raise WeightsError(f"{path} cannot be read as ONNX: {error}") from error
    entry = next((entry for entry in model.metadata_props if entry.key == SPEC_KEY), None)
    if entry is None:
        raise WeightsError(f"{path} has no declip model description; make it with `declip export`")
    entry.value = spec.to_json()
    write_atomic(out, model.SerializeToString())
    return out
