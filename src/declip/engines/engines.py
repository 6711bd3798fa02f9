"""Engines: normalised pictures → logits, by ONNX Runtime (the light core), OpenVINO or torch.

`open_engine` picks by the file's suffix and the precision. All are thread-safe. The exact ones compute in fp32 and give
the same numbers (export is checked to 1e-4); the fast ones are as exact as their proof says (`declip.models.probe`).
`with_spec` writes a weight file anew with another description, its weights untouched.

An engine works on in a fork of its process, and travels to other processes (pickle) as the file it was opened from:
what holds threads is made anew there. On a GPU a fork cannot go on, and is told so.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import os
import re
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from declip.errors import DeclipError, MissingExtraError, SpecError, WeightsError
from declip.files import sha256_of, write_atomic
from declip.models import catalog, probe, resolve
from declip.process import PerProcess, check_process, cores, cpu_quota
from declip.results import Engine
from declip.spec import PROBE_KEY, SPEC_KEY, ModelSpec, Precision, check_choice

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
    "model_file",
    "open_engine",
    "with_spec",
]

T = TypeVar("T")

_log = logging.getLogger(__name__)
NO_BF16 = "this processor has no instructions for bf16: precision 'fast' computes %s in fp32"

# Bytes of a network that is small: its operators are over before a thread is woken, so that each thread computes a
# picture of its own; a large one shares each operator out among them.
SMALL = 64 << 20

# Most that two exact engines' logits differ by, as `export` checks it.
EXACT = 1e-4


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

    @property
    def precision(self) -> Precision:
        """The other's."""
        return self.engine.precision

    def logits(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """As `Engine.logits`."""
        return self.engine.logits(inputs)


class _Pool:
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


class _Opened:
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
        source = _portable(self._path)
        return _open_again, (source, self.sha256, self._threads, self._device_asked, self._wish, self._offline)


class OnnxEngine(_Opened):
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

        self._on_gpu = device not in (None, "cpu")
        provider = "CUDAExecutionProvider" if self._on_gpu else "CPUExecutionProvider"
        if (device or "cpu").partition(":")[0] not in ("cpu", "cuda") or (
            provider not in onnxruntime.get_available_providers()
        ):
            raise SpecError(
                f"this ONNX Runtime cannot use device {device!r}; expected 'cpu', or 'cuda' (or 'cuda:1' …) with "
                "onnxruntime-gpu"
            )
        content = _onnx_bytes(path)
        self.model = path.stem
        self.sha256 = hashlib.sha256(content).hexdigest()
        self._pool = _Pool(threads) if not self._on_gpu and len(content) < SMALL else None
        count = 1 if self._pool else threads or cores()
        session = _onnx_session(path, content, count, device if self._on_gpu else None)
        self.spec: ModelSpec = _spec_of(path, session.get_modelmeta().custom_metadata_map)
        first, digest = [session], self.sha256  # the process that opened the file has its session already

        def own() -> Any:
            return first.pop() if first else _onnx_session(path, _same_bytes(path, digest), count, None)

        self._own = PerProcess(own)
        self._own()

    @property
    def _session(self) -> Any:
        """ONNX Runtime's, of this process."""
        if self._on_gpu:
            check_process(self._process, f"{self.model} on the GPU")
        return self._own()

    def logits(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """{"image": (N, 3, S, S) float32} → (N, T, T) float32; CAT-Net: "coefficients" and "table", too."""
        return self._pool.run(self._run, inputs) if self._pool else self._run(inputs)

    def _run(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        logits: NDArray[np.float32]
        (logits,) = self._session.run(["logits"], dict(inputs))
        return logits


def _onnx_session(path: Path, content: bytes, threads: int, device: str | None) -> Any:
    """Open an ONNX Runtime session, on the GPU `device` or else on the CPU, whose operators share `threads` threads.

    Raises WeightsError for a bad file, SpecError where the session is not on that device.
    """
    import onnxruntime

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


class OpenVinoEngine(_Opened):
    """An exported .onnx on OpenVINO, in bf16 where the CPU has it and else in fp32: what "fast" means for .onnx.

    In fp32 it is an exact engine, and `precision` says so, where its answer to the probe is ONNX Runtime's up to 1e-4.
    threads: at work on a batch (None = one for each core). Raises MissingExtraError without OpenVINO, SpecError where
    it does not pass the probe.
    """

    def __init__(self, path: Path, *, threads: int | None = None, device: str | None = None) -> None:
        super().__init__(path, threads, device)
        import onnx

        self._wish = "fast"
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
        self.sha256 = digest = hashlib.sha256(content).hexdigest()
        self._pool = _Pool(threads) if len(content) < SMALL else None
        lower = "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        if not lower:
            _log.warning(NO_BF16, self.model)
        config = {
            "INFERENCE_PRECISION_HINT": "bf16" if lower else "f32",
            "INFERENCE_NUM_THREADS": threads or cores(),
            "NUM_STREAMS": self._pool.count if self._pool else 1,
        }
        side = self.spec.input_size if self._pool else None
        first = [content]  # the process that opened the file has its bytes already

        def own() -> SimpleQueue[Any]:
            return _openvino_requests(path, first.pop() if first else _same_bytes(path, digest), side, config)

        self._requests = PerProcess(own)
        expected = probe.unpack(metadata[PROBE_KEY])
        found = self.logits({"image": probe.picture(self.spec)})
        probe.check(self.spec, expected, found, what=f"OpenVINO's {path.name}")
        exact = not lower and probe.distance(expected, found) <= EXACT
        self.precision: Precision = "exact" if exact else "fast"

    def logits(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """{"image": (N, 3, S, S) float32} → (N, T, T) float32."""
        return self._pool.run(self._run, inputs) if self._pool else self._run(inputs)

    def _run(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        requests = self._requests()
        request = requests.get()
        try:
            return np.array(request.infer(dict(inputs))["logits"], np.float32)
        finally:
            requests.put(request)


def _openvino_requests(path: Path, content: bytes, side: int | None, config: dict[str, Any]) -> SimpleQueue[Any]:
    """Compile a model for this process; return its requests, one per stream. side: of its inputs, one at a time, px;
    None = as the file has them. Raises WeightsError for a bad file."""
    import openvino

    core = openvino.Core()
    try:
        model = core.read_model(content)
    except RuntimeError as error:
        raise WeightsError(f"{path} cannot be opened by OpenVINO: {error}") from error
    if side is not None:
        model.reshape({"image": [1, 3, side, side]})  # it computes known shapes faster
    compiled = core.compile_model(model, "CPU", config)
    requests: SimpleQueue[Any] = SimpleQueue()
    for _ in range(config["NUM_STREAMS"]):
        requests.put(compiled.create_infer_request())
    return requests


def in_torch_thread(job: Callable[[], T]) -> T:
    """Return or raise what a job on torch does; all of a process are done one after the other by the same thread.

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

    return _torch_thread().submit(run).result()


_torch_thread = PerProcess(partial(ThreadPoolExecutor, 1, thread_name_prefix="declip-torch"))


class TorchEngine(_Opened):
    """A .safetensors checkpoint on torch; on the CPU, it computes in the thread of `in_torch_thread`.

    device: "cpu", "cuda", "cuda:1", "mps"…; None = CUDA where there is one, else the CPU. threads is torch's own
    setting, which is global to the process; None leaves it, unless the quota of the container is less. precision:
    "exact" is fp32; "fast" is bf16, of DeCLIP's own networks and Patch Forensics, compiled on CUDA; a CPU without bf16
    computes in fp32, and the log and the attribute `precision` say so. offline: never download a backbone's weights.
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
        super().__init__(path, threads, device)
        self._wish, self._offline = precision, offline
        with ThreadPoolExecutor(1) as pool:
            digest = pool.submit(sha256_of, path)  # seconds for a gigabyte, while torch is imported
            try:
                import torch

                from declip.models import checkpoint
                from declip.nn import backbones, cpu, devices
            except ModuleNotFoundError as error:
                if missing := MissingExtraError.behind(error):
                    raise missing from error
                raise
            if threads is None and cpu_quota() is not None and cores() < torch.get_num_threads():
                threads = cores()  # torch counts the machine's
            if threads is not None:
                torch.set_num_threads(threads)
            self._torch = torch
            self._exact = backbones.exact
            self._device = devices.usable(device or ("cuda" if torch.cuda.is_available() else "cpu"))
            net, self.spec = in_torch_thread(lambda: checkpoint.load(path, offline=offline))
            self.sha256 = digest.result()
        self._net: Callable[..., Any] = net.to(self._device).eval()
        self.model = path.stem
        self.precision: Precision = "exact"
        if precision == "fast" and not self.spec.traits.has_fast_engine:
            raise SpecError(f"{self.spec.architecture} has no fast engine; use precision 'exact'")
        if precision == "fast" and not devices.has_bf16(self._device):
            _log.warning(NO_BF16, self.model)
            precision = "exact"
        if precision == "fast":
            in_torch_thread(lambda: self._quicken(net, cpu))
        elif self.spec.traits.has_decoder:
            picture = torch.from_numpy(probe.picture(self.spec)).to(self._device)
            in_torch_thread(lambda: cpu.speed_up(net, picture))

    def _quicken(self, net: Network, cpu: ModuleType) -> None:
        inputs = {"image": probe.picture(self.spec)}
        expected = probe.unpack(probe.pack(self._logits(inputs)))
        if self.spec.traits.has_decoder:
            cpu.fold(net, cpu.watch(net, self._torch.from_numpy(inputs["image"]).to(self._device)))
        self._net = cpu.use_bf16(net, compiled=self._device.type == "cuda")
        self.precision = "fast"
        probe.check(self.spec, expected, self._logits(inputs), what=f"{self.model} in bf16 on {self._device}")

    def logits(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """{"image": (N, 3, S, S) float32} → (N, T, T) float32; CAT-Net: "coefficients" and "table", too."""
        if self._device.type == "cpu":
            return in_torch_thread(lambda: self._logits(inputs))
        check_process(self._process, f"{self.model} on {self._device}")
        return self._logits(inputs)

    def _logits(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        torch, fast = self._torch, self.precision == "fast"
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
    check_choice(precision, Precision, "precision")
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


def model_file(model: str | Path | None = None, *, offline: bool = False) -> Path:
    """Return the file that `load` opens: of the embedded model (None), of a name of `declip.models.catalog`, or a path.

    An official checkpoint is downloaded, and converted to .safetensors beside it; not where torch, which it needs, is
    missing. Raises as `load` does.
    """
    if model is None:
        return resolve.embedded_path()
    if resolve.is_fetched(model):
        _need_torch()  # rather than after hundreds of megabytes
    path = resolve.resolve(model, offline=offline)
    return _converted(path) if path.suffix == ".pth" and path.parent == resolve.cache_dir() else path


def _need_torch() -> None:
    for package in ("torch", "timm", "safetensors"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(package, "torch")


def _converted(path: Path) -> Path:
    """Return an official .pth of the cache as the .safetensors beside it, converted once."""
    out = path.with_suffix(".safetensors")
    if not out.exists():
        try:
            from declip.models import official
        except ModuleNotFoundError as error:
            if missing := MissingExtraError.behind(error):
                raise missing from error
            raise
        official.convert(path, out)
    return out


def _portable(path: Path) -> str | Path:
    """How another process, or another machine, finds a weight file: as `model_file` takes it."""
    for card in catalog.MODELS:
        if path == resolve.cached(card):
            return card.name
    return path.absolute()


def _open_again(
    source: str | Path,
    sha256: str,
    threads: int | None,
    device: str | None,
    precision: Precision,
    offline: bool,
) -> Engine:
    """Open the pickled engine in this process. Raises as `open_engine`, WeightsError if the weights are others."""
    path = model_file(source, offline=offline)
    engine = open_engine(path, threads=threads, device=device, precision=precision, offline=offline)
    if engine.sha256 != sha256:
        raise WeightsError(f"{path} has SHA-256 {engine.sha256}; what was pickled has {sha256}")
    return engine


def _check_threads(threads: object) -> None:
    if threads is not None and (not isinstance(threads, int) or isinstance(threads, bool) or threads < 1):
        raise SpecError(f"threads is {threads!r}; expected a whole number >= 1, or None for one for each core")


def _check_device(device: object) -> None:
    if device is not None and not (isinstance(device, str) and re.fullmatch(r"cpu|mps|(cuda|xpu)(:\d+)?", device)):
        raise SpecError(
            f"declip cannot use device {device!r}; expected 'cpu', 'cuda' (or 'cuda:1' …), or 'mps' or 'xpu' with torch"
        )


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
        from declip.models import checkpoint
    except ModuleNotFoundError as error:
        if missing := MissingExtraError.behind(error):
            raise missing from error
        raise
    return checkpoint.with_spec(path, spec, out)


def _onnx_bytes(path: Path) -> bytes:
    if not path.is_file():
        raise WeightsError(f"no ONNX file at {path}")
    return path.read_bytes()


def _same_bytes(path: Path, sha256: str) -> bytes:
    """Those of a file that was opened before. Raises WeightsError if it is another one by now."""
    content = _onnx_bytes(path)
    if hashlib.sha256(content).hexdigest() != sha256:
        raise WeightsError(f"{path} was replaced since it was opened; load it anew")
    return content


def _spec_of(path: Path, metadata: Mapping[str, str]) -> ModelSpec:
    if SPEC_KEY not in metadata:
        raise WeightsError(f"{path} has no declip model description; make it with `declip export`")
    try:
        return ModelSpec.from_json(metadata[SPEC_KEY])
    except SpecError as error:
        raise WeightsError(f"{path}: {error}") from error


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
