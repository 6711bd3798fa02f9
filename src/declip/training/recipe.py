"""A recipe of a training: a frozen dataclass, read from TOML."""

from __future__ import annotations

import dataclasses
import difflib
import json
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from declip.errors import SpecError
from declip.files import read_text
from declip.spec import BackboneSpec, Calibration, DecoderSpec, ModelSpec, Target
from declip.training.views import AUGMENTATIONS

__all__ = ["FeaturePrecision", "TrainConfig"]

Schedule = Literal["plateau", "cosine", "poly", "step"]
Selection = Literal["iou", "ap", "loss"]
Optimizer = Literal["adamw", "sgd"]
Precision = Literal["fp32", "bf16"]
FeaturePrecision = Literal["fp16", "fp32"]

_CHOICES: dict[str, tuple[str, ...]] = {
    "target": get_args(Target),
    "optimizer": get_args(Optimizer),
    "schedule": get_args(Schedule),
    "select": get_args(Selection),
    "precision": get_args(Precision),
    "features": get_args(FeaturePrecision),
    "augment": AUGMENTATIONS,
}
_WHOLE = ("seed", "epochs", "batch_size", "patience", "patience_steps", "phases", "step_epochs", "views")
# What the numbers can be: fields, test, and the words for the error.
_RANGES: tuple[tuple[tuple[str, ...], Callable[[float], bool], str], ...] = (
    (("epochs", "batch_size", "lr", "patience", "phases", "step_epochs"), lambda value: value > 0, "> 0"),
    (("seed", "patience_steps", "views", "reals", "init_std", "weight_decay"), lambda value: value >= 0, ">= 0"),
    (("ema", "momentum"), lambda value: 0 <= value < 1, "in [0, 1)"),
    (("augment_share",), lambda value: 0 <= value <= 1, "in [0, 1]"),
    (("norm_momentum",), lambda value: 0 < value <= 1, "in (0, 1]"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """A recipe. The defaults are the paper's (paper §4): BCE on soft masks, AdamW, no augmentation.

    model: the network, which is written to every checkpoint.
    seed: of everything random.
    target: "mask" = every pixel. "image" = whole pictures: BCE on the mean of the pixel logits against real or fake. It
        needs real samples, a model in whole mode with image_score = "mean-logit" (the score that is trained must be the
        one that is given later), and select = "ap", which then is the AP of the scores of whole pictures.
    epochs: the most epochs. batch_size: over all processes.
    optimizer: "adamw" (without weight decay it is Adam), or "sgd". momentum: of "sgd".
    lr: the learning rate at the start. weight_decay: of the optimizer.
    schedule: "plateau" = divide the rate by 10 after `patience` epochs, and at least `patience_steps` optimizer steps,
        without a gain of 0.001 percent points of the selection metric (0.002 in later phases), and stop after `phases`
        phases. "cosine" and "poly" (power 0.9) = fall to zero over `epochs`. "step" = halve every `step_epochs`.
    patience, patience_steps, phases: of the schedule "plateau". step_epochs: of the schedule "step".
    init_std: of the normal distribution of every decoder weight, BatchNorm's included; 0 = torch's own start.
    norm_momentum: of BatchNorm's running statistics, in (0, 1]; None = the network's own. With the rivals' 0.01 the
        statistics mean nothing in the first hundred steps.
    reals: real samples per manipulated one, drawn from those there are.
    augment: names of `views.AUGMENTATIONS`. The paper's are "blur", "jitter" and "jpeg".
    augment_share: probability of each augmentation but "flip".
    views: n >= 1 = compute the features of n views (crops, augmented versions) of each sample once and keep them.
        0 = keep nothing: each epoch draws new views and runs the backbones. None = 1, or 0 with augmentation.
    compile: where nothing is kept, run the backbones through torch.compile. It takes a minute at first and is then
        about twice as fast on a CPU. It needs a C++ compiler there.
    features: precision of the features that are kept.
    ema: decay of the averaged weights that are validated and saved, less at the start; 0 = no average.
    select: the best epoch has the highest validation "iou" (at 0.5) or "ap", both means over manipulated crops, or the
        lowest "loss" over all crops. Among equals the highest AP decides.
    precision: of the decoder's passes. A CPU without instructions for bf16 computes in fp32.
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
        for field, allowed in _CHOICES.items():
            given = getattr(self, field)
            for value in given if field == "augment" else (given,):
                if value not in allowed:
                    raise SpecError(f"{field} is {value!r}; expected one of {', '.join(map(repr, allowed))}")
        for fields, fits, words in _RANGES:
            for field in fields:
                value = getattr(self, field)
                kind = "a whole number" if field in _WHOLE else "a number"
                if value is None and field in ("views", "norm_momentum"):
                    continue
                if not isinstance(value, int if field in _WHOLE else int | float) or not fits(value):
                    raise SpecError(f"{field} is {value!r}; expected {kind} {words}")
        self._check_architecture()
        if self.target == "image":
            self._check_image_target()

    def _check_image_target(self) -> None:
        """Raise SpecError for settings that do not go with learning from labels alone."""
        wanted = {"model.mode": "whole", "model.image_score": self.model.traits.image_score, "select": "ap"}
        found = (self.model.mode, self.model.image_score, self.select)
        for (field, needed), value in zip(wanted.items(), found, strict=True):
            if value != needed:
                raise SpecError(f'{field} is {value!r}; target = "image" needs {needed!r}')
        if not self.reals:
            raise SpecError('reals is 0; target = "image" learns from real samples, too: reals = 1')

    def _check_architecture(self) -> None:
        """Raise SpecError for settings that a rival does not have."""
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

    def kept_views(self, part: str = "train") -> int:
        """Return how many views of each sample of a part are kept; 0 = none, they are drawn anew in each epoch.

        part: "train" | "valid", which has one, never augmented.
        """
        if not self.model.traits.has_decoder:
            return 0
        if part == "valid":
            return 1
        return self.views if self.views is not None else int(not self.augment)

    @classmethod
    def from_toml(cls, path: str | Path, changes: Sequence[str] = ()) -> TrainConfig:
        """Read a recipe: the table [model] is a ModelSpec, the other keys are the fields of this class.

        changes: "key=value" in TOML's syntax, which replace keys of the file ("lr=3e-4", "model.overlap=32").
        Raises SpecError, which names the key, for a file that cannot be read and for unknown keys and wrong values.
        """
        try:
            fields = tomllib.loads(read_text(path))
            for change in changes:
                _merge(fields, _parse_change(change))
        except OSError as error:
            raise SpecError(f"the recipe {path} cannot be read: {error}") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise SpecError(f"the recipe {path} is no TOML: {error}") from error
        _check_keys(fields, cls, str(path))
        try:
            return cls(**{**fields, "model": ModelSpec.from_json(json.dumps(fields.get("model", {})))})
        except TypeError as error:
            raise SpecError(f"{path}: {error}") from error


# The tables of a recipe, and the dataclass that each is.
_TABLES: dict[str, type] = {
    "model": ModelSpec,
    "model.backbones": BackboneSpec,
    "model.decoder": DecoderSpec,
    "model.calibration": Calibration,
}


def _check_keys(fields: dict[str, Any], kind: Any, source: str, table: str = "") -> None:
    """Raise SpecError for a key that the dataclass `kind` does not have, with the nearest one that it has."""
    known = [field.name for field in dataclasses.fields(kind)]
    for key, value in fields.items():
        name = f"{table}.{key}" if table else key
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
            raise SpecError(f"{source}: unknown key {name!r}; {hint}")
        if name in _TABLES:
            for inner in value if isinstance(value, list) else [value]:
                if isinstance(inner, dict):
                    _check_keys(inner, _TABLES[name], source, name)


def _parse_change(change: str) -> dict[str, Any]:
    """Return "key=value" as TOML reads it; a value that is no TOML is text."""
    key, separator, value = change.partition("=")
    if not separator:
        raise SpecError(f"--set {change}: expected key=value")
    try:
        return tomllib.loads(f"{key} = {value}")
    except tomllib.TOMLDecodeError:
        return tomllib.loads(f"{key} = {json.dumps(value)}")


def _merge(fields: dict[str, Any], change: dict[str, Any]) -> None:
    """Put a change into nested tables, in place."""
    for key, value in change.items():
        if isinstance(value, dict) and isinstance(fields.get(key), dict):
            _merge(fields[key], value)
        else:
            fields[key] = value
