"""Training a decoder on frozen features: a recipe, one loop, checkpoints that resume bitwise.

One process on the CPU or a GPU, or several (docs/train.md): accelerate finds out which.
Every random choice comes from the recipe's seed: crops and augmentations from (seed, view, picture), the order of an
epoch from (seed, epoch), the first weights from the seed alone. So a run that was stopped and resumed ends with the
weights of one that was not.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import logging
import math
import signal
import subprocess
import threading
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar, get_args

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import broadcast, gather_object
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from declip import datasets
from declip._version import __version__
from declip.errors import DatasetError, SpecError, TrainingError
from declip.evaluation import metrics
from declip.files import read_text, write_atomic
from declip.images.tensors import to_scores
from declip.models import checkpoint, resolve
from declip.nn.backbones import exact
from declip.nn.devices import has_bf16
from declip.nn.maps import Features
from declip.nn.model import DeclipNet, Network, build_network
from declip.nn.rivals.net import RivalNet
from declip.results import Sample, check_several
from declip.spec import ModelSpec, Target
from declip.training.features import CachedViews, FeaturePrecision
from declip.training.views import AUGMENTATIONS, Views

__all__ = ["Run", "TrainConfig", "parts_of", "train"]

Schedule = Literal["plateau", "cosine", "poly", "step"]
Selection = Literal["iou", "ap", "loss"]
Optimizer = Literal["adamw", "sgd"]
Precision = Literal["fp32", "bf16"]
Batch: TypeAlias = Features | dict[str, Tensor]
_In = TypeVar("_In")
_Out = TypeVar("_Out")
# Threads that read pictures where nothing is cached.
_READERS = 4

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """A recipe. The defaults are the paper's (paper §4): BCE on soft masks, AdamW, no augmentation.

    seed: of everything random.
    target: "mask" = every pixel, or "image" = whole pictures: BCE on the mean of the pixel logits against real or fake.
        It needs reals, a model in whole mode with image_score = "mean-logit" (the score that is trained is the one that
        is given later), and select = "ap", which then is that of the pictures' scores.
    epochs: at most this many. batch_size: over all processes.
    optimizer: "adamw" (without weight decay it is Adam), or "sgd" with `momentum`. lr, weight_decay: of it.
    schedule: "plateau" = after `patience` epochs, and at least `patience_steps` optimizer steps, without a gain of
        0.001 percent points of the selection metric (0.002 in later phases) the rate is divided by 10, in `phases`
        phases, then stop; "cosine" and "poly" (power 0.9) = to zero over `epochs`; "step" = halved every `step_epochs`.
    init_std: of the normal distribution of every decoder weight, BatchNorm's included; 0 = torch's own.
    norm_momentum: of BatchNorm's running statistics, in (0, 1]; None = the network's own. The rivals' 0.01 needs some
        hundred steps before they say anything.
    reals: real samples per manipulated one (drawn from those there are).
    augment: of `views.AUGMENTATIONS`, each but "flip" with probability augment_share. The paper's are "blur", "jitter"
        and "jpeg".
    views: n >= 1 = the features of n views (crops, augmented versions) of each sample are computed once and kept;
        0 = nothing is kept, each epoch draws new views and runs the backbones. None = 1, or 0 with augmentation.
    compile: where nothing is kept, the backbones run through torch.compile: at first a minute's wait, then about twice
        as fast on a CPU. It needs a C++ compiler there.
    features: precision of what is kept, "fp16" or "fp32".
    ema: decay of the averaged weights that are validated and saved, less at the start; 0 = none.
    select: the best epoch is that of the highest validation "iou" (at 0.5) or "ap", both means over manipulated crops,
        or of the lowest "loss" over all of them. Among equals the highest AP decides.
    precision: of the decoder's passes, "fp32" or "bf16", which a CPU without instructions for it computes in fp32.
    """

    model: ModelSpec
    seed: int = 0
    target: Target = "mask"
    epochs: int = 400
    batch_size: int = 64
    optimizer: Optimizer = "adamw"
    lr: float = 1e-3
    momentum: float = 0.9
    weight_decay: float = 0.0
    schedule: Schedule = "plateau"
    patience: int = 5
    patience_steps: int = 0
    phases: int = 4
    step_epochs: int = 5
    init_std: float = 0.02
    norm_momentum: float | None = None
    reals: float = 0.0
    augment: tuple[str, ...] = ()
    augment_share: float = 1.0
    views: int | None = None
    compile: bool = False
    features: FeaturePrecision = "fp16"
    ema: float = 0.0
    select: Selection = "iou"
    precision: Precision = "fp32"

    def __post_init__(self) -> None:
        object.__setattr__(self, "augment", tuple(self.augment))
        for field, allowed in (
            ("target", get_args(Target)),
            ("optimizer", get_args(Optimizer)),
            ("schedule", get_args(Schedule)),
            ("select", get_args(Selection)),
            ("precision", get_args(Precision)),
            ("features", get_args(FeaturePrecision)),
            ("augment", AUGMENTATIONS),
        ):
            given = getattr(self, field)
            for value in given if field == "augment" else (given,):
                if value not in allowed:
                    raise SpecError(f"{field} is {value!r}; expected one of {', '.join(map(repr, allowed))}")
        for field in ("seed", "epochs", "batch_size", "patience", "patience_steps", "phases", "step_epochs"):
            if not isinstance(getattr(self, field), int):
                raise SpecError(f"{field} is {getattr(self, field)!r}; expected a whole number")
        if self.views is not None and (not isinstance(self.views, int) or self.views < 0):
            raise SpecError(f"views is {self.views!r}; expected a whole number >= 0")
        for field in ("epochs", "batch_size", "lr", "patience", "phases", "step_epochs"):
            if not getattr(self, field) > 0:
                raise SpecError(f"{field} is {getattr(self, field)}; expected > 0")
        if not (0 <= self.ema < 1 and 0 <= self.momentum < 1 and 0 <= self.augment_share <= 1):
            raise SpecError("expected 0 <= ema < 1, 0 <= momentum < 1 and augment_share in [0, 1]")
        if min(self.reals, self.init_std, self.seed, self.patience_steps, self.weight_decay) < 0:
            raise SpecError("reals, init_std, seed, patience_steps and weight_decay are >= 0")
        if self.norm_momentum is not None and not 0 < self.norm_momentum <= 1:
            raise SpecError(f"norm_momentum is {self.norm_momentum}; expected in (0, 1]")
        self._check_architecture()
        if self.target == "image":
            wanted = {"model.mode": "whole", "model.image_score": self.model.traits.image_score, "select": "ap"}
            given = (self.model.mode, self.model.image_score, self.select)
            for (field, value), found in zip(wanted.items(), given, strict=True):
                if found != value:
                    raise SpecError(f'{field} is {found!r}; target = "image" needs {value!r}')
            if not self.reals:
                raise SpecError('reals is 0; target = "image" learns from real samples, too: reals = 1')

    def _check_architecture(self) -> None:
        architecture, traits = self.model.architecture, self.model.traits
        if traits.has_decoder:
            return
        if self.views:
            raise SpecError(f"views is {self.views}; all of {architecture} is learnt, there are no features to keep")
        if self.target == "image" and "image" not in traits.targets:
            raise SpecError(f'target = "image" is not for {architecture}, which learns masks')
        if self.target == "mask" and "mask" not in traits.targets:
            raise SpecError(f'target is "mask"; {architecture} learns from labels alone: target = "image"')
        if self.augment and traits.reads_coefficients:
            raise SpecError(f"augment is not for {architecture}: it reads the coefficients of the files as they are")

    @property
    def kept_views(self) -> int:
        """How many views of each sample are kept; 0: none, they are drawn anew in each epoch."""
        if not self.model.traits.has_decoder:
            return 0
        if self.views is None:
            return 0 if self.augment else 1
        return self.views

    def kept_of(self, part: str) -> int:
        """How many views of each sample of "train" or "valid" are kept; validation has one, never augmented."""
        if not self.model.traits.has_decoder:
            return 0
        return self.kept_views if part == "train" else 1

    @classmethod
    def from_toml(cls, path: str | Path, changes: Sequence[str] = ()) -> TrainConfig:
        """Read a recipe: the table [model] is a ModelSpec, the other keys are those of this class.

        changes: "key=value" in TOML's syntax, over the recipe ("lr=3e-4", "model.overlap=32").
        """
        try:
            fields = tomllib.loads(read_text(path))
            for change in changes:
                _merge(fields, _parse_change(change))
        except OSError as error:
            raise SpecError(f"the recipe {path} cannot be read: {error}") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise SpecError(f"the recipe {path} is no TOML: {error}") from error
        try:
            return cls(**{**fields, "model": ModelSpec.from_json(json.dumps(fields.get("model", {})))})
        except TypeError as error:
            raise SpecError(f"{path}: {error}") from error


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """What a training leaves: the best and the last checkpoint, and the best epoch's numbers (nan: not defined)."""

    best: Path
    last: Path
    epoch: int
    iou: float
    ap: float


