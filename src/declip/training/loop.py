"""Epochs and validations of a training."""

from __future__ import annotations

import logging
import math
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import broadcast, gather_object
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from declip.errors import DatasetError, TrainingError
from declip.evaluation import metrics
from declip.images.tensors import to_scores
from declip.nn.backbones import exact
from declip.nn.devices import has_bf16
from declip.nn.maps import Features
from declip.nn.model import Network
from declip.nn.rivals.net import RivalNet
from declip.process import prefetch
from declip.spec import Target
from declip.training.features import CachedViews
from declip.training.recipe import TrainConfig
from declip.training.state import State
from declip.training.views import Views

__all__ = ["FreshViews", "Loop", "Objective"]

Batch: TypeAlias = Features | dict[str, Tensor]
# Threads that read pictures where nothing is cached.
_READERS = 4

_log = logging.getLogger(__name__)


class FreshViews:
    """Views that are drawn anew in each epoch; nothing is kept."""

    def __init__(self, views: Views) -> None:
        self.views = views
        self._pool = ThreadPoolExecutor(_READERS)

    def __len__(self) -> int:
        return len(self.views)

    def load(self, items: Sequence[int], epoch: int) -> tuple[dict[str, Tensor], Tensor]:
        """Return an epoch's views of samples: inputs by name, "image" (N, 3, S, S) first, and targets (N, …)."""
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
        """Return logits (N, T, T) of frozen features, or of a rival's inputs."""
        logits: Tensor = self.learnt(batch) if isinstance(batch, Features) else self.learnt(**batch)
        return logits

    def forward(self, batch: Batch, targets: Tensor) -> Tensor:
        """Return the mean loss: a rival's own, else BCE (paper §4), for whole pictures on the mean of the logits."""
        if isinstance(self.learnt, RivalNet) and not isinstance(batch, Features):
            return self.learnt.loss(targets, **batch)
        logits = self.logits(batch).float()
        if self.target == "image":
            logits = logits.mean(dim=(1, 2))  # (N,)
        return F.binary_cross_entropy_with_logits(logits, targets)


class Loop:
    """Epochs and validations of one run, this process's share of them."""

    def __init__(
        self,
        config: TrainConfig,
        net: Network,
        state: State,
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
        """Show a live bar of the current epoch, where the console is a terminal."""
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
            self._bar, self._task = bar, bar.add_task("training", total=self.steps)
            yield

    def epoch(self, checkpoint_path: Path) -> float:
        """Train the rest of the current epoch; return the mean loss over all of it. End the process if SIGTERM came."""
        state, config, accelerator = self.state, self.config, self.accelerator
        self.net.train()
        order = np.random.default_rng((config.seed, state.epoch)).permutation(len(self.train_data))
        done = len(state.losses)
        batches = [order[i * config.batch_size : (i + 1) * config.batch_size] for i in range(done, self.steps)]
        mine = [np.sort(batch[accelerator.process_index :: accelerator.num_processes]) for batch in batches]
        ahead = prefetch(self._batch(self.train_data, items, view=state.epoch) for items in mine)
        for step, (inputs, targets) in enumerate(ahead, start=done):
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
        """Return the error of weights that are lost. step: of the epoch, from 0."""
        rate, best = self.optimizer.param_groups[0]["lr"], self.state.best_numbers[0]
        folder = Path(self.accelerator.project_dir)
        kept = "nothing was kept, since no epoch had ended"
        if (folder / "state.pt").exists():
            kept = f"{folder / 'state.pt'} is that of the last good step"
            kept += f", {folder / 'best.safetensors'} of epoch {best}" if best else ""
        return TrainingError(
            f"the training diverged in epoch {self.state.epoch + 1}, step {step + 1} of {self.steps}, at a rate (lr) "
            f"of {rate:g}: {what}; {kept}. Start again with a lower rate, in another folder"
        )

    def validate(self) -> tuple[float, float, float]:
        """Return (mean IoU at 0.5, mean AP, mean loss).

        IoU and AP are over the crops that hold something manipulated, on the network's own grid. For whole pictures the
        IoU is nan, and the AP is that of their scores. The loss is nan unless the best epoch is selected by it.
        Raises TrainingError where logits or loss are not finite.
        """
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
        """Return (IoU, AP) of each picture, or (score, label) where whole pictures are learnt."""
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

    def _batch(self, data: CachedViews | FreshViews, items: Any, view: int) -> tuple[Batch, Tensor]:
        """Return frozen features, or the inputs of views, and targets, on the CPU."""
        if isinstance(data, FreshViews):
            return data.load(items, view)
        reduced = self.reduced and data is self.train_data
        return data.batch(items, torch.bfloat16 if reduced else torch.float32)

    def _features(self, batch: Batch) -> Batch:
        """Return what the learnt part takes, on the device. The backbones run here where nothing was kept."""
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
