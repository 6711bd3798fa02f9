"""A verdict in plain words: what it means, what it does not mean, and what no model of this kind can see.

Written once, for the report and the page of the service. All of it is text, to be escaped by whoever shows it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

from declip.results import Localization
from declip.spec import SIZE_CLASSES, Calibration

__all__ = ["LIMITS", "NO_PROBABILITY", "Tone", "Wording", "explain", "percent", "rank_percent"]

Tone: TypeAlias = Literal["manipulated", "inconclusive", "nothing", "none"]
_TONES: dict[str | None, Tone] = {
    "manipulated": "manipulated",
    "inconclusive": "inconclusive",
    "nothing found": "nothing",
    "not examined": "none",
    None: "none",
}
_TITLES = {
    "manipulated": "Traces of manipulation were found",
    "inconclusive": "Inconclusive: some traces, not enough to say",
    "nothing found": "Nothing found",
    "not examined": "Not examined",
    None: "No verdict",
}

LIMITS = (
    "The model knows the manipulations it was trained on. Others, and other generators, may stay unseen.",
    "It sees traces in the pixels. Scaling, strong compression, filters and screenshots remove them; a photo that went "
    "through a messenger may show nothing, whatever was done to it.",
    "Sharp text, overlays, areas out of focus, panoramas, and pictures that a phone puts together may be flagged "
    "although nobody meant to deceive.",
    "A picture that was generated or processed as a whole has no part that differs from the rest.",
    "The outline of a flagged part is rough; more or less than that may have been changed.",
)
NO_PROBABILITY = (
    "A score says how much a place looks like the manipulated ones that the model learnt from. It is no probability."
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Wording:
    """A result in words, for someone who has never heard of image forensics.

    summary: how strong the evidence is, compared with untouched photos, or why there is no verdict. flagged: what is in
    the mask. meaning: what follows; caution and because: the first thing that does not follow, and why; unsaid: the
    others.
    """

    tone: Tone
    title: str
    summary: str
    flagged: str
    meaning: tuple[str, ...]
    caution: str
    because: str
    unsaid: tuple[str, ...]


def explain(result: Localization, calibration: Calibration | None) -> Wording:
    """Put a result into words. calibration: the model's, whether the result follows it or not."""
    caution, because = _caution(result)
    return Wording(
        tone=_TONES[result.verdict],
        title=_TITLES[result.verdict],
        summary=_summary(result, calibration),
        flagged=_flagged(result),
        meaning=_meaning(result, calibration),
        caution=caution,
        because=because,
        unsaid=(
            "It says nothing of intent. Retouching, captions and what a phone puts together on its own leave traces, "
            "too.",
            "It says nothing of content: whether the scene happened, or whether the whole picture was generated.",
        ),
    )


def percent(share: float) -> str:
    """0.0123 → "1.23 %"; whole where it is, and never "0 %" for what is more."""
    if 0 < share < 0.0001:
        return "< 0.01 %"
    return f"{100 * share:.2f}".rstrip("0").rstrip(".") + " %"


def rank_percent(rank: float) -> str:
    """0.9947 → "99.4 %": rounded down, so that it never says more than was measured."""
    return f"{math.floor(1000 * rank + 1e-9) / 10:g} %"


def _summary(result: Localization, calibration: Calibration | None) -> str:
    if result.not_examined is not None:
        return f"{result.not_examined} So there is no verdict."
    if result.verdict is None:
        return f"The image score is {result.image_score:.3f}. {_no_verdict(result, calibration)}"
    assert calibration is not None and result.score is not None
    size_class = calibration.size_class(result.scores.size)
    said = f"The strongest part of this photo is stronger than anything in {rank_percent(result.score)} of untouched "
    said += f"photos of its size ({SIZE_CLASSES[size_class]}), as far as the {_compared(calibration, size_class)} tell"
    steps = calibration.steps(size_class)
    match result.verdict:
        case "manipulated":
            return f"{said}."
        case "inconclusive" if len(steps) > 1:
            return f"{said}; “manipulated” asks for {percent(1 - steps[0].rate)}."
        case "inconclusive":
            return f"{said}. With so few, no photo of this size is called “manipulated”."
    if result.score == 0:
        return "No part of this photo stands out."
    return f"{said}. A part is flagged from {percent(1 - steps[-1].rate)} on."


