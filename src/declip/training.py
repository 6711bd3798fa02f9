"""Training a decoder on frozen features: a recipe, one loop, checkpoints that resume bitwise.

Every random choice comes from the recipe's seed: crops and augmentations from (seed, view, sample), the order of an
epoch from (seed, epoch), the first weights from the seed alone. So a run that was stopped and resumed ends with the
weights of one that was not.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import io
import json
import math
import subprocess
import time
import tomllib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from torch import Tensor, nn

import declip
from declip import features, image, metrics
from declip.errors import DatasetError, SpecError
from declip.nn import checkpoint
from declip.nn.model import DeclipNet, build
from declip.types import ModelSpec, Sample

__all__ = ["Run", "TrainConfig", "train"]

Schedule = Literal["plateau", "cosine"]
Selection = Literal["iou", "ap"]
Augmentation = Literal["flip", "jpeg"]
_In = TypeVar("_In")
_Out = TypeVar("_Out")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """A recipe. The defaults are the paper's (paper §4): BCE on soft masks, AdamW, no augmentation.

    seed: of everything random.
    epochs: at most this many. batch_size, lr, weight_decay: of AdamW.
    schedule: "plateau" = after `patience` epochs without a gain of 0.001 percent points of the selection metric (0.002
        in later phases) the rate is divided by 10, in `phases` phases, then stop; "cosine" = to zero over `epochs`.
    init_std: of the normal distribution of every decoder weight, BatchNorm's included; 0 = torch's own.
    reals: real samples per manipulated one (drawn from those there are).
    views: crops (or augmented versions) of each sample; their features are computed once. 1 without augmentation.
    augment: "flip" (and quarter turns) and "jpeg" (half of the views re-saved at quality 60-95), before normalising.
    ema: decay of the averaged weights that are validated and saved, less at the start; 0 = none.
    select: the best epoch is that of the highest validation "iou" (at 0.5) or "ap", both means over manipulated crops.
    precision: of the decoder's passes, "fp32" or "bf16".
    """

    model: ModelSpec
    seed: int = 0
    epochs: int = 400
    batch_size: int = 64
    lr: float = 1e-3
    weight_decay: float = 0.0
    schedule: Schedule = "plateau"
    patience: int = 5
    phases: int = 4
    init_std: float = 0.02
    reals: float = 0.0
    views: int = 1
    augment: tuple[Augmentation, ...] = ()
    ema: float = 0.0
    select: Selection = "iou"
    precision: Literal["fp32", "bf16"] = "fp32"

    def __post_init__(self) -> None:
        object.__setattr__(self, "augment", tuple(self.augment))
        for value, alias, field in (
            (self.schedule, Schedule, "schedule"),
            (self.select, Selection, "select"),
            (self.precision, Literal["fp32", "bf16"], "precision"),
            *((name, Augmentation, "augment") for name in self.augment),
        ):
            if value not in get_args(alias):
                raise SpecError(f"{field} is {value!r}; expected one of {', '.join(map(repr, get_args(alias)))}")
        for field in ("seed", "epochs", "batch_size", "patience", "phases", "views"):
            if not isinstance(getattr(self, field), int):
                raise SpecError(f"{field} is {getattr(self, field)!r}; expected a whole number")
        for field in ("epochs", "batch_size", "lr", "patience", "phases", "views"):
            if not getattr(self, field) > 0:
                raise SpecError(f"{field} is {getattr(self, field)}; expected > 0")
        if not (0 <= self.ema < 1 and self.reals >= 0 and self.init_std >= 0 and self.seed >= 0):
            raise SpecError("expected 0 <= ema < 1, reals >= 0, init_std >= 0 and seed >= 0")

    @classmethod
    def from_toml(cls, path: str | Path, changes: Sequence[str] = ()) -> TrainConfig:
        """Read a recipe: the table [model] is a ModelSpec, the other keys are those of this class.

        changes: "key=value" in TOML's syntax, over the recipe ("lr=3e-4", "model.overlap=32").
        """
        try:
            fields = tomllib.loads(Path(path).read_text(encoding="utf-8"))
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
    """What a training leaves: the best and the last checkpoint, and the best epoch's numbers."""

    best: Path
    last: Path
    epoch: int
    iou: float
    ap: float


