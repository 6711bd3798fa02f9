"""Calibrate the embedded model together with the clues, and measure what each of them adds to the verdict.

    python tools/verdicts.py look       what model and clues see; hours, can be stopped and goes on where it was
    python tools/verdicts.py calibrate  writes src/declip/assets/mini.onnx: same weights, another calibration
    python tools/verdicts.py table      writes the tables of docs/clues.md

Looked at are photos/calibrate (and pieces of the large ones) and photos/valid, each as it is and saved again once
and twice (`calibration.saved_again`), and forged/dev as it is and as JPEG 90. --work has a line of JSON for each
picture and looker, so that a clue that comes later costs only itself, and the maps of the forged ones.

The verdict ranks among photos/calibrate. The scale of the model is that of photos/valid as they are, the scales of the
clues are those that come with them. Nothing is chosen on forged/dev. "Alone" is a calibration of the same photos with
nothing else.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from model_page import ROOT, between
from numpy.typing import NDArray

from declip import calibration, clues
from declip.calibration import Place, Untouched
from declip.clues.findings import scale_of
from declip.engines import open_engine
from declip.images.encode import encode_jpeg
from declip.images.mapfiles import read_mask
from declip.images.read import EXTENSIONS, read_photo
from declip.localize.localizer import Localizer, load
from declip.models.respec import with_spec
from declip.results import Sample
from declip.spec import MODEL, SIZE_CLASSES, Calibration, Scale

MINI = ROOT / "src/declip/assets/mini.onnx"
PAGE = ROOT / "docs/clues.md"
SAVES = 2
PIECES = 4  # of a large photo, for each size
QUALITY = 90  # of forged pictures that are saved again
SAVED = ("as is", "saved once more", "saved twice more")


class Job(NamedTuple):
    """A picture to look at. version: how often it is saved again, of forged ones the quality. lookers: what is new."""

    group: str
    path: Path
    piece: tuple[int, int] | None
    version: int
    lookers: tuple[str, ...]

    @property
    def key(self) -> tuple[str, str, int]:
        """What its lines have: group, name and version."""
        name = self.path.name if self.piece is None else f"{self.path.name} from {self.piece[1]} of {self.piece[0]}"
        return self.group, f"{self.path.parent.parent.name}/{self.path.parent.name}/{name}", self.version


def jobs(data: Path, work: Path, lookers: Sequence[str]) -> Iterator[Job]:
    """Yield what was not looked at yet, in an order in which a part is of use: forged ones early, copies late."""
    there = looked(work)
    order = [("calibrate", 0), ("calibrate", 1), ("valid", 0), ("dev", 0), ("dev", QUALITY)]
    order += [("valid", 1), ("calibrate", 2), ("valid", 2)]
    for group, version in order:
        folders = [data / "photos" / group] if group != "dev" else sorted((data / "forged/dev").glob("*/image"))
        for path in sorted(path for folder in folders for path in folder.iterdir() if path.suffix in EXTENSIONS):
            for piece in [None, *(pieces(path) if group == "calibrate" else ())]:
                job = Job(group, path, piece, version, ())
                missing = tuple(looker for looker in lookers if looker not in there.get(job.key, {}))
                if missing:
                    yield job._replace(lookers=missing)


@cache
def pieces(path: Path) -> list[tuple[int, int]]:
    """Return (size class, number) of the pieces of a large photo."""
    photo = read_photo(path)
    own = Calibration.size_class(photo.pixels.size // 3)
    return [(i, number) for i in range(1, own + 1) for number in range(len(calibration.cut(photo, i, PIECES)))]


def looked(work: Path) -> dict[tuple[str, str, int], dict[str, Any]]:
    """Return what is known: by group, name and version, the evidence of each looker beside size and scope."""
    found: dict[tuple[str, str, int], dict[str, Any]] = {}
    path = work / "looked.jsonl"
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        row = json.loads(line)
        found.setdefault((row["group"], row["name"], row["version"]), {}).update(row)
    return found


@cache
def localizer() -> Localizer:
    cv2.setNumThreads(1)
    return load(MINI, threads=1).variant(clues="none")


def look(job: Job, work: Path) -> dict[str, Any]:
    """Return the line of one picture; keep the maps of a forged one."""
    photo = read_photo(job.path)
    if job.piece is not None:
        photo = calibration.cut(photo, job.piece[0], PIECES)[job.piece[1]]
    if job.group != "dev":
        photo = calibration.saved_again(photo, job.version)
    elif job.version:
        again = read_photo(encode_jpeg(photo.pixels, job.version))
        photo = dataclasses.replace(again, name=photo.name)
    group, name, version = job.key
    row: dict[str, Any] = {"group": group, "name": name, "version": version, "size": photo.size}
    for looker in job.lookers:
        kept: dict[str, Any] = {}
        if looker == MODEL:
            result = localizer()(photo)
            seen = Untouched.of(Place(0, 0), result.scores, (localizer().rule.threshold,))
            row |= {"scope": result.out_of_scope is None, MODEL: seen.evidence[0]}
            kept["scores"] = result.scores
        else:
            findings = clues.CLUES[looker].examine(photo)  # type: ignore[index]
            row[looker] = max((finding.evidence for finding in findings), default=0.0)
            kept["masks"] = np.array([finding.mask for finding in findings], bool)
            kept["evidence"] = np.array([finding.evidence for finding in findings])
        if group == "dev":
            np.savez_compressed(maps_of(work, job.key, looker), **kept)
    return row


def maps_of(work: Path, key: tuple[str, str, int], looker: str) -> Path:
    (work / "maps").mkdir(parents=True, exist_ok=True)
    return work / "maps" / f"{key[1].replace('/', '_')}-{key[2]}-{looker}.npz"


def calibrated(work: Path, kinds: Sequence[str], *, model: bool = True) -> Calibration:
    """Return the calibration of model and clues, by what was looked at: with as many copies as all photos have."""
    there = {key: row for key, row in looked(work).items() if {*kinds, MODEL} <= set(row)}
    names = sorted({name for group, name, version in there if group == "calibrate" and version == 0})
    saves = max(n for n in range(SAVES + 1) if all(("calibrate", name, n) in there for name in names))
    owners = {name: name.partition(" from ")[0] for name in names}
    numbers = {owner: i for i, owner in enumerate(sorted(set(owners.values())))}
    photos = []
    for picture, name in enumerate(names):
        for row in (there["calibrate", name, version] for version in range(saves + 1)):
            if row["scope"]:
                seen = {kind: row[kind] for kind in kinds}
                place = Place(numbers[owners[name]], picture)
                evidence = row[MODEL] if model else 0.0
                photos.append(Untouched(place.owner, picture, row["size"][0] * row["size"][1], (evidence,), seen))
    spec = localizer().spec
    base = Calibration(saves=saves, scales=(model_scale(there),), mode=spec.mode, rates=calibration.RATES)
    scales = [Scale(kind, *scale_of(kind)) for kind in kinds]  # type: ignore[arg-type]
    return calibration.candidates(photos, (localizer().rule.threshold,), base, scales)[0]


def model_scale(there: dict[tuple[str, str, int], dict[str, Any]]) -> Scale:
    valid = [row for (group, _, version), row in there.items() if (group, version) == ("valid", 0) and row["scope"]]
    return calibration.model_scale([row[MODEL] for row in valid])


# --- tables ---------------------------------------------------------------------------------------------------------


def judged(work: Path, key: tuple[str, str, int], found: Calibration, kinds: Sequence[str], *, model: bool) -> Any:
    """Return the decision on a forged picture."""
    scores = np.load(maps_of(work, key, MODEL))["scores"]
    findings = []
    for kind in kinds:
        kept = np.load(maps_of(work, key, kind))
        for mask, evidence in zip(kept["masks"], kept["evidence"], strict=True):
            findings.append(clues.Finding(kind=kind, mask=mask, evidence=float(evidence), rate=0.01, reason=""))  # type: ignore[arg-type]
    rule = dataclasses.replace(localizer().rule, threshold=found.threshold, calibration=found)
    return rule.decide(scores if model else np.zeros_like(scores), findings)


def table(work: Path, data: Path) -> str:
    """Return the tables: forged pictures, then untouched photos."""
    everything = tuple(clues.CLUES)
    ways: list[tuple[str, tuple[str, ...], bool]] = [("model alone", (), True)]
    ways += [(f"{kind} alone", (kind,), False) for kind in everything]
    ways.append(("together", everything, True))
    head = [
        "| | as is: at least inconclusive | mean IoU | JPEG 90: at least inconclusive | mean IoU |",
        "|---|---|---|---|---|",
    ]
    forged = [key for key, row in looked(work).items() if key[0] == "dev" and {*everything, MODEL} <= set(row)]
    truths = {key: truth(data, key) for key in forged}
    rows, alarms = [], []
    for name, kinds, model in ways:
        found = calibrated(work, kinds, model=model)
        cells = []
        for version in (0, QUALITY):
            decisions = {key: judged(work, key, found, kinds, model=model) for key in forged if key[2] == version}
            flagged = [each.verdict in ("manipulated", "inconclusive") for each in decisions.values()]
            ious = [iou(each.mask, truths[key]) for key, each in decisions.items()]
            cells += [f"{sum(flagged)} of {len(flagged)}", f"{np.mean(ious):.3f}" if ious else "–"]
        rows.append(f"| {name} | {' | '.join(cells)} |")
        if name == "together":
            alarms = list(false_alarms(work, found, kinds))
    return "\n".join([*head, *rows, "", *alarms])


def false_alarms(work: Path, found: Calibration, kinds: Sequence[str]) -> Iterator[str]:
    """Yield the table of photos/valid: those of a size that get a verdict."""
    yield "| photos/valid | photos | manipulated | inconclusive |"
    yield "|---|---|---|---|"
    for i, size in enumerate(SIZE_CLASSES):
        for version, saved in enumerate(SAVED):
            words = list[str]()
            for (group, _, its), row in looked(work).items():
                if (group, its) != ("valid", version) or not {*kinds, MODEL} <= set(row) or not row["scope"]:
                    continue
                if Calibration.size_class(row["size"][0] * row["size"][1]) == i:
                    rank = found.rank(max(found.strength(each, row[each]) for each in (MODEL, *kinds)), i)
                    words.append(next((s.word for s in found.steps(i) if rank >= 1 - s.rate - 1e-9), "nothing found"))
            counts = (words.count("manipulated"), words.count("inconclusive"))
            if words:
                yield f"| {size}, {saved} | {len(words)} | {counts[0]} | {counts[1]} |"


def truth(data: Path, key: tuple[str, str, int]) -> NDArray[np.bool_]:
    dataset, _, name = key[1].split("/")
    mask = data / "forged/dev" / dataset / "mask" / f"{Path(name).stem}.png"
    return read_mask(Sample(image=data / "forged/dev" / key[1], mask=mask, label="fake"))


def iou(mask: NDArray[np.bool_], known: NDArray[np.bool_]) -> float:
    return float((mask & known).sum() / max(1, (mask | known).sum()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("look", "calibrate", "table"))
    parser.add_argument("--data", type=Path, default=ROOT / "../shared/data")
    parser.add_argument("--work", type=Path, default=ROOT / "data/verdicts")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", choices=(*clues.CLUES, MODEL), help="look: with this one")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    match arguments.what:
        case "look":
            lookers = [arguments.only] if arguments.only else [*clues.CLUES, MODEL]
            left = list(jobs(arguments.data, arguments.work, lookers))
            look_at_all(left, arguments.work, arguments.workers)
        case "calibrate":
            engine = open_engine(MINI)
            found = calibrated(arguments.work, tuple(clues.CLUES))
            with_spec(MINI, dataclasses.replace(engine.spec, calibration=found), MINI, force=True)
            print(f"{found.photos} photos, {found.saves} copies of each; {found.scales}")
        case "table":
            text = table(arguments.work, arguments.data)
            PAGE.write_text(between(PAGE.read_text(encoding="utf-8"), "table", text), encoding="utf-8")
            print(text)


def look_at_all(left: Iterable[Job], work: Path, workers: int) -> None:
    with ProcessPoolExecutor(workers) as pool, (work / "looked.jsonl").open("a", encoding="utf-8") as file:
        for done in as_completed([pool.submit(look, job, work) for job in left]):
            file.write(json.dumps(done.result()) + "\n")
            file.flush()


if __name__ == "__main__":
    main()
