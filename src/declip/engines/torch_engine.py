"""Torch: the engine of checkpoints, exact and fast, on the CPU and on GPUs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from declip.engines.base import NO_BF16, Opened, mean_state
from declip.errors import SpecError, naming_extras
from declip.files import sha256_of
from declip.models import probe
from declip.process import PerProcess, check_process, cores, cpu_quota
from declip.spec import Precision

if TYPE_CHECKING:
    from declip.nn.model import Network

__all__ = ["TorchEngine", "in_torch_thread"]

T = TypeVar("T")
_log = logging.getLogger(__name__)


def in_torch_thread(job: Callable[[], T]) -> T:
    """Return or raise what a job on torch does; all of a process are done one after the other by the same thread.

    OpenMP keeps a team of threads for each thread that computes. Of more threads than cores, those of GNU's library
    soon fall asleep between operators (`GOMP_SPINCOUNT`), and waking them made RN50 1.1 to 1.4 times as slow on two
    cores. The job has as many threads as torch would use in the caller's. Not to be called from a job.
    """
    import torch

    count = torch.get_num_threads()  # torch's setting is of each thread

    def run() -> T:
        if torch.get_num_threads() != count:
            torch.set_num_threads(count)
        return job()

    return _torch_thread().submit(run).result()


_torch_thread = PerProcess(partial(ThreadPoolExecutor, 1, thread_name_prefix="declip-torch"))


class TorchEngine(Opened):
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
            with naming_extras():
                import torch

                from declip.models import checkpoint
                from declip.nn import backbones, cpu, devices
                from declip.nn.model import DeclipNet
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
        self._means: Callable[..., Any] | None = None
        if isinstance(net, DeclipNet) and self.spec.statistics == "photo":
            self._means = net.means
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
        expected = probe.unpack(probe.pack(self._run(self._net, inputs)))
        if self.spec.traits.has_decoder:
            cpu.fold(net, cpu.watch(net, self._torch.from_numpy(inputs["image"]).to(self._device)))
        self._net = cpu.use_bf16(net, compiled=self._device.type == "cuda")
        self.precision = "fast"
        probe.check(self.spec, expected, self._run(self._net, inputs), what=f"{self.model} in bf16 on {self._device}")

    def state(self, views: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """{"image": (K, 3, S, S) float32} → the mean of its tiles' means, if the model's statistics are the photo's."""
        means = self._means
        return {} if means is None else mean_state(self._here(lambda: self._run(means, views)))

    def logits(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """{"image": (N, 3, S, S) float32} → (N, T, T) float32; CAT-Net: "coefficients" and "table", too."""
        return self._here(lambda: self._run(self._net, inputs))

    def _here(self, job: Callable[[], T]) -> T:
        """Return what a job on the network does, in the thread and process where it may."""
        if self._device.type == "cpu":
            return in_torch_thread(job)
        check_process(self._process, f"{self.model} on {self._device}")
        return job()

    def _run(self, part: Callable[..., Any], inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """Return what the network, or a part of it, gives for its inputs."""
        torch, fast = self._torch, self.precision == "fast"
        with torch.inference_mode(), self._exact(), torch.autocast(self._device.type, torch.bfloat16, enabled=fast):
            tensors = {k: torch.from_numpy(np.ascontiguousarray(v)).to(self._device) for k, v in inputs.items()}
            found: NDArray[np.float32] = part(**tensors).float().cpu().numpy()
        return found
