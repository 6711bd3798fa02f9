"""Timing side by side, the machine it was done on, and the fastest that this machine multiplies matrices."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from linux import processor

from declip.engines.engines import in_torch_thread
from declip.nn.lean import has_bf16

__all__ = ["CORES", "PEAK_FLOP", "busy", "environment", "interleaved", "peak_contenders", "peaks", "spread"]

CORES = len(os.sched_getaffinity(0))
FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_int8")
PACKAGES = ("torch", "onnxruntime", "openvino", "timm", "numpy", "pillow")
# (rows, inner, columns): squares, and the products of ViT-L/14 at batch 4 (1,028 tokens).
SHAPES = ((1024, 1024, 1024), (2048, 2048, 2048), (4096, 4096, 4096), (1028, 1024, 4096), (1028, 4096, 1024))
# Of one timing, so that it lasts some tenths of a second; without instructions for bf16 it would be minutes.
PEAK_FLOP = {torch.float32: 6e10} | ({torch.bfloat16: 3e11} if has_bf16(torch.device("cpu")) else {})


def environment() -> dict[str, Any]:
    """The machine and what is installed on it."""
    words = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    fields = {line.partition(":")[0].strip(): line.partition(":")[2].strip() for line in words}
    return {
        "cpu": processor(),
        "cores": CORES,
        "threads": torch.get_num_threads(),
        "flags": [flag for flag in FLAGS if flag in fields.get("flags", "").split()],
        "load_before": [round(load, 2) for load in os.getloadavg()],
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "python": platform.python_version(),
        "system": platform.release(),
        "versions": dict(_versions()),
    }


def _versions() -> Iterable[tuple[str, str]]:
    for package in PACKAGES:
        try:
            yield package, importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            yield package, "not installed"


def busy(seconds: float = 2.0) -> float:
    """How many cores other work takes, while this process sleeps for some seconds. Linux only."""

    def ticks() -> tuple[int, int]:
        counts = [int(word) for word in Path("/proc/stat").read_text(encoding="utf-8").split("\n", 1)[0].split()[1:9]]
        return sum(counts) - counts[3] - counts[4], sum(counts)  # all but idle and waiting for the disk

    before = ticks()
    time.sleep(seconds)
    worked, passed = (after - now for after, now in zip(ticks(), before, strict=True))
    return round((os.cpu_count() or 1) * worked / max(1, passed), 2)


def interleaved(contenders: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Seconds of every contender, in turns A B C A B C …, so that a slow minute slows them all; one turn before that
    is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(repeats + 1):
        for name, work in contenders.items():
            time.sleep(0.02)  # threads of the one before that still spin go to sleep
            start = time.perf_counter()
            work()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def spread(values: Iterable[float], digits: int = 4) -> dict[str, float]:
    """Minimum, median and maximum."""
    found = sorted(values)
    picked = {"min": found[0], "median": statistics.median(found), "max": found[-1]}
    return {name: round(value, digits) for name, value in picked.items()}


def peak_contenders(dtypes: Iterable[torch.dtype] = tuple(PEAK_FLOP)) -> dict[str, Callable[[], object]]:
    """Matrix products for `interleaved`, by names that `peaks` reads."""
    found: dict[str, Callable[[], object]] = {}
    for dtype in dtypes:
        for shape in SHAPES:
            found[_peak_name(dtype, shape)] = _product(dtype, shape)
    return found


def _peak_name(dtype: torch.dtype, shape: tuple[int, int, int]) -> str:
    return f"peak {str(dtype).removeprefix('torch.')} {'×'.join(map(str, shape))}"


def _count(dtype: torch.dtype, shape: tuple[int, int, int]) -> int:
    """How many products one timing is of."""
    rows, inner, columns = shape
    return max(1, round(PEAK_FLOP[dtype] / (2 * rows * inner * columns)))


def _product(dtype: torch.dtype, shape: tuple[int, int, int]) -> Callable[[], object]:
    rows, inner, columns = shape

    def operands() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        left, right = torch.randn(rows, inner).to(dtype), torch.randn(inner, columns).to(dtype)
        return left, right, torch.empty(rows, columns, dtype=dtype)

    left, right, out = in_torch_thread(operands)

    def work() -> None:
        for _ in range(_count(dtype, shape)):
            torch.mm(left, right, out=out)

    return partial(in_torch_thread, work)


def peaks(seconds: Mapping[str, list[float]]) -> dict[str, Any]:
    """From the timings of `peak_contenders`, by type: GFLOP/s of the fastest shape in each turn (minimum, median,
    maximum over the turns), and the medians of all shapes."""
    found = {}
    for dtype in PEAK_FLOP:
        rates = {}
        for shape in SHAPES:
            flop = 2 * shape[0] * shape[1] * shape[2] * _count(dtype, shape)
            rates["×".join(map(str, shape))] = [flop / 1e9 / value for value in seconds[_peak_name(dtype, shape)]]
        best = [max(turn) for turn in zip(*rates.values(), strict=True)]
        found[str(dtype).removeprefix("torch.")] = {
            "gflops": spread(best, 1),
            "by_shape": {shape: round(statistics.median(values), 1) for shape, values in rates.items()},
        }
    return found
