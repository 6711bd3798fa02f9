"""Memory of this process. Linux only."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

__all__ = ["resident_megabytes"]


def resident_megabytes(field: Literal["VmRSS", "VmHWM"] = "VmRSS") -> float:
    """Resident memory in MB, now or ("VmHWM") the highest so far."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return round(int(next(line for line in lines if line.startswith(field)).split()[1]) * 1024 / 1e6, 1)