def _compared(calibration: Calibration, size_class: int) -> str:
    """Say how many pictures the photo was compared with."""
    values, photos = len(calibration.untouched[size_class]), calibration.photos[size_class]
    pieces = "" if values == photos else f" (with pieces of them {values} pictures)"
    return f"{photos} that it was compared with{pieces}"


def _no_verdict(result: Localization, calibration: Calibration | None) -> str:
    if calibration is None or not any(calibration.untouched):
        why = (
            "The model was never calibrated on untouched photos, so nobody knows how often one of them scores as high."
        )
    elif (calibration.mode, calibration.precision) != (result.mode, result.precision):
        why = (
            f"The model's verdicts were calibrated in {calibration.mode} mode at precision “{calibration.precision}”; "
            f"this ran in {result.mode} mode at “{result.precision}”."
        )
    elif result.rule.calibration is None:
        why = "The map was cut at a threshold of your own, for which no rate of false alarms was measured."
    else:
        count = calibration.photos[calibration.size_class(result.scores.size)]
        why = f"The model was calibrated with too few untouched photos of this size for a verdict: {count}."
    scope = (
        "" if result.out_of_scope is None else f" {result.out_of_scope} The model is wrong about many such pictures."
    )
    return f"{why}{scope} The map can be looked at all the same."


def _flagged(result: Localization) -> str:
    regions, area = result.regions, result.area
    if regions:
        parts = f"{len(regions)} part{'s' if len(regions) > 1 else ''}"
        return f"{percent(area)} of the picture is flagged, in {parts}."
    if area > 0:
        return f"{percent(area)} of the picture is flagged, in specks too small to be listed."
    return "No part of the picture is flagged."


def _meaning(result: Localization, calibration: Calibration | None) -> tuple[str, ...]:
    rate = result.false_alarm_rate or 0.0
    among = f"Of 1,000 untouched photos like those that it was compared with, on average at most {1000 * rate:.0f} get"
    match result.verdict:
        case "manipulated":
            return (
                "In some part of the picture, noise, compression or sharpness differ from the rest in the way that the "
                "model learnt from manipulated photos.",
                f"{among} this verdict.",
                "Look at where the map points, and ask for the original file.",
            )
        case "inconclusive":
            return (
                "The traces are stronger than in most untouched photos.",
                f"{among} this verdict{' or a stronger one' if _has_both(result, calibration) else ''}.",
                "Treat the map as a hint of where to look, and look for other evidence.",
            )
        case "nothing found":
            return (
                "The model saw no trace that it would not often see in untouched photos, too.",
                f"{percent(1 - rate)} or more of untouched photos end like this; so do many manipulated ones.",
            )
        case "not examined":
            return ("Nothing follows from this: the picture may be manipulated, or not.",)
    return ("The score and the map are the model's, and there is no measured rate of false alarms for them.",)


def _has_both(result: Localization, calibration: Calibration | None) -> bool:
    """Whether a photo of this size can be called manipulated as well as inconclusive."""
    return calibration is not None and len(calibration.steps(calibration.size_class(result.scores.size))) > 1


def _caution(result: Localization) -> tuple[str, str]:
    if result.verdict == "not examined":
        return (
            "It is no finding of either kind.",
            "The model is wrong about many such pictures; its map is not used.",
        )
    if result.verdict == "nothing found":
        return (
            "It is no proof that the photo is genuine.",
            "Many manipulations leave no trace that the model knows, and saving or scaling a photo removes others.",
        )
    return (
        "It is no probability that this photo is manipulated:",
        "that depends on how likely it was before, which no program knows.",
    )
