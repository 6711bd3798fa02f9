"""A verdict in plain words: what it means, what it does not mean, and what no model of this kind can see.

Written once, for the report and the page of the service. All of it is text, to be escaped by whoever shows it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from declip.types import Calibration, Localization, Mode, Precision

__all__ = ["LIMITS", "NO_PROBABILITY", "Tone", "Wording", "explain", "percent"]

Tone: TypeAlias = Literal["manipulated", "inconclusive", "nothing", "none"]

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

    summary: the score, what decided, and the rate of false alarms. flagged: of the map. meaning: what follows; caution
    and because: the first thing that does not follow, and why; unsaid: the others.
    """

    tone: Tone
    title: str
    summary: str
    flagged: str
    meaning: tuple[str, ...]
    caution: str
    because: str
    unsaid: tuple[str, ...]


def explain(result: Localization, calibration: Calibration | None, *, mode: Mode, precision: Precision) -> Wording:
    """The words for a result. calibration: of the model; mode, precision: as the result was computed in."""
    facts = result.to_dict()
    caution, because = _caution(facts)
    return Wording(
        tone=_tone(facts),
        title=_title(facts),
        summary=_summary(facts, calibration, mode, precision),
        flagged=_flagged(facts),
        meaning=tuple(_meaning(facts)),
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


def _tone(facts: dict[str, Any]) -> Tone:
    match facts["verdict"]:
        case "manipulated":
            return "manipulated"
        case "inconclusive":
            return "inconclusive"
        case "nothing found":
            return "nothing"
    return "none"


def _title(facts: dict[str, Any]) -> str:
    match _tone(facts):
        case "manipulated":
            return "Traces of manipulation were found"
        case "inconclusive":
            return "Inconclusive: some traces, not enough to say"
        case "nothing":
            return "Nothing found"
        case "none":
            return "No verdict"


def _summary(facts: dict[str, Any], calibration: Calibration | None, mode: Mode, precision: Precision) -> str:
    score, threshold, rate = facts["score"], facts["score_threshold"], facts["false_alarm_rate"]
    match _tone(facts):
        case "manipulated":
            return (
                f"The photo scores {score:.3f}, at or above the threshold of {threshold:.3f}. Of untouched photos like "
                f"those the model was calibrated on, at most {percent(rate)} score as high."
            )
        case "inconclusive":
            strictest = calibration.steps()[0][2] if calibration is not None else 1.0
            return (
                f"The photo scores {score:.3f}, at or above {threshold:.3f}, which at most {percent(rate)} of "
                f"untouched photos reach, but below the {strictest:.3f} that “manipulated” asks for."
            )
        case "nothing":
            return (
                f"The photo scores {score:.3f}, below the threshold of {threshold:.3f} that at most {percent(rate)} of "
                f"untouched photos reach."
            )
        case "none":
            return f"The photo scores {score:.3f}. {_no_verdict(calibration, mode, precision)}"


def _no_verdict(calibration: Calibration | None, mode: Mode, precision: Precision) -> str:
    if calibration is None or not calibration.image_thresholds:
        why = (
            "The model was never calibrated on untouched photos, so nobody knows how often one of them scores as high."
        )
    else:
        why = (
            f"The model's verdicts were calibrated in {calibration.mode} mode at precision “{calibration.precision}”; "
            f"this ran in {mode} mode at “{precision}”."
        )
    return f"{why} The map can be looked at all the same."


def _flagged(facts: dict[str, Any]) -> str:
    regions, area = facts["regions"], facts["area"]
    if regions:
        parts = f"{len(regions)} part{'s' if len(regions) > 1 else ''}"
        said = f"{percent(area)} of the picture is flagged, in {parts}."
    elif area > 0:
        said = f"{percent(area)} of the picture is flagged, in specks too small to be listed."
    else:
        said = "No part of the picture is flagged."
    if facts["verdict"] == "nothing found" and regions:
        said += " What is flagged is too weak, or too small, to count for the picture as a whole."
    elif facts["verdict"] in ("manipulated", "inconclusive") and not regions:
        said += (
            " The score of the whole picture rests on its highest values, which all stay below the map's own threshold "
            "or are tiny."
        )
    return said


def _meaning(facts: dict[str, Any]) -> list[str]:
    rate = facts["false_alarm_rate"]
    match _tone(facts):
        case "manipulated":
            return [
                "In some part of the picture, noise, compression or sharpness differ from the rest in the way that the "
                "model learnt from manipulated photos.",
                f"An untouched photo does this rarely: among 1,000 of them, up to about {1000 * rate:.0f} would be "
                f"reported like this one.",
                "Look at where the map points, and ask for the original file.",
            ]
        case "inconclusive":
            return [
                "The traces are stronger than in most untouched photos and weaker than the level kept for "
                "“manipulated”.",
                f"Among 1,000 untouched photos, up to about {1000 * rate:.0f} would score at least as high as this "
                f"level.",
                "Treat the map as a hint of where to look, and look for other evidence.",
            ]
        case "nothing":
            return [
                "The model saw no trace that it would not often see in untouched photos, too.",
                f"{percent(1 - rate)} or more of untouched photos end like this; so do many manipulated ones.",
            ]
        case "none":
            return ["The score and the map are the model's, and there is no measured rate of false alarms for them."]


def _caution(facts: dict[str, Any]) -> tuple[str, str]:
    if facts["verdict"] == "nothing found":
        return (
            "It is no proof that the photo is genuine.",
            "Many manipulations leave no trace that the model knows, and saving or scaling a photo removes others.",
        )
    return (
        "It is no probability that this photo is manipulated:",
        "that depends on how likely it was before, which no program knows.",
    )
