"""What changes during a training, and the folder in which it is kept."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import subprocess
from pathlib import Path
from typing import Any

import torch
from torch import nn

from declip._version import __version__
from declip.errors import SpecError
from declip.files import write_atomic
from declip.nn.model import DeclipNet, Network
from declip.training.recipe import TrainConfig

__all__ = ["State", "claim", "trim"]


class State:
    """The weights, the optimizer and the counters of a run; it knows the rate and when the run ends."""

    COUNTERS = ("epoch", "phase", "waited", "best", "best_tie", "phase_best", "best_numbers", "losses")

    def __init__(self, config: TrainConfig, net: Network) -> None:
        self.config = config
        self.learnt: nn.Module = net.decoder if isinstance(net, DeclipNet) else net
        if config.norm_momentum is not None:
            for module in self.learnt.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.momentum = config.norm_momentum
        self.averaged = copy.deepcopy(self.learnt).requires_grad_(False) if config.ema else self.learnt
        options: dict[str, Any] = {"lr": config.lr, "weight_decay": config.weight_decay}
        self.optimizer: torch.optim.Optimizer = (
            torch.optim.AdamW(self.learnt.parameters(), **options)
            if config.optimizer == "adamw"
            else torch.optim.SGD(self.learnt.parameters(), momentum=config.momentum, **options)
        )
        self.epoch = 0
        self.phase = 0
        self.waited = 0
        self.best = -math.inf
        self.best_tie = -math.inf
        self.phase_best = -math.inf
        self.best_numbers = (0, math.nan, math.nan)
        self.losses: list[float] = []  # of the steps of this epoch that are done

    @property
    def finished(self) -> bool:
        """Whether there is no further epoch."""
        return self.epoch >= self.config.epochs or self.phase >= self.config.phases

    def rate(self, fraction: float = 0.0) -> float:
        """Return the learning rate now. fraction: of the current epoch that is done."""
        if self.config.schedule == "plateau":
            return self.config.lr / 10.0**self.phase
        if self.config.schedule == "step":
            return float(self.config.lr / 2.0 ** (self.epoch // self.config.step_epochs))
        progress = min(1.0, (self.epoch + fraction) / self.config.epochs)
        if self.config.schedule == "poly":
            return float(self.config.lr * (1 - progress) ** 0.9)
        return self.config.lr * 0.5 * (1 + math.cos(math.pi * progress))

    def average(self, step: int) -> None:
        """Move the averaged weights towards the current ones and copy the buffers. step: of the run, from 0."""
        if not self.config.ema:
            return
        # Early on, the average must not look back to the random weights of the start.
        decay = min(self.config.ema, (step + 1) / (step + 10))
        with torch.no_grad():
            for mean, now in zip(self.averaged.parameters(), self.learnt.parameters(), strict=True):
                mean.lerp_(now, 1 - decay)
            for kept, latest in zip(self.averaged.buffers(), self.learnt.buffers(), strict=True):
                kept.copy_(latest)

    def close_epoch(self, value: float, steps: int = 1, tie: float = 0.0) -> bool:
        """Count an epoch of so many steps, with its selection metric in [0, 1]. Return whether it is the best so far.

        tie: decides between equal values. While no score reaches 0.5 the IoU is 0 in every epoch, and without it the
        first epoch, which has learnt nothing, would be kept.
        """
        self.epoch += 1
        self.losses = []
        improved = (value, tie) > (self.best, self.best_tie)
        if improved:
            self.best, self.best_tie = value, tie
        if self.config.schedule == "plateau":
            gain = (1e-5 if self.phase == 0 else 2e-5) if math.isfinite(self.phase_best) else 0.0
            if value > self.phase_best + gain:
                self.phase_best, self.waited = value, 0
            else:
                self.waited += 1
            if self.waited >= self.config.patience and self.waited * steps >= self.config.patience_steps:
                self.phase, self.waited, self.phase_best = self.phase + 1, 0, -math.inf
        return improved

    def save(self, path: Path) -> None:
        """Write all of it to a file, whole or not at all."""
        content = {
            "learnt": self.learnt.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "counters": {name: getattr(self, name) for name in self.COUNTERS},
        }
        write_atomic(path, lambda partial: torch.save(content, partial))

    def restore(self, path: Path) -> None:
        """Read what `save` wrote."""
        content = torch.load(path, map_location="cpu", weights_only=True)
        self.learnt.load_state_dict(content["learnt"])
        self.averaged.load_state_dict(content["averaged"])
        self.optimizer.load_state_dict(content["optimizer"])
        for name, value in content["counters"].items():
            setattr(self, name, value)


def claim(config: TrainConfig, digests: dict[str, str], out: Path, resume: bool) -> None:
    """Make `out` the folder of this run, or check that it already is. digests: of the data, by part.

    Raises SpecError for a folder that holds a run: any run without `resume`, else one of another recipe or other data.
    """
    path = out / "config.json"
    recipe = json.loads(json.dumps(dataclasses.asdict(config)))
    if path.exists():
        if not resume:
            raise SpecError(f"{out} holds a run; continue it with --resume, or choose another folder")
        written = json.loads(path.read_text(encoding="utf-8"))
        if written["recipe"] != recipe:
            raise SpecError(f"{out} holds a run of another recipe; choose another folder")
        if written.get("data") != digests:
            raise SpecError(f"{out} holds a run on other data; choose another folder")
        return
    content = {"version": __version__, "git": _revision(), "data": digests, "recipe": recipe}
    write_atomic(path, json.dumps(content, indent=1) + "\n")


def trim(path: Path, epochs: int) -> None:
    """Drop the lines of epochs that were measured but not saved: they are computed again."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    write_atomic(path, "".join(lines[:epochs]))


def _revision() -> str | None:
    """Return the git revision that this runs from, if any."""
    try:
        found = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"], capture_output=True, text=True
        )
    except OSError:
        return None
    return found.stdout.strip() or None