def train(
    config: TrainConfig,
    *,
    train: Sequence[Sample],
    valid: Sequence[Sample],
    out: str | Path,
    resume: bool = False,
    cache: str | Path | None = None,
    start: str | Path | None = None,
) -> Run:
    """Train as the recipe says, into the folder `out`.

    Writes best.safetensors, state.pt (after each epoch, and on SIGTERM, which ends the process with status 143),
    metrics.jsonl, config.json (recipe, version, git revision, digests of the data) and tensorboard/.

    resume: continue the run in `out`, which must be of the same recipe and data; without it `out` must hold no run.
    cache: folder of frozen features, shared by runs; None = "features" in the folder of downloaded weights.
    start: a checkpoint of the same model, whose decoder is the starting point, instead of random weights.

    Raises DatasetError for empty parts, SpecError for a folder of another recipe, ImageError for a picture that cannot
    be read, TrainingError at the first loss that is not finite; then the files are those of the last good epoch.
    """
    check_several(train, "train=[…]")
    check_several(valid, "valid=[…]")
    out = Path(out)
    accelerator = Accelerator(log_with="tensorboard", project_dir=str(out))
    console = Console(stderr=True, quiet=not accelerator.is_main_process)
    parts = parts_of(config, train, valid)
    if config.target == "mask" and accelerator.is_main_process and not (resume and (out / "state.pt").exists()):
        _check_masks(parts)
    digests = {name: _digest(views) for name, views in parts.items()}
    if start is not None:
        digests["start"] = resolve.sha256_of(start)
    if accelerator.is_main_process:
        _claim(config, digests, out, resume)
    accelerator.wait_for_everyone()
    torch.manual_seed(config.seed)
    net = build_network(config.model)
    if config.init_std and isinstance(net, DeclipNet):
        _initialise(net.decoder, config.init_std)
    if start is not None:
        checkpoint.load_learnt(net, config.model, Path(start))
    net = net.to(accelerator.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    folder = resolve.cache_dir() / "features" if cache is None else Path(cache)
    data: dict[str, CachedViews | FreshViews] = {}
    for name, views in parts.items():
        count = config.kept_of(name)
        if isinstance(net, RivalNet) or not count:
            data[name] = FreshViews(views)
            continue
        cached = CachedViews(net, config.model, views, folder, precision=config.features, count=count)
        missing = cached.missing()[accelerator.process_index :: accelerator.num_processes]
        cached.fill(missing, progress=console.is_terminal and accelerator.is_main_process)
        accelerator.wait_for_everyone()
        data[name] = cached
    if isinstance(net, DeclipNet) and not config.kept_views:
        console.print("no features are kept: each epoch draws new views and runs the backbones (views = 0)")
        if config.compile:
            for backbone in net.backbones:
                # All batches but an epoch's last are of one size: code for that size alone, its constants folded.
                backbone.compile(dynamic=False, options={"freezing": True})
    state = _State(config, net)
    if resume and (out / "state.pt").exists():
        state.restore(out / "state.pt")
        if accelerator.is_main_process:
            _trim(out / "metrics.jsonl", state.epoch)
    accelerator.init_trackers("tensorboard")
    loop = _Loop(config, net, state, data["train"], data["valid"], accelerator)
    with _sigterm(accelerator), loop.progress(console):
        while not state.finished:
            began, rate, phase = time.perf_counter(), state.rate(), state.phase
            loss = loop.epoch(out / "state.pt")
            iou, ap, valid_loss = loop.validate()
            value = {"iou": iou, "ap": ap, "loss": -valid_loss}[config.select]
            improved = state.close_epoch(value, loop.steps, tie=ap)
            if improved:
                state.best_numbers = (state.epoch, iou, ap)
            row = {"epoch": state.epoch, "loss": loss, "valid_loss": _plain(valid_loss), "iou": _plain(iou), "ap": ap}
            row |= {"lr": rate, "phase": phase, "best": improved, "seconds": round(time.perf_counter() - began, 2)}
            if accelerator.is_main_process:
                if improved:
                    checkpoint.save(_with_learnt(net, state.averaged), config.model, out / "best.safetensors")
                with (out / "metrics.jsonl").open("a") as file:
                    file.write(json.dumps(row) + "\n")
                state.save(out / "state.pt")
            accelerator.log({k: v for k, v in row.items() if k != "epoch" and v is not None}, step=state.epoch)
            console.print(
                f"epoch {state.epoch:3d}  loss {loss:.4f}  valid IoU {iou:.4f}  AP {ap:.4f}  "
                f"rate {rate:.1e}  {row['seconds']:.0f} s{'  best' if improved else ''}"
            )
    accelerator.end_training()
    epoch, iou, ap = state.best_numbers
    if not epoch:
        raise DatasetError(f"in no epoch of {out} was validation {config.select} a number: lower the rate (lr)")
    if iou == 0:
        _log.warning(
            "no validation score inside a mask is above 0.5: at that threshold the maps are black (IoU 0, AP %.2f). "
            'Train longer, or with patience_steps, select = "ap" or init_std = 0',
            ap,
        )
    return Run(best=out / "best.safetensors", last=out / "state.pt", epoch=epoch, iou=iou, ap=ap)


class FreshViews:
    """Views that are drawn anew in each epoch; nothing is kept."""

    def __init__(self, views: Views) -> None:
        self.views = views
        self._pool = ThreadPoolExecutor(_READERS)

    def __len__(self) -> int:
        return len(self.views)

    def load(self, items: Sequence[int], epoch: int) -> tuple[dict[str, Tensor], Tensor]:
        """Inputs by name, "image" (N, 3, S, S) first, and targets (N, T, T) or (N,) of an epoch's views of samples."""
        pairs = list(self._pool.map(lambda item: self.views.load(int(item), epoch), items))
        inputs = {name: torch.from_numpy(np.stack([found[name] for found, _ in pairs])) for name in pairs[0][0]}
        inputs["image"] = inputs["image"].contiguous(memory_format=torch.channels_last)
        return inputs, torch.from_numpy(np.stack([target for _, target in pairs]))


class Objective(nn.Module):
    """The learnt part and its loss as one module, since several processes must meet in its forward pass."""

    def __init__(self, learnt: nn.Module, target: Target) -> None:
        super().__init__()
        self.learnt = learnt
        self.target = target

    def logits(self, batch: Batch) -> Tensor:
        """Frozen features, or a rival's inputs → logits (N, T, T)."""
        logits: Tensor = self.learnt(batch) if isinstance(batch, Features) else self.learnt(**batch)
        return logits

    def forward(self, batch: Batch, targets: Tensor) -> Tensor:
        """The mean loss: a rival's own, else BCE (paper §4), of whole pictures on the mean of the pixel logits."""
        if isinstance(self.learnt, RivalNet) and not isinstance(batch, Features):
            return self.learnt.loss(targets, **batch)
        logits = self.logits(batch).float()
        if self.target == "image":
            logits = logits.mean(dim=(1, 2))  # (N,)
        return F.binary_cross_entropy_with_logits(logits, targets)


class _State:
    """What changes during a run, and when it ends."""

    COUNTERS = ("epoch", "phase", "waited", "best", "best_tie", "phase_best", "best_numbers", "losses")

    def __init__(self, config: TrainConfig, net: Network) -> None:
        self.config = config
        self.learnt: nn.Module = net.decoder if isinstance(net, DeclipNet) else net
        if config.norm_momentum is not None:
            for module in self.learnt.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.momentum = config.norm_momentum
        self.averaged = self.learnt if not config.ema else _copy(self.learnt)
        self.optimizer = _optimizer(config, self.learnt)
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
        return self.epoch >= self.config.epochs or self.phase >= self.config.phases

    def rate(self, fraction: float = 0.0) -> float:
        """Learning rate now; fraction: of the current epoch that is done."""
        if self.config.schedule == "plateau":
            return self.config.lr / 10.0**self.phase
        if self.config.schedule == "step":
            return float(self.config.lr / 2.0 ** (self.epoch // self.config.step_epochs))
        progress = min(1.0, (self.epoch + fraction) / self.config.epochs)
        if self.config.schedule == "poly":
            return float(self.config.lr * (1 - progress) ** 0.9)
        return self.config.lr * 0.5 * (1 + math.cos(math.pi * progress))

    def average(self, step: int) -> None:
        """Move the averaged weights towards the current ones; buffers are copied. step: of the run, from 0."""
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
        """Count the epoch, of so many steps, with its selection metric in [0, 1]; True if it is the best so far.

        tie: decides between equal values. While no score reaches 0.5 the IoU is 0 in every epoch, and the first, of
        which nothing has been learnt, would be kept.
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
        content = {
            "learnt": self.learnt.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "counters": {name: getattr(self, name) for name in self.COUNTERS},
        }
        write_atomic(path, lambda partial: torch.save(content, partial))

    def restore(self, path: Path) -> None:
        content = torch.load(path, map_location="cpu", weights_only=True)
        self.learnt.load_state_dict(content["learnt"])
        self.averaged.load_state_dict(content["averaged"])
        self.optimizer.load_state_dict(content["optimizer"])
        for name, value in content["counters"].items():
            setattr(self, name, value)


class _Loop:
    """Epochs and validations of one run, this process's share of them."""

    def __init__(
        self,
        config: TrainConfig,
        net: Network,
        state: _State,
        train: CachedViews | FreshViews,
        valid: CachedViews | FreshViews,
        accelerator: Accelerator,
    ) -> None:
        self.config = config
        self.net = net
        self.state = state
        self.train_data = train
        self.valid_data = valid
        self.accelerator = accelerator
        self.objective, self.optimizer = accelerator.prepare(Objective(state.learnt, config.target), state.optimizer)
        # A last batch of one or two would give BatchNorm statistics of nothing; it joins the epoch's dropped rest.
        self.steps = max(1, len(self.train_data) // config.batch_size)
        self.reduced = config.precision == "bf16" and has_bf16(accelerator.device)
        if config.precision == "bf16" and not self.reduced:
            _log.warning("this processor has no instructions for bf16, which would take far longer: training in fp32")
        self._bar: Progress | None = None
        self._task = TaskID(0)

    @contextmanager
    def progress(self, console: Console) -> Iterator[None]:
        """A live bar of the current epoch, where the console is a terminal."""
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
            self._bar, self._task = bar, bar.add_task("training", total=self.steps)
            yield

    def epoch(self, checkpoint_path: Path) -> float:
        """The rest of the current epoch; the mean loss over all of it. Ends the process if SIGTERM came."""
        state, config, accelerator = self.state, self.config, self.accelerator
        self.net.train()
        order = np.random.default_rng((config.seed, state.epoch)).permutation(len(self.train_data))
        done = len(state.losses)
        batches = [order[i * config.batch_size : (i + 1) * config.batch_size] for i in range(done, self.steps)]
        mine = [np.sort(batch[accelerator.process_index :: accelerator.num_processes]) for batch in batches]
        for step, (inputs, targets) in enumerate(_ahead(self._training_batch, mine), start=done):
            for group in self.optimizer.param_groups:
                group["lr"] = state.rate(step / self.steps)
            batch = self._features(inputs)  # frozen features are always computed in float32, as those that are kept
            with torch.autocast(accelerator.device.type, torch.bfloat16, enabled=self.reduced):
                loss = self.objective(batch, targets.to(accelerator.device))
            self.optimizer.zero_grad()
            accelerator.backward(loss)
            self.optimizer.step()
            state.average(state.epoch * self.steps + step)
            state.losses.append(float(accelerator.reduce(loss.detach(), "mean")))
            if not math.isfinite(state.losses[-1]):
                raise self._diverged(f"the loss is {state.losses[-1]}", step)
            self._report(step + 1)
            if accelerator.check_trigger():
                if accelerator.is_main_process:
                    state.save(checkpoint_path)
                    _log.info("stopped by SIGTERM in epoch %d; --resume goes on from here", state.epoch + 1)
                raise SystemExit(128 + signal.SIGTERM)
        if accelerator.num_processes > 1:
            # Each process has its own BatchNorm statistics; the first one's count.
            for module in (state.learnt, state.averaged):
                for buffer in module.buffers():
                    broadcast(buffer)
        return float(np.mean(state.losses))

    def _diverged(self, what: str, step: int) -> TrainingError:
        """What to raise when the weights are lost. step: of the epoch, from 0."""
        rate = self.optimizer.param_groups[0]["lr"]
        state, folder = self.state, Path(self.accelerator.project_dir)
        kept = "nothing was kept, since no epoch had ended"
        if (folder / "state.pt").exists():
            best = state.best_numbers[0]
            kept = f"{folder / 'state.pt'} is that of the last good step"
            kept += f", {folder / 'best.safetensors'} of epoch {best}" if best else ""
        return TrainingError(
            f"the training diverged in epoch {state.epoch + 1}, step {step + 1} of {self.steps}, at a rate (lr) of "
            f"{rate:g}: {what}; {kept}. Start again with a lower rate, in another folder"
        )

    def validate(self) -> tuple[float, float, float]:
        """(mean IoU at 0.5, mean AP, mean loss). The first two are over the crops that hold something manipulated, on
        the network's own grid; for whole pictures nan, and AP of their scores. The loss is nan where it is not asked
        for. Raises TrainingError where logits or loss are not finite."""
        config, device = self.config, self.accelerator.device
        objective = Objective(self.state.averaged, config.target).eval()
        items = range(self.accelerator.process_index, len(self.valid_data), self.accelerator.num_processes)
        found: list[tuple[float, float]] = []
        losses: list[float] = []
        lost = 0
        with torch.inference_mode():
            for start in range(0, len(items), config.batch_size):
                chosen = items[start : start + config.batch_size]
                batch, targets = self._batch(self.valid_data, chosen, view=0)
                inputs = self._features(batch)
                if config.select == "loss":
                    losses += [float(objective(inputs, targets.to(device)))] * len(chosen)
                logits = objective.logits(inputs).float().cpu().numpy()
                finite = np.isfinite(logits).all(axis=(1, 2))
                lost += int((~finite).sum())
                found += self._measure(logits[finite], targets.numpy()[finite])
        found, losses, lost = gather_object(found), gather_object(losses), sum(gather_object([lost]))
        if lost or not np.isfinite(losses).all():
            what = f"of {len(self.valid_data)} validation pictures {lost} have" if lost else "the validation loss has"
            raise self._diverged(f"{what} values that are not finite", self.steps - 1)
        loss = float(np.mean(losses)) if losses else math.nan
        if config.target == "image":
            scores, labels = (np.array(column) for column in zip(*found, strict=True))
            return math.nan, metrics.average_precision(scores, labels > 0.5), loss
        if not found:
            raise DatasetError("no crop of the validation samples holds anything manipulated: are their masks right?")
        iou, ap = np.mean(found, axis=0)
        return float(iou), float(ap), loss

    def _measure(self, logits: Any, targets: Any) -> list[tuple[float, float]]:
        """Per picture: (IoU, AP), or for whole pictures (score, label)."""
        if self.config.target == "image":
            whole = self.config.model.image_score == "mean-logit"
            scores = to_scores(logits.mean(axis=(1, 2))) if whole else to_scores(logits).mean(axis=(1, 2))
            return [(float(score), float(label)) for score, label in zip(scores, targets, strict=True)]
        pairs = ((s, target >= 0.5) for s, target in zip(to_scores(logits), targets, strict=True))
        return [
            (metrics.iou(scores >= 0.5, mask), metrics.average_precision(scores, mask))
            for scores, mask in pairs
            if mask.any()
        ]

    def _training_batch(self, items: Any) -> tuple[Batch, Tensor]:
        return self._batch(self.train_data, items, view=self.state.epoch)

    def _batch(self, data: CachedViews | FreshViews, items: Sequence[int], view: int) -> tuple[Batch, Tensor]:
        """Frozen features, or the inputs of views, and targets, on the CPU."""
        if isinstance(data, FreshViews):
            return data.load(items, view)
        reduced = self.reduced and data is self.train_data
        return data.batch(items, torch.bfloat16 if reduced else torch.float32)

    def _features(self, batch: Batch) -> Batch:
        """What the learnt part takes, on the device: the backbones run here where nothing was kept."""
        device = self.accelerator.device
        if isinstance(batch, Features):
            cls = None if batch.cls is None else batch.cls.to(device)
            return Features(tuple(m.to(device) for m in batch.maps), cls)
        inputs = {name: tensor.to(device) for name, tensor in batch.items()}
        if isinstance(self.net, RivalNet):
            return inputs
        with torch.no_grad(), exact():
            return self.net.features(inputs["image"])

    def _report(self, done: int) -> None:
        if self._bar is not None:
            best = f"  best {self.state.best:.4f}" if math.isfinite(self.state.best) else ""
            text = f"epoch {self.state.epoch + 1}  loss {self.state.losses[-1]:.4f}{best}"
            self._bar.update(self._task, completed=done, description=text)


def parts_of(config: TrainConfig, train: Sequence[Sample], valid: Sequence[Sample]) -> dict[str, Views]:
    """What a recipe learns from and is selected on, "train" and "valid". Raises DatasetError for what cannot be."""
    whole = config.target == "image"
    chosen = {"train": _chosen(train, config), "valid": [s for s in valid if whole or s.label == "fake"]}
    for samples in chosen.values():
        if not any(s.label == "fake" for s in samples):
            raise DatasetError("training needs manipulated samples in both parts, train and valid")
        if whole and not any(s.label == "real" for s in samples):
            raise DatasetError('target = "image" needs real samples in both parts, train and valid')
    options: dict[str, Any] = {"seed": config.seed, "target": config.target}
    return {
        "train": Views(chosen["train"], config.model, augment=config.augment, share=config.augment_share, **options),
        "valid": Views(chosen["valid"], config.model, **options),
    }


def _check_masks(parts: Mapping[str, Views]) -> None:
    """Warn of fakes whose mask marks nothing. Raises DatasetError where a part has no others."""
    for name, views in parts.items():
        fakes = [sample for sample in views.samples if sample.label == "fake"]
        empty = datasets.empty_masks(fakes)
        warned = datasets.warn_of_empty_masks(empty, len(fakes))
        if warned and len(empty) == len(fakes):
            raise DatasetError(f"{name}: {warned}")


def _digest(views: Views) -> str:
    """Of all pictures and masks of a part, in their order."""
    return hashlib.sha256(json.dumps(views.keys(1)).encode()).hexdigest()


def _ahead(load: Callable[[_In], _Out], items: Sequence[_In]) -> Iterator[_Out]:
    """load(item) of each item in order, the next one loading while the caller works on one."""
    with ThreadPoolExecutor(1) as pool:
        coming: list[Future[_Out]] = []
        for item in items:
            coming.append(pool.submit(load, item))
            if len(coming) > 1:
                yield coming.pop(0).result()
        for last in coming:
            yield last.result()


@contextmanager
def _sigterm(accelerator: Accelerator) -> Iterator[None]:
    """Within, SIGTERM sets the accelerator's trigger, which all processes look at after each step."""
    if threading.current_thread() is not threading.main_thread():  # only there are handlers allowed
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda number, frame: accelerator.set_trigger())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _with_learnt(net: Network, learnt: nn.Module) -> Network:
    """The whole network around these weights."""
    if isinstance(learnt, RivalNet):
        return learnt
    assert isinstance(net, DeclipNet)
    return DeclipNet(list(net.backbones), learnt)


def _optimizer(config: TrainConfig, learnt: nn.Module) -> torch.optim.Optimizer:
    match config.optimizer:
        case "adamw":
            return torch.optim.AdamW(learnt.parameters(), lr=config.lr, weight_decay=config.weight_decay)
        case "sgd":
            return torch.optim.SGD(
                learnt.parameters(), lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay
            )


def _chosen(samples: Sequence[Sample], config: TrainConfig) -> list[Sample]:
    """All manipulated samples and `reals` times as many real ones, drawn by the seed."""
    fakes = [s for s in samples if s.label == "fake"]
    reals = [s for s in samples if s.label == "real"]
    count = min(len(reals), round(config.reals * len(fakes)))
    drawn = np.random.default_rng((config.seed, 1)).permutation(len(reals))[:count]
    return fakes + [reals[i] for i in np.sort(drawn)]


def _initialise(decoder: nn.Module, std: float) -> None:
    """N(0, std) on every weight, BatchNorm's gammas included; biases keep their defaults (paper §4)."""
    for name, parameter in decoder.named_parameters():
        if name.endswith("weight"):
            nn.init.normal_(parameter, 0.0, std)


def _copy(decoder: nn.Module) -> nn.Module:
    averaged = copy.deepcopy(decoder)
    averaged.requires_grad_(False)
    return averaged


def _claim(config: TrainConfig, digests: dict[str, str], out: Path, resume: bool) -> None:
    """Make `out` this run's folder, or see that it already is."""
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


def _trim(path: Path, epochs: int) -> None:
    """Drop the lines of epochs that were measured but not saved: they come again."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    write_atomic(path, "".join(line for line in lines[:epochs]))


def _plain(value: float) -> float | None:
    return None if math.isnan(value) else value


def _revision() -> str | None:
    """The git revision this runs from, if any."""
    try:
        found = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"], capture_output=True, text=True
        )
    except OSError:
        return None
    return found.stdout.strip() or None


def _parse_change(change: str) -> dict[str, Any]:
    key, separator, value = change.partition("=")
    if not separator:
        raise SpecError(f"--set {change}: expected key=value")
    try:
        return tomllib.loads(f"{key} = {value}")
    except tomllib.TOMLDecodeError:
        return tomllib.loads(f"{key} = {json.dumps(value)}")


def _merge(fields: dict[str, Any], change: dict[str, Any]) -> None:
    for key, value in change.items():
        if isinstance(value, dict) and isinstance(fields.get(key), dict):
            _merge(fields[key], value)
        else:
            fields[key] = value