def train(
    config: TrainConfig, *, train: Sequence[Sample], valid: Sequence[Sample], out: str | Path, resume: bool = False
) -> Run:
    """Train as the recipe says; writes best.safetensors, state.pt, metrics.jsonl and config.json into `out`.

    resume: continue the run in `out`, which must be of the same recipe; without it `out` must hold no run.
    Raises DatasetError for empty parts, SpecError for a folder of another recipe.
    """
    out = Path(out)
    console = Console(stderr=True)
    parts = {"train": _chosen(train, config), "valid": [s for s in valid if s.label == "fake"]}
    if not all(parts.values()):
        raise DatasetError("training needs manipulated samples in both parts, train and valid")
    _claim(config, out, resume)
    torch.manual_seed(config.seed)
    net = build(config.model)
    if config.init_std:
        _initialise(net.decoder, config.init_std)
    data = {}
    for part, samples in parts.items():
        crops = SampleCrops(samples, config, augmented=part == "train")
        data[part] = features.cache(net, crops, out / "features" / part, crops.key(), progress=console.is_terminal)
    net = net.to(memory_format=torch.channels_last)
    state = _State(config, net)
    if resume and (out / "state.pt").exists():
        state.restore(out / "state.pt")
    while not state.finished:
        start, rate, phase = time.perf_counter(), state.rate(), state.phase
        loss = _epoch(config, net, state, data["train"])
        iou, ap = _validate(config, state.averaged, data["valid"])
        improved = state.close_epoch(iou if config.select == "iou" else ap)
        if improved:
            best = DeclipNet(list(net.backbones), state.averaged)
            checkpoint.save(best, config.model, out / "best.safetensors")
            state.best_numbers = (state.epoch, iou, ap)
        state.save(out / "state.pt")
        row = {"epoch": state.epoch, "loss": loss, "iou": iou, "ap": ap, "lr": rate, "phase": phase}
        row |= {"best": improved, "seconds": round(time.perf_counter() - start, 2)}
        with (out / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
        console.print(
            f"epoch {state.epoch:3d}  loss {loss:.4f}  valid IoU {iou:.4f}  AP {ap:.4f}  "
            f"rate {rate:.1e}  {row['seconds']:.0f} s{'  best' if improved else ''}"
        )
    epoch, iou, ap = state.best_numbers
    return Run(best=out / "best.safetensors", last=out / "state.pt", epoch=epoch, iou=iou, ap=ap)


class SampleCrops:
    """The network's inputs and targets of samples: whole pictures squashed, or native crops, as the model's mode says.

    Item (view · number of samples + i) is view `view` of sample i: (image (3, S, S) float32 normalised, target (T, T)
    float32 in [0, 1], the mask resized with antialias and not binarised).
    """

    def __init__(self, samples: Sequence[Sample], config: TrainConfig, *, augmented: bool) -> None:
        self.samples = list(samples)
        self.config = config
        self.views = config.views if augmented else 1
        self.augment = config.augment if augmented else ()

    def __len__(self) -> int:
        return len(self.samples) * self.views

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        view, position = divmod(index, len(self.samples))
        sample, spec = self.samples[position], self.config.model
        rng = np.random.default_rng((self.config.seed, view, position))
        pixels, mask = image.read(sample.image).pixels, image.read_mask(sample)
        if mask.shape != pixels.shape[:2]:
            raise DatasetError(f"{sample.mask} is {mask.shape}, its picture {pixels.shape[:2]}; they must agree")
        if spec.mode == "tiled":
            pixels, mask = _crop(pixels, mask, spec.input_size, rng)
        if "flip" in self.augment:
            turns, mirrored = int(rng.integers(4)), bool(rng.integers(2))
            pixels, mask = np.rot90(pixels, turns), np.rot90(mask, turns)
            if mirrored:
                pixels, mask = pixels[:, ::-1], mask[:, ::-1]
        if "jpeg" in self.augment and rng.random() < 0.5:
            pixels = _resave(np.ascontiguousarray(pixels), int(rng.integers(60, 96)))
        target = image.resize_scores(np.ascontiguousarray(mask, np.float32), (spec.output_size, spec.output_size))
        return torch.from_numpy(image.to_input(np.ascontiguousarray(pixels), spec)), torch.from_numpy(target)

    def key(self) -> dict[str, Any]:
        """All that decides these items and their features."""
        spec = dataclasses.asdict(self.config.model)
        frozen = {k: spec[k] for k in ("backbones", "input_size", "output_size", "mean", "std", "mode")}
        rows = [[str(s.image), str(s.mask), s.fake_is, *_stamp(s.image), *_stamp(s.mask)] for s in self.samples]
        digest = hashlib.sha256(json.dumps(rows).encode()).hexdigest()
        seed = {"seed": self.config.seed, "views": self.views, "augment": list(self.augment)}
        return {**frozen, **seed, "samples": digest, "version": declip.__version__}


class _State:
    """What changes during a run, and when it ends."""

    def __init__(self, config: TrainConfig, net: DeclipNet) -> None:
        self.config = config
        self.decoder = net.decoder
        self.averaged = net.decoder if not config.ema else _copy(net.decoder)
        self.optimizer = torch.optim.AdamW(net.learnt_parameters(), lr=config.lr, weight_decay=config.weight_decay)
        self.epoch = 0
        self.phase = 0
        self.waited = 0
        self.best = -math.inf
        self.phase_best = -math.inf
        self.best_numbers = (0, math.nan, math.nan)

    @property
    def finished(self) -> bool:
        return self.epoch >= self.config.epochs or self.phase >= self.config.phases

    def rate(self, fraction: float = 0.0) -> float:
        """Learning rate now; fraction: of the current epoch that is done."""
        if self.config.schedule == "plateau":
            return self.config.lr / 10.0**self.phase
        progress = min(1.0, (self.epoch + fraction) / self.config.epochs)
        return self.config.lr * 0.5 * (1 + math.cos(math.pi * progress))

    def average(self, step: int) -> None:
        """Move the averaged weights towards the current ones; buffers are copied. step: of the run, from 0."""
        if not self.config.ema:
            return
        # Early on, the average must not look back to the random weights of the start.
        decay = min(self.config.ema, (step + 1) / (step + 10))
        with torch.no_grad():
            for mean, now in zip(self.averaged.parameters(), self.decoder.parameters(), strict=True):
                mean.lerp_(now, 1 - decay)
            for kept, latest in zip(self.averaged.buffers(), self.decoder.buffers(), strict=True):
                kept.copy_(latest)

    def close_epoch(self, value: float) -> bool:
        """Count the epoch with its selection metric in [0, 1]; True if it is the best so far."""
        self.epoch += 1
        improved = value > self.best
        self.best = max(self.best, value)
        if self.config.schedule == "plateau":
            gain = (1e-5 if self.phase == 0 else 2e-5) if math.isfinite(self.phase_best) else 0.0
            if value > self.phase_best + gain:
                self.phase_best, self.waited = value, 0
            else:
                self.waited += 1
            if self.waited >= self.config.patience:
                self.phase, self.waited, self.phase_best = self.phase + 1, 0, -math.inf
        return improved

    def save(self, path: Path) -> None:
        counters = ("epoch", "phase", "waited", "best", "phase_best", "best_numbers")
        content = {
            "decoder": self.decoder.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "counters": {name: getattr(self, name) for name in counters},
        }
        partial = path.with_name(path.name + ".part")
        torch.save(content, partial)
        partial.replace(path)

    def restore(self, path: Path) -> None:
        content = torch.load(path, map_location="cpu", weights_only=True)
        self.decoder.load_state_dict(content["decoder"])
        self.averaged.load_state_dict(content["averaged"])
        self.optimizer.load_state_dict(content["optimizer"])
        for name, value in content["counters"].items():
            setattr(self, name, value)


def _epoch(config: TrainConfig, net: DeclipNet, state: _State, data: features.CachedFeatures) -> float:
    """One pass over the data; the mean loss."""
    net.train()
    order = np.random.default_rng((config.seed, state.epoch)).permutation(len(data))
    # A last batch of one or two would give BatchNorm statistics of nothing; it joins the epoch's dropped rest.
    steps = max(1, len(order) // config.batch_size)
    chosen = [np.sort(order[step * config.batch_size : (step + 1) * config.batch_size]) for step in range(steps)]
    dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
    losses = []
    for step, (inputs, targets) in enumerate(_ahead(lambda indices: data.batch(indices, dtype), chosen)):
        for group in state.optimizer.param_groups:
            group["lr"] = state.rate(step / steps)
        with torch.autocast("cpu", torch.bfloat16, enabled=config.precision == "bf16"):
            logits = net.decode(inputs)
        loss = F.binary_cross_entropy_with_logits(logits.float(), targets)
        state.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        state.optimizer.step()
        state.average(state.epoch * steps + step)
        losses.append(float(loss.detach()))
    return float(np.mean(losses))


def _ahead(load: Callable[[_In], _Out], items: Sequence[_In]) -> Iterator[_Out]:
    """load(item) of each item in order, the next one loading while the caller works on one."""
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(load, items[0])
        for item in items[1:]:
            ready, coming = coming, pool.submit(load, item)
            yield ready.result()
        yield coming.result()


def _validate(config: TrainConfig, decoder: nn.Module, data: features.CachedFeatures) -> tuple[float, float]:
    """Mean IoU at 0.5 and mean AP over the crops that hold something manipulated, on the network's own grid."""
    decoder.eval()
    ious, aps = [], []
    with torch.inference_mode():
        for start in range(0, len(data), config.batch_size):
            chosen = np.arange(start, min(start + config.batch_size, len(data)))
            inputs, targets = data.batch(chosen)
            for scores, target in zip(image.to_scores(decoder(inputs).numpy()), targets.numpy(), strict=True):
                mask = target >= 0.5
                if mask.any():
                    ious.append(metrics.iou(scores >= 0.5, mask))
                    aps.append(metrics.average_precision(scores, mask))
    if not ious:
        raise DatasetError("no crop of the validation samples holds anything manipulated: are their masks right?")
    return float(np.mean(ious)), float(np.mean(aps))


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


def _crop(
    pixels: NDArray[np.uint8], mask: NDArray[np.bool_], size: int, rng: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """A random native crop of size × size; a smaller picture is padded by reflection first, as the localizer does.

    Corners are multiples of 8, as the localizer's are: JPEG's grid keeps its phase.
    """
    missing = [(0, max(0, size - side)) for side in mask.shape]
    if any(pad for _, pad in missing):
        pixels = np.pad(pixels, [*missing, (0, 0)], mode="reflect")
        mask = np.pad(mask, missing, mode="reflect")
    y, x = (8 * int(rng.integers((side - size) // 8 + 1)) for side in mask.shape)
    return pixels[y : y + size, x : x + size], mask[y : y + size, x : x + size]


def _resave(pixels: NDArray[np.uint8], quality: int) -> NDArray[np.uint8]:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    return image.read(buffer.getvalue()).pixels


def _copy(decoder: nn.Module) -> nn.Module:
    averaged = copy.deepcopy(decoder)
    averaged.requires_grad_(False)
    return averaged


def _stamp(path: Path | None) -> tuple[int, int]:
    """Size and time of change: a file written anew is another one."""
    if path is None:
        return 0, 0
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns


def _claim(config: TrainConfig, out: Path, resume: bool) -> None:
    """Make `out` this run's folder, or see that it already is."""
    path = out / "config.json"
    recipe = dataclasses.asdict(config)
    text = json.loads(json.dumps(recipe))
    if path.exists():
        if not resume:
            raise SpecError(f"{out} holds a run; continue it with --resume, or choose another folder")
        if json.loads(path.read_text())["recipe"] != text:
            raise SpecError(f"{out} holds a run of another recipe; choose another folder")
        return
    out.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"version": declip.__version__, "git": _revision(), "recipe": text}, indent=1) + "\n")


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
