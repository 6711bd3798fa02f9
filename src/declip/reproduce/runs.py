"""One experiment from start to end: sources, cells, tables, figures."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from declip.errors import DeclipError
from declip.reproduce import others, pairs, report, rivals
from declip.reproduce.cells import Workbench
from declip.reproduce.lab import Lab
from declip.reproduce.report import Outcome
from declip.reproduce.setup import Scale, Setup, parse_backbones
from declip.reproduce.sources import Dolos, Sources, StandIns

__all__ = ["EXPERIMENTS", "reproduce"]

_RUNS: Mapping[str, Callable[[Lab], Outcome]] = {
    "dolos": pairs.dolos,
    "layers": pairs.layers,
    "decoders": pairs.decoders,
    "backbones": pairs.backbones,
    "generators": pairs.generators,
    "detection": others.detection,
    "autosplice": others.autosplice,
    "robustness": others.robustness,
    "leave-one-out": others.leave_one_out,
    "rivals": rivals.rivals,
}
EXPERIMENTS = tuple(_RUNS)


def reproduce(
    experiment: str,
    out: str | Path,
    *,
    scale: Scale = "full",
    data: str | Path | None = None,
    photos: Sequence[Path] | None = None,
    backbone: str | None = None,
    seed: int = 0,
) -> Outcome:
    """Run one of EXPERIMENTS into the folder out; finished cells of earlier runs, of any experiment, are used again.

    scale: "full" = the paper's data and recipe, needs data (a folder with celebahq/ of Dolos, and AutoSplice/ for
        "autosplice"); "tiny" = minutes on two CPU cores, on data made from photos.
    backbone: as `setup.parse_backbones` reads it; None = the paper's of each experiment.
    seed: of the trainings; the data made from photos stay the same.

    Writes out/EXPERIMENT/{table.csv,table.md,protocol.json,protocol.md,*.png}; out/cells, out/features and, at tiny
    scale, out/data are shared by all experiments. Raises DeclipError for an unknown experiment or what the scale lacks.
    """
    out = Path(out)
    setup = Setup(scale=scale, given=None if backbone is None else parse_backbones(backbone), seed=seed)
    sources = _sources(setup, data, photos, out)
    if experiment not in _RUNS:
        raise DeclipError(f"there is no experiment {experiment!r}; expected one of {', '.join(EXPERIMENTS)}")
    lab = Lab(setup=setup, sources=sources, bench=Workbench(out))
    found = _RUNS[experiment](lab)
    outcome = dataclasses.replace(
        found,
        notes=(f"Data: {sources.describe()}.", *found.notes),
        protocols=[lab.bench.result(test)["protocol"] for test in found.tests],
        is_tiny=setup.is_tiny,
    )
    report.write(outcome, out / experiment)
    return outcome


def _sources(setup: Setup, data: str | Path | None, photos: Sequence[Path] | None, out: Path) -> Sources:
    if setup.is_tiny:
        if photos is None:
            raise DeclipError("--scale tiny makes its data from photos of yours: give --photos DIR")
        if data is not None:
            raise DeclipError("--scale tiny takes --photos, not --data: its data are made from photos")
        return StandIns(photos, out / "data")
    if data is None:
        raise DeclipError(
            "--scale full needs --data PATH, the folder of Dolos with celebahq/ in it (docs/reproduce.md says where it "
            "is); or try --scale tiny --photos DIR"
        )
    if photos is not None:
        raise DeclipError("--photos is for --scale tiny; the full scale takes --data")
    return Dolos(Path(data), out / "data")
