"""Descriptions of models: what is needed to rebuild one, to feed it, and to say what its scores mean.

Frozen, keyword-only, slotted dataclasses, validated when they are made. Sizes are in pixels.
"""

from declip.spec.calibration import SIZE_CLASSES, Calibration, Step
from declip.spec.choices import (
    ARCHITECTURES,
    STATISTICS,
    Architecture,
    DecoderKind,
    Found,
    ImageScore,
    Mode,
    Precision,
    Target,
    Traits,
    check_choice,
)
from declip.spec.model import FORMAT_VERSION, BackboneSpec, DecoderSpec, ModelSpec

__all__ = [
    "ARCHITECTURES",
    "FORMAT_VERSION",
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
    "Step",
    "Target",
    "Traits",
    "check_choice",
]

# The keys of a weight file's metadata: the ModelSpec, and the exact answer to the probe of `declip.models.probe`.
SPEC_KEY = "declip"
PROBE_KEY = "declip-probe"
