"""What Linux tells of this process and its processor."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Literal

__all__ = ["processor", "resident_megabytes"]


def resident_megabytes(field: Literal["VmRSS", "VmHWM"] = "VmRSS") -> float:
    """Resident memory in MB, now or ("VmHWM") the highest so far."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return round(int(next(line for line in lines if line.startswith(field)).split()[1]) * 1024 / 1e6, 1)


def processor() -> str:
    """Its name and number of model."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    fields = {line.partition(":")[0].strip(): line.partition(":")[2].strip() for line in lines}
    return f"{fields.get('model name', platform.processor())}, model {fields.get('model', '?')}"
