"""Put a verdict into plain words: what it means, what it does not mean, and what no model of this kind can see.

It is written once, for the report and for the page of the service. All of it is text: whoever shows it escapes it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

from declip.results import Localization
from declip.spec import SIZE_CLASSES, Calibration

__all__ = ["LIMITS", "NO_PROBABILITY", "Tone", "Wording", "explain", "looked_for", "percent", "rank_percent"]

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
_UNSAID = (
    "It says nothing of intent. Retouching, captions and what a phone puts together on its own leave traces, too.",
    "It says nothing of content: whether the scene happened, or whether the whole picture was generated.",
)


# What clues look for, by their kind.
_LOOKED_FOR = {
    "copy-move": "copied parts",
    "exemplar-fill": "parts filled from elsewhere in the photo",
    "foreign-grid": "parts on another grid of JPEG",
    "repeated-grain": "repeated grain",
    "saved-once": "parts that were saved less often than the rest",
}
_LEARNT = (
    "In some part of the picture, noise, compression or sharpness differ from the rest in the way that the model "
    "learnt from manipulated photos."
)


class _Texts(NamedTuple):
    """The words of a verdict. {among}, {stronger} and {rest} stand for the rate of false alarms in words, {neither} for
    the clues that found nothing."""

    tone: Tone
    title: str
    meaning: tuple[str, ...]
    caution: str = "It is no probability that this photo is manipulated:"
    because: str = "that depends on how likely it was before, which no program knows."


_TEXTS: dict[str | None, _Texts] = {
    "manipulated": _Texts(
        "manipulated",
        "Traces of manipulation were found",
        (
            "{among} this verdict.",
            "Look at where the map points, and ask for the original file.",
        ),
    ),
    "inconclusive": _Texts(
        "inconclusive",
        "Inconclusive: some traces, not enough to say",
        (
            "The traces are stronger than in most untouched photos.",
            "{among} this verdict{stronger}.",
            "Treat the map as a hint of where to look, and look for other evidence.",
        ),
    ),
    "nothing found": _Texts(
        "nothing",
        "Nothing found",
        (
            "The model saw no trace that it would not often see in untouched photos, too{neither}.",
            "{rest} or more of untouched photos end like this; so do many manipulated ones.",
        ),
        "It is no proof that the photo is genuine.",
        "Many manipulations leave no trace that the model knows, and saving or scaling a photo removes others.",
    ),
    "not examined": _Texts(
        "none",
        "Not examined",
        ("Nothing follows from this: the picture may be manipulated, or not.",),
        "It is no finding of either kind.",
        "The model is wrong about many such pictures; its map is not used.",
    ),
    None: _Texts(
        "none",
        "No verdict",
        ("The score and the map are the model's, and there is no measured rate of false alarms for them.",),
    ),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Wording:
    """A result in words, for someone who has never heard of image forensics.

    summary: how strong the evidence is, compared with untouched photos, or why there is no verdict. flagged: what is in
    the mask. meaning: what follows. caution and because: the first thing that does not follow, and why. unsaid: the
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
    """Put a result into words. calibration: that of the model, even if the result does not follow it."""
    texts = _TEXTS[result.verdict]
    rate = result.false_alarm_rate or 0.0
    among = f"Of 1,000 untouched photos like those that it was compared with, on average at most {1000 * rate:.0f} get"
    both = calibration is not None and len(calibration.steps(calibration.size_class(result.scores.size))) > 1
    neither = f"; neither did the search for {looked_for(result.clues)}" if result.clues else ""
    filled = {"among": among, "stronger": " or a stronger one" if both else "", "rest": percent(1 - rate)}
    filled["neither"] = neither
    return Wording(
        tone=texts.tone,
        title=texts.title,
        summary=_summary(result, calibration),
        flagged=_flagged(result),
        meaning=(*_reasons(result), *(text.format(**filled) for text in texts.meaning), *_without(result)),
        caution=texts.caution,
        because=texts.because,
        unsaid=_UNSAID,
    )


def looked_for(kinds: Iterable[str]) -> str:
    """Return what clues of these kinds look for, in words."""
    return " and ".join(_LOOKED_FOR.get(kind, kind) for kind in kinds)


def _reasons(result: Localization) -> Iterator[str]:
    """Yield a sentence for each clue that a part is flagged for, the strongest first; one for the model."""
    if result.verdict in ("manipulated", "inconclusive"):
        strongest = {region.clue: region for region in reversed(result.regions)}
        for region in sorted(strongest.values(), key=result.regions.index):
            if region.reason is not None:
                yield region.reason
            elif result.verdict == region.verdict == "manipulated":
                yield _LEARNT


def _without(result: Localization) -> Iterator[str]:
    """Yield a sentence about clues that the verdict was calibrated with and that did not look."""
    known = () if result.rule.calibration is None or result.verdict is None else result.rule.calibration.clues
    if missing := [kind for kind in known if kind not in result.clues]:
        yield (
            f"Nobody looked for {looked_for(missing)}, with which this verdict was calibrated. So less is found; "
            "untouched photos do not get a verdict more often."
        )


def percent(share: float) -> str:
    """Return 0.0123 as "1.23 %": without zeros at the end, and never "0 %" for what is more."""
    if 0 < share < 0.0001:
        return "< 0.01 %"
    return f"{100 * share:.2f}".rstrip("0").rstrip(".") + " %"


def rank_percent(rank: float) -> str:
    """Return 0.9947 as "99.4 %": rounded down, so that it never says more than was measured."""
    return f"{math.floor(1000 * rank + 1e-9) / 10:g} %"


def _summary(result: Localization, calibration: Calibration | None) -> str:
    if result.not_examined is not None:
        return f"{result.not_examined} So there is no verdict."
    if result.verdict is None:
        return f"The image score is {result.image_score:.3f}. {_no_verdict(result, calibration)}"
    assert calibration is not None and result.score is not None
    if result.verdict == "nothing found" and result.score == 0:
        return "No part of this photo stands out."
    size_class = calibration.size_class(result.scores.size)
    pictures, photos = len(calibration.untouched[size_class]), calibration.photos[size_class]
    pieces = "" if pictures == photos else f" (with pieces of them {pictures} pictures)"
    said = (
        f"The strongest part of this photo is stronger than anything in {rank_percent(result.score)} of untouched "
        f"photos of its size ({SIZE_CLASSES[size_class]}), as far as the {photos} that it was compared with{pieces} "
        "tell"
    )
    steps = calibration.steps(size_class)
    match result.verdict:
        case "manipulated":
            return f"{said}."
        case "inconclusive" if len(steps) > 1:
            return f"{said}; “manipulated” asks for {percent(1 - steps[0].rate)}."
        case "inconclusive":
            return f"{said}. With so few, no photo of this size is called “manipulated”."
    return f"{said}. A part is flagged from {percent(1 - steps[-1].rate)} on."


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
    if result.out_of_scope is not None:
        why += f" {result.out_of_scope} The model is wrong about many such pictures."
    return f"{why} The map can be looked at all the same."


def _flagged(result: Localization) -> str:
    count, area = len(result.regions), percent(result.area)
    if count:
        return f"{area} of the picture is flagged, in {count} part{'s' if count > 1 else ''}."
    if result.area > 0:
        return f"{area} of the picture is flagged, in specks too small to be listed."
    return "No part of the picture is flagged."
