"""Run a training: what it learns from, its folder, and one epoch after the other.

One process on the CPU or a GPU, or several (docs/train.md): accelerate finds out which. Every random choice comes from
the recipe's seed: crops and augmentations from (seed, view, picture), the order of an epoch from (seed, epoch), the
first weights from the seed alone. So a run that was stopped and resumed ends with the weights of one that was not.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from rich.console import Console
from torch import nn

from declip.errors import DatasetError, SpecError
from declip.files import sha256_of
from declip.images.mapfiles import empty_masks, warn_of_empty_masks
from declip.models import checkpoint, resolve
from declip.nn import own
from declip.nn.model import DeclipNet, Network, build_network
from declip.nn.rivals.net import RivalNet
from declip.results import Sample, check_samples
from declip.training.features import CachedViews
from declip.training.loop import FreshViews, Loop
from declip.training.recipe import TrainConfig
from declip.training.state import State, claim, trim
from declip.training.views import Views

__all__ = ["Run", "fill_features", "parts_of", "train"]

_log = logging.getLogger(__name__)


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
    on_epoch: Callable[[dict[str, Any]], object] | None = None,
) -> Run:
    """Train as the recipe says, into the folder `out`.

    Write best.safetensors, state.pt (after each epoch, and on SIGTERM, which ends the process with status 143),
    metrics.jsonl, config.json (recipe, version, git revision, digests of the data) and tensorboard/.

    resume: continue the run in `out`, which must be of the same recipe and data. Without it `out` must hold no run.
    cache: folder of frozen features, shared by runs; None = "features" in the folder of downloaded weights.
    start: a checkpoint of the same model, whose decoder is the starting point, instead of random weights.
    on_epoch: called in the main process after each epoch, once its files are written, with its line of metrics.jsonl:
        epoch, loss, valid_loss, iou, ap, lr, phase, best, seconds (None: not defined). What it raises ends the
        training, which `resume` continues.

    Raises DatasetError for empty parts, SpecError for a folder of another recipe, ImageError for a picture that cannot
    be read, TrainingError at the first loss that is not finite; then the files are those of the last good epoch.
    """
    check_samples(train, "train=[…]")
    check_samples(valid, "valid=[…]")
    out = Path(out)
    accelerator = Accelerator(log_with="tensorboard", project_dir=str(out))
    console = Console(stderr=True, quiet=not accelerator.is_main_process)
    parts = parts_of(config, train, valid)
    going_on = resume and (out / "state.pt").exists()
    if config.target == "mask" and accelerator.is_main_process and not going_on:
        _check_masks(parts)
    # Of all pictures and masks of a part, in their order.
    digests = {name: hashlib.sha256(json.dumps(v.keys(1)).encode()).hexdigest() for name, v in parts.items()}
    if start is not None:
        digests["start"] = sha256_of(start)
    if accelerator.is_main_process:
        claim(config, digests, out, resume)
    accelerator.wait_for_everyone()
    net = _first_network(config, accelerator, start)
    data = _open_views(config, net, parts, cache, accelerator)
    if isinstance(net, DeclipNet) and not config.kept_views():
        console.print("no features are kept: each epoch draws new views and runs the backbones (views = 0)")
        if config.compile:
            for backbone in net.backbones:
                # All batches but an epoch's last are of one size: code for that size alone, its constants folded.
                backbone.compile(dynamic=False, options={"freezing": True})
    state = State(config, net)
    if going_on:
        state.restore(out / "state.pt")
        if accelerator.is_main_process:
            trim(out / "metrics.jsonl", state.epoch)
    accelerator.init_trackers("tensorboard")
    loop = Loop(config, net, state, data["train"], data["valid"], accelerator)
    with _sigterm(accelerator), loop.progress(console):
        while not state.finished:
            _run_epoch(loop, out, console, on_epoch)
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


def fill_features(
    config: TrainConfig, *, train: Sequence[Sample], valid: Sequence[Sample], cache: str | Path | None = None
) -> int:
    """Compute the frozen features that a training by this recipe keeps, and stop. Return the number of views.

    Arguments and errors as for `train`; also raises SpecError for a recipe that keeps no features.
    """
    check_samples(train, "train=[…]")
    check_samples(valid, "valid=[…]")
    if not config.kept_views("valid"):
        raise SpecError(f"all of {config.model.architecture} is learnt, there are no features to keep")
    if not config.kept_views():
        raise SpecError("by this recipe each epoch draws new views, and none are kept; set views = 1 or more in it")
    accelerator = Accelerator()
    net = _first_network(config, accelerator, None)
    return sum(map(len, _open_views(config, net, parts_of(config, train, valid), cache, accelerator).values()))


def parts_of(config: TrainConfig, train: Sequence[Sample], valid: Sequence[Sample]) -> dict[str, Views]:
    """Return what a recipe learns from and is selected on, "train" and "valid".

    Raises DatasetError for a part without manipulated samples, or without real ones where they are needed.
    """
    whole = config.target == "image"
    chosen = {
        "train": choose_samples(train, config),
        "valid": [s for s in valid if whole or s.label == "fake"],
    }
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


def choose_samples(samples: Sequence[Sample], config: TrainConfig) -> list[Sample]:
    """Return all manipulated samples and `reals` times as many real ones, drawn by the seed."""
    fakes = [s for s in samples if s.label == "fake"]
    reals = [s for s in samples if s.label == "real"]
    count = min(len(reals), round(config.reals * len(fakes)))
    drawn = np.random.default_rng((config.seed, 1)).permutation(len(reals))[:count]
    return fakes + [reals[i] for i in np.sort(drawn)]


def _first_network(config: TrainConfig, accelerator: Accelerator, start: str | Path | None) -> Network:
    """Return the network with which a training begins, on its device."""
    own.import_parts(config.model)
    torch.manual_seed(config.seed)
    net = build_network(config.model)
    if config.init_std and isinstance(net, DeclipNet):
        for name, parameter in net.decoder.named_parameters():
            if name.endswith("weight"):  # BatchNorm's gammas included (paper §4)
                nn.init.normal_(parameter, 0.0, config.init_std)
    if start is not None:
        checkpoint.load_learnt(net, config.model, Path(start))
    placed: Network = net.to(accelerator.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return placed


def _open_views(
    config: TrainConfig,
    net: Network,
    parts: Mapping[str, Views],
    cache: str | Path | None,
    accelerator: Accelerator,
) -> dict[str, CachedViews | FreshViews]:
    """Return the data of each part. The features that are kept are computed first, by all processes together."""
    folder = resolve.cache_dir() / "features" if cache is None else Path(cache)
    progress = accelerator.is_main_process and Console(stderr=True).is_terminal
    data: dict[str, CachedViews | FreshViews] = {}
    for name, views in parts.items():
        count = config.kept_views(name)
        if isinstance(net, RivalNet) or not count:
            data[name] = FreshViews(views)
            continue
        cached = CachedViews(net, config.model, views, folder, precision=config.features, count=count)
        missing = cached.missing()[accelerator.process_index :: accelerator.num_processes]
        cached.fill(missing, progress=progress)
        accelerator.wait_for_everyone()
        data[name] = cached
    return data


def _run_epoch(loop: Loop, out: Path, console: Console, on_epoch: Callable[[dict[str, Any]], object] | None) -> None:
    """Train and validate one epoch; write, print and tell what came of it."""
    config, state, accelerator = loop.config, loop.state, loop.accelerator
    began, rate, phase = time.perf_counter(), state.rate(), state.phase
    loss = loop.epoch(out / "state.pt")
    iou, ap, valid_loss = loop.validate()
    value = {"iou": iou, "ap": ap, "loss": -valid_loss}[config.select]
    improved = state.close_epoch(value, loop.steps, tie=ap)
    if improved:
        state.best_numbers = (state.epoch, iou, ap)
    # JSON has no nan.
    numbers = {k: None if math.isnan(v) else v for k, v in {"valid_loss": valid_loss, "iou": iou, "ap": ap}.items()}
    row = {"epoch": state.epoch, "loss": loss} | numbers | {"lr": rate, "phase": phase, "best": improved}
    row["seconds"] = round(time.perf_counter() - began, 2)
    if accelerator.is_main_process:
        if improved:
            averaged = state.averaged
            whole = DeclipNet(list(loop.net.backbones), averaged) if isinstance(loop.net, DeclipNet) else averaged
            assert isinstance(whole, DeclipNet | RivalNet)
            checkpoint.save(whole, config.model, out / "best.safetensors")
        with (out / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
        state.save(out / "state.pt")
    accelerator.log({k: v for k, v in row.items() if k != "epoch" and v is not None}, step=state.epoch)
    console.print(
        f"epoch {state.epoch:3d}  loss {loss:.4f}  valid IoU {iou:.4f}  AP {ap:.4f}  "
        f"rate {rate:.1e}  {row['seconds']:.0f} s{'  best' if improved else ''}"
    )
    if on_epoch is not None and accelerator.is_main_process:
        on_epoch(row)


def _check_masks(parts: Mapping[str, Views]) -> None:
    """Warn of fakes whose mask marks nothing. Raise DatasetError where a part has no others."""
    for name, views in parts.items():
        fakes = [sample for sample in views.samples if sample.label == "fake"]
        empty = empty_masks(fakes)
        warned = warn_of_empty_masks(empty, len(fakes))
        if warned and len(empty) == len(fakes):
            raise DatasetError(f"{name}: {warned}")


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
