"""What torch computes on, tried before a network is put there."""

from __future__ import annotations

import torch

from declip.errors import SpecError

__all__ = ["usable"]


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
