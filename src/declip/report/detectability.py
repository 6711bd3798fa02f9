"""Could an edit have been seen in this very file? Small known edits are put into the photo and looked for.

    found = declip.detectability(declip.load(), "photo.jpg")
    print(*found.sentences, sep="\\n")

The edits (`probes`) are put into the decoded photo, which is then saved as its file is saved: a JPEG with the same
quantization tables and chroma subsampling, anything else without loss. The whole photo is localized each time, since a
part of it would be compared with untouched photos of another size. A tiled model sees several edits at once, as far
apart as its tiles are wide: no tile has two of them, and each is judged by itself. A model that looks at the photo as a
whole, or measures against the whole, gets one edit at a time, and so do edits of whose copy more parts are flagged than
a result lists.

An edit is found if the flagged parts that touch its place overlap with it by an IoU of at least 0.2. One copy
without any edit is saved and localized as well; what is flagged in it already is no place for an edit.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy import stats

from declip._version import __version__
from declip.errors import ImageError
from declip.files import Content, write_together
from declip.images.encode import encode_png
from declip.images.jpeg import save_again
from declip.localize.localizer import Localizer
from declip.regions import MOST
from declip.report.pictures import Tile, contact_sheet
from declip.report.probes import KINDS, Kind, Probe, in_rounds, make_probes
from declip.report.trials import LEAST_IOU, Trial, judge
from declip.report.wording import percent
from declip.results import Localization, Photo, PictureLike, check_type

__all__ = ["Detectability", "Share", "detectability", "for_report"]

CONFIDENCE = 0.95
_QUICK = 3_000_000  # px, up to which a report looks into it unasked
_NAMES: dict[Kind, str] = {
    "in-painting": "in-painting",
    "foreign part": "foreign parts",
    "copy-move": "copies within the photo",
}
_CAUTION = (
    "This is a test of the method on this file, and never a verdict on the photo. The edits are simple: where they are "
    "missed, others will be missed, too; where they are found, careful edits, smaller ones, and those of newer "
    "generators may still be missed."
)
_NO_VERDICT = (
    "there is no verdict on such a photo, so that “found” would mean nothing: what untouched photos show is flagged, "
    "too; use a model with a calibration for this mode and size, and its own threshold"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Share:
    """How many of the edits of one kind were found. low, high: exact binomial interval of that share, at 95 %."""

    kind: Kind
    found: int
    tried: int
    low: float
    high: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Detectability:
    """What was found of small known edits in one photo. It is a test of the method on this file, and no verdict.

    saving: how the copies were saved, for people. control: the result for a copy without any edit. rounds: how many
    copies with edits were localized. seed: of all that was drawn, from the SHA-256 of the file (or of the pixels).
    """

    saving: str
    control: Localization = field(repr=False)
    trials: tuple[Trial, ...]
    rounds: int
    seed: str
    seconds: float

    @property
    def shares(self) -> tuple[Share, ...]:
        """One row for each kind of which there was any edit."""
        return tuple(_share(kind, of) for kind in KINDS if (of := [each for each in self.trials if each.kind == kind]))

    @property
    def area(self) -> float:
        """Mean share of the photo that an edit has."""
        return float(np.mean([trial.area for trial in self.trials]))

    @property
    def sentences(self) -> tuple[str, ...]:
        """What was found, what follows from it, and what does not."""
        each = ", ".join(f"{_NAMES[row.kind]} {row.found} of {row.tried}" for row in self.shares)
        said = [
            "In this file, at its size and compression, simple edits of "
            f"{percent(round(self.area, 3) or self.area)} of the picture would have been found: {each}.",
            _meaning(self.shares),
        ]
        if self.control.verdict != "nothing found":
            said.append(f"A copy that was saved without any edit gets “{self.control.verdict}”, too.")
        return (*said, _CAUTION, self.saving)

    def sheet(self) -> Image.Image:
        """Draw all edits: their outlines, blue if found and yellow if missed, and what is flagged there, red."""
        return contact_sheet(
            (
                f"{_NAMES[row.kind]}: {row.found} of {row.tried} found",
                [
                    Tile(trial.picture, trial.place, trial.flagged, "found" if trial.found else "missed")
                    for trial in self.trials
                    if trial.kind == row.kind
                ],
            )
            for row in self.shares
        )

    def save(self, folder: str | Path, *, force: bool = False) -> None:
        """Write the facts and the sheet: FOLDER/NAME.edits.json and .png. Raises ImageError "exists" unless force."""
        name = f"{Path(self.control.name).name}.edits"
        facts, drawn = json.dumps(self.to_dict(), indent=1), encode_png(np.asarray(self.sheet()))
        contents: dict[Path, Content] = {Path(folder, f"{name}.json"): f"{facts}\n", Path(folder, f"{name}.png"): drawn}
        try:
            write_together(contents, new=not force)
        except FileExistsError as error:
            message = f"{folder} has its edits already; force=True (--force) overwrites them"
            raise ImageError(self.control.name, "exists", message) from error

    def to_dict(self) -> dict[str, Any]:
        """Return the facts, ready for JSON: the keys of docs/detectability.md."""
        height, width = self.control.scores.shape
        facts = ("kind", "box", "area", "iou", "found")
        return {
            "image": self.control.name,
            "width": width,
            "height": height,
            "sentences": list(self.sentences),
            "kinds": [dataclasses.asdict(row) for row in self.shares],
            "confidence": CONFIDENCE,
            "least_iou": LEAST_IOU,
            "area": self.area,
            "edits": [{name: getattr(trial, name) for name in facts} for trial in self.trials],
            "control": {"verdict": self.control.verdict, "area": self.control.area},
            "rounds": self.rounds,
            "seed": self.seed,
            "model": self.control.model,
            "sha256": self.control.sha256,
            "mode": self.control.mode,
            "precision": self.control.precision,
            "declip": __version__,
            "seconds": self.seconds,
        }


def for_report(
    localizer: Localizer, photo: Photo, result: Localization, wanted: bool | None = None
) -> Detectability | None:
    """Return what a report tells of this: what `detectability` gives, or None.

    wanted: None leaves it out unless nothing was found in a photo of at most 3 MP, and where it cannot be tried.
    """
    if wanted is None:
        if result.verdict != "nothing found" or result.scores.size > _QUICK:
            return None
        try:
            return detectability(localizer, photo)
        except ImageError:
            return None
    return detectability(localizer, photo) if wanted else None


def detectability(localizer: Localizer, picture: PictureLike) -> Detectability:
    """Put up to 24 small known edits into a photo, and see which of them this localizer finds.

    picture: as for `read_photo`. The same file gives the same edits. A photo is localized 4 to 25 times: as often as it
    takes to keep edits apart, so that a photo of 1 MP takes hardly less time than one of 12 MP.

    Raises ImageError as `Localizer` does; of kind "input" also for a photo that gets no verdict (no photograph, no
    calibration for its size or mode, a threshold of one's own), and where no edit could be placed.
    """
    check_type(localizer, Localizer, "declip.load('mini')")
    start = time.perf_counter()
    photo = localizer.read(picture)
    seed = hashlib.sha256(photo.data or photo.pixels.tobytes()).hexdigest()
    rng = np.random.default_rng(int(seed, 16))
    copy, saving = save_again(photo, photo.pixels)
    control = localizer(copy)
    if control.verdict is None or control.verdict == "not examined":
        raise ImageError(photo.name, "input", control.not_examined or _NO_VERDICT)
    edits = make_probes(photo.pixels, control.mask, rng)
    if not edits:
        raise ImageError(
            photo.name, "input", "no place was found in it where a test edit could be seen; nothing to try"
        )
    by_itself = localizer.mode == "tiled" and localizer.spec.statistics == "tile"
    rounds = in_rounds(edits, localizer.spec.input_size if by_itself else math.inf)
    judged = list(_localized(localizer, photo, rounds))
    trials = [trial for members in judged for trial in members]
    order = [(probe.kind, probe.box) for probe in edits]
    trials.sort(key=lambda trial: order.index((trial.kind, trial.box)))
    return Detectability(
        saving=saving,
        control=control,
        trials=tuple(trials),
        rounds=len(judged),
        seed=seed,
        seconds=time.perf_counter() - start,
    )


def _localized(localizer: Localizer, photo: Photo, rounds: Sequence[Sequence[Probe]]) -> Iterator[list[Trial]]:
    """Save, localize and judge one copy of the photo for each round."""
    copies: list[Photo] = []

    def made() -> Iterator[Photo]:
        for members in rounds:
            pixels = photo.pixels.copy()
            for probe in members:
                x0, y0, x1, y1 = probe.box
                pixels[y0:y1, x0:x1][probe.mask] = probe.patch[probe.mask]
            copies.append(save_again(photo, pixels)[0])
            yield copies[-1]

    for members, result in zip(rounds, localizer.map(made()), strict=True):
        if isinstance(result, ImageError):
            raise result
        copy = copies.pop(0)
        if len(members) > 1 and len(result.regions) >= MOST:  # there may be further parts, which the others crowd out
            yield from _localized(localizer, photo, [[probe] for probe in members])
        else:
            yield judge(members, copy.pixels, result.mask)


def _share(kind: Kind, trials: Sequence[Trial]) -> Share:
    found = sum(trial.found for trial in trials)
    interval = stats.binomtest(found, len(trials)).proportion_ci(CONFIDENCE, method="exact")
    return Share(kind=kind, found=found, tried=len(trials), low=float(interval.low), high=float(interval.high))


def _meaning(shares: Sequence[Share]) -> str:
    found, tried = sum(row.found for row in shares), sum(row.tried for row in shares)
    if not found:
        return "None was found: of edits like these, “nothing found” says next to nothing in this file."
    if found == tried:
        return "All of them were found: edits like these would probably have been seen in this file."
    seen, missed = (
        [_NAMES[row.kind] for row in shares if (2 * row.found > row.tried) is most] for most in (True, False)
    )
    if not missed:
        return "Most of them were found, but not all: many edits like these would have been seen in this file."
    if not seen:
        return "Most of them were missed: “nothing found” says little about edits like these in this file."
    one, other = " and ".join(seen), " and ".join(missed)
    return f"In this file, “nothing found” says something about simple {one}, and little about {other}."
