"""declip shows where a photograph has been manipulated.

    import declip

    localizer = declip.load()
    result = localizer("photo.jpg")
    result.mask, result.score, result.verdict
    declip.overlay("photo.jpg", result).save("photo.overlay.png")

Importing it imports nothing else: each name is looked up when it is first used, so that what needs torch is loaded
only by those who use it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from declip.errors import (
    DatasetError,
    DeclipError,
    ExportError,
    ImageError,
    MissingExtraError,
    SpecError,
    TrainingError,
    WeightsError,
)

if TYPE_CHECKING:
    from declip import (
        baselines,
        batch,
        calibration,
        datasets,
        evaluation,
        export,
        image,
        metrics,
        nn,
        perturbations,
        report,
        server,
        synthesis,
        training,
    )
    from declip.catalog import MODELS
    from declip.evaluation import Evaluation, evaluate
    from declip.image import overlay
    from declip.localizer import Localizer, load
    from declip.types import (
        BackboneSpec,
        Calibration,
        DecoderSpec,
        Engine,
        Localization,
        ModelCard,
        ModelSpec,
        Photo,
        Predictor,
        Region,
        Sample,
    )

__version__ = "0.1.0"

__all__ = [
    "MODELS",
    "BackboneSpec",
    "Calibration",
    "DatasetError",
    "DeclipError",
    "DecoderSpec",
    "Engine",
    "Evaluation",
    "ExportError",
    "ImageError",
    "Localization",
    "Localizer",
    "MissingExtraError",
    "ModelCard",
    "ModelSpec",
    "Photo",
    "Predictor",
    "Region",
    "Sample",
    "SpecError",
    "TrainingError",
    "WeightsError",
    "baselines",
    "batch",
    "calibration",
    "datasets",
    "evaluate",
    "evaluation",
    "export",
    "image",
    "load",
    "metrics",
    "nn",
    "overlay",
    "perturbations",
    "report",
    "server",
    "synthesis",
    "training",
]

_MODULES = frozenset(
    {
        "baselines",
        "batch",
        "calibration",
        "datasets",
        "evaluation",
        "export",
        "image",
        "metrics",
        "nn",
        "perturbations",
        "report",
        "server",
        "synthesis",
        "training",
    }
)
_HOME = {
    "MODELS": "catalog",
    "Evaluation": "evaluation",
    "Localizer": "localizer",
    "evaluate": "evaluation",
    "load": "localizer",
    "overlay": "image",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'declip' has no attribute {name!r}")
    try:
        if name in _MODULES:
            return importlib.import_module(f"declip.{name}")
        value = getattr(importlib.import_module(f"declip.{_HOME.get(name, 'types')}"), name)
    except ModuleNotFoundError as error:
        if missing := MissingExtraError.behind(error):
            raise missing from error
        raise
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
