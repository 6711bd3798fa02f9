"""Say what torch can compute on, before a network is put there."""

from __future__ import annotations

import torch

from declip.errors import SpecError

__all__ = ["has_bf16", "usable"]

# What torch calls the instructions of x86 and ARM processors for bf16; without them bf16 is several times slower than
# fp32.
BF16 = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")


def usable(name: str) -> torch.device:
    """Return torch's device of this name: "cpu", "cuda", "cuda:1", "mps" ….

    Raises SpecError for a word that torch does not know, and a device that this machine or this torch lacks.
    """
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).cpu()
    except (RuntimeError, AssertionError) as error:  # a kind without its driver, a number too high, "meta"
        raise SpecError(f"torch cannot use device {name!r}: {error}") from error
    return device


def has_bf16(device: torch.device) -> bool:
    """Return whether bf16 is faster than fp32 there. For a CPU, old torch releases do not know and say no."""
    if device.type != "cpu":
        return True
    known = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return any(known.get(name) for name in BF16)
