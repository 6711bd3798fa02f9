"""Each experiment from start to end on a few small pictures; the trainings take no time."""

from __future__ import annotations

import csv
import dataclasses
import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from PIL import Image

from declip import evaluate, training
from declip.clues import BASELINES
from declip.errors import DeclipError
from declip.images.mapfiles import write_mask
from declip.reproduce import EXPERIMENTS, cells, reproduce
from declip.reproduce.setup import Setup
from declip.reproduce.sources import Dolos, StandIns
from declip.spec import DecoderSpec
from declip.training import TrainConfig
from tests.reproduce.making import FakeTraining, make_photos

pytestmark = pytest.mark.usefixtures("one_torch_thread")

FILES = {"table.csv", "table.md", "protocol.json", "protocol.md"}
FIGURES: dict[str, set[str]] = {
    "dolos": {"figure2-masks.png", "figure5-matrix.png"},
    "layers": {"figure3-layers.png"},
    "decoders": {"figure4-decoders.png"},
    "backbones": {"figure5-matrices.png"},
    "generators": {"generators.png"},
    "detection": set(),
    "autosplice": {"autosplice.png"},
    "robustness": {"robustness.png"},
    "leave-one-out": {"few-shot.png"},
    "rivals": {"figure2-rivals.png", "figure2-rivals-all-pairs.png", "matrices.png"},
}


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeTraining:
    """Two generators, inputs of 64 px, narrow decoders, trainings that learn nothing."""
    stub, config = FakeTraining(), Setup.config

    def small(setup: Setup, *given: Any, pictures: int | None = None) -> TrainConfig:
        recipe = config(setup, *given, pictures=pictures)
        kind = recipe.model.decoder.kind
        decoder = DecoderSpec(kind=kind, widths=(8, 8, 8, 8) if kind.startswith("conv-") else None)
        model = dataclasses.replace(recipe.model, decoder=decoder, input_size=64, output_size=16)
        return dataclasses.replace(recipe, model=model)

    monkeypatch.setattr(training, "train", stub)
    monkeypatch.setattr(cells, "_RESAMPLES", 20)
    monkeypatch.setattr(Setup, "config", small)
    monkeypatch.setattr(StandIns, "names", ("blur", "noise"))
    return stub


def run(experiment: str, tmp_path: Path, backbone: str = "residual-statistics") -> dict[str, Any]:
    """Run it; what it wrote."""
    photos = make_photos(tmp_path / "photos", 10)
    reproduce(experiment, tmp_path / "out", scale="tiny", photos=photos, backbone=backbone)
    folder = tmp_path / "out" / experiment
    assert {path.name for path in folder.iterdir()} == FILES | FIGURES[experiment]
    for name in FIGURES[experiment]:
        with Image.open(folder / name) as picture:
            assert min(picture.size) > 300
    card = json.loads((folder / "protocol.json").read_text(encoding="utf-8"))
    rows = list(csv.DictReader((folder / "table.csv").read_text(encoding="utf-8").splitlines()))
    assert (folder / "table.md").read_text(encoding="utf-8").splitlines()[2].startswith("Tiny scale")
    assert {row["within"] for row in rows} == {""}
    return {"rows": rows, "card": card}


def test_dolos(tmp_path: Path, fake: FakeTraining) -> None:
    found = run("dolos", tmp_path)
    assert [len(call["train"]) for call in fake.calls] == [12, 12]
    rows = {(row["row"], row["column"], row["figure"]): float(row["ours"] or "nan") for row in found["rows"]}
    model = "residual-statistics:0, conv-4"
    known = (rows["blur", "blur", "iou"] + rows["noise", "noise", "iou"]) / 2
    others = (rows["blur", "noise", "iou"] + rows["noise", "blur", "iou"]) / 2
    assert rows["ID mean", model, "iou"] == pytest.approx(known, abs=1e-3)
    assert rows["OOD mean", model, "iou"] == pytest.approx(others, abs=1e-3)
    # The paper's numbers stand beside; its generators' names do not.
    assert {row["row"]: row["paper"] for row in found["rows"]}["ID mean"] == "73.85"
    assert not {"ldm", "lama"} & {row["row"] for row in found["rows"]}
    assert found["card"]["tests"] == 4 and "threshold" in found["card"]["common"]
    assert len(found["card"]["differing"]["training set"]) == 2


def test_generators_reuses_all_cells_of_dolos(
    tmp_path: Path, fake: FakeTraining, caplog: pytest.LogCaptureFixture
) -> None:
    run("dolos", tmp_path)
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out/cells").rglob("*") if path.is_file()}
    caplog.clear()
    caplog.set_level(logging.INFO)
    found = run("generators", tmp_path)
    assert len(fake.calls) == 2
    assert times == {path: path.stat().st_mtime_ns for path in (tmp_path / "out/cells").rglob("*") if path.is_file()}
    lines = [record.message for record in caplog.records if record.name == "declip.reproduce.cells"]
    assert len(lines) == 6 and all(line.endswith("done before") for line in lines)
    assert {(row["row"], row["column"]) for row in found["rows"]} == {
        (row, column) for row in ("ID mean", "OOD mean") for column in ("blur", "noise")
    }


def test_layers(tmp_path: Path, fake: FakeTraining) -> None:
    found = run("layers", tmp_path, "residual-statistics+block-statistics")
    columns = {row["column"] for row in found["rows"]}
    assert columns == {"residual-statistics:0, conv-4", "block-statistics:0, conv-4"}
    assert len(fake.calls) == 4


def test_decoders(tmp_path: Path, fake: FakeTraining) -> None:
    found = run("decoders", tmp_path)
    kinds = ("linear", "attention", "conv-4", "conv-12", "conv-20")
    assert [call["config"].model.decoder.kind for call in fake.calls] == [kind for kind in kinds for _ in range(2)]
    paper = {(row["row"], row["column"].split(", ")[1]): row["paper"] for row in found["rows"]}
    assert paper["ID mean", "linear"] == "36.2" and paper["OOD mean", "conv-20"] == "32.8"
    assert paper["ID mean", "conv-4"] == ""


def test_backbones(tmp_path: Path, fake: FakeTraining) -> None:
    found = run("backbones", tmp_path, "residual-statistics+block-statistics")
    assert [row["paper"] for row in found["rows"] if row["row"] == "ID mean"] == ["67.2", "71.2", "73.85"]
    assert [len(call["config"].model.backbones) for call in fake.calls] == [1, 1, 1, 1, 2, 2]


def test_detection(tmp_path: Path, fake: FakeTraining) -> None:
    found = run("detection", tmp_path)
    recipes = [(c["config"].target, c["config"].model.image_score, c["config"].reals) for c in fake.calls]
    assert recipes == [("mask", "mean", 0.0)] * 2 + [("image", "mean-logit", 1.0)] * 4
    # Reals are learnt from, and to be chosen by, where whole pictures are the target.
    labels = [({s.label for s in c["train"]}, {s.label for s in c["valid"]}) for c in fake.calls]
    assert labels == [({"fake"}, {"fake"})] * 2 + [({"fake", "real"}, {"fake", "real"})] * 4
    assert {row["figure"] for row in found["rows"]} == {"detection_ap", "detection_auc"}
    assert all(0 <= float(row["ours"]) <= 100 for row in found["rows"])
    papers = {(row["column"], row["row"], row["figure"]): row["paper"] for row in found["rows"]}
    assert papers["whole pictures, linear", "local edits", "detection_ap"] == "73"
    assert set(found["card"]["differing"]["image score"]) == {
        "mean of the scores on the network's grid",
        "sigmoid of the mean logit",
    }


def test_autosplice(tmp_path: Path, fake: FakeTraining) -> None:
    found = run("autosplice", tmp_path)
    assert found["card"]["differing"]["perturbation"] == ["jpeg 75", "jpeg 90", "jpeg 100"]
    assert [(row["row"], row["column"]) for row in found["rows"]] == [
        (f"JPEG {quality}", name) for quality in (75, 90, 100) for name in ("blur", "noise")
    ]


def test_robustness(tmp_path: Path, fake: FakeTraining) -> None:
    found = run("robustness", tmp_path)
    assert len(fake.calls) == 1 and found["card"]["tests"] == 24
    rows = [row["row"] for row in found["rows"]]
    assert rows[0] == "as it is" and {"jpeg 30", "webp 75", "blur 0.5", "noise 16", "resize 0.25"} <= set(rows)


def test_leave_one_out(tmp_path: Path, fake: FakeTraining) -> None:
    found = run("leave-one-out", tmp_path)
    first, adapted = fake.calls[0], fake.calls[1]
    # One source is left of two: the budget is that of one, and nothing of the unseen one is known.
    assert {s.source for s in first["train"]} == {"noise"} and len(first["train"]) == 12
    assert {s.source for s in adapted["train"]} == {"blur"} and len(adapted["train"]) == 4
    assert adapted["train"] == adapted["valid"] and first["start"] is None
    assert adapted["start"] == first["out"] / "best.safetensors"
    rows = {(row["row"], row["column"]) for row in found["rows"]}
    # 12 pictures are there to adapt to: 0 and 4 of them are asked for, 16 and 64 cannot be.
    assert rows == {("unseen fourth", "mean")} | {(f"{k} pictures", n) for k in (0, 4) for n in ("blur", "noise")}


def test_three_sources_share_the_budget_of_one(tmp_path: Path, fake: FakeTraining, monkeypatch: Any) -> None:
    monkeypatch.setattr(StandIns, "names", ("blur", "noise", "telea", "relight"))
    run("leave-one-out", tmp_path)
    bases = [call for call in fake.calls if call["start"] is None]
    assert len(bases) == 4
    for call in bases:
        assert len(call["train"]) == 12 and len({s.source for s in call["train"]}) == 3
        assert len({s.image.name.partition("-")[0] for s in call["train"]}) == 12  # other places of each


@pytest.mark.slow
def test_rivals_and_maps_without_training_as_their_floor(tmp_path: Path, fake: FakeTraining) -> None:
    found = run("rivals", tmp_path)
    learnt = [(call["config"].model.architecture, call["config"].model.decoder) for call in fake.calls]
    kinds = [architecture if decoder is None else decoder.kind for architecture, decoder in learnt]
    assert kinds == [kind for kind in ("patch-forensics", "pscc-net", "linear", "cat-net", "conv-4") for _ in range(2)]
    # The same pictures teach all of them, in the same order.
    assert all(call["train"] == fake.calls[i % 2]["train"] for i, call in enumerate(fake.calls))
    means = {(row["row"], row["column"]): row["paper"] for row in found["rows"] if row["figure"] == "iou"}
    model = "residual-statistics:0"
    assert {place: paper for place, paper in means.items() if "mean" in place[0] and paper} == {
        ("ID mean", "Patch Forensics"): "69.3",
        ("OOD mean", "Patch Forensics"): "20.4",
        ("ID mean", "PSCC-Net"): "81",
        ("OOD mean", "PSCC-Net"): "21.6",
        ("ID mean", f"{model}, linear"): "36.2",
        ("OOD mean", f"{model}, linear"): "18.5",
        ("ID mean", f"{model}, conv-4"): "73.85",
        ("OOD mean", f"{model}, conv-4"): "34.72",
    }
    assert means["ID mean", "CAT-Net"] == means["OOD mean", "CAT-Net"] == ""
    # 5 methods on 2 × 2 pairs, and as a floor 4 maps without training on 2 sets.
    assert found["card"]["tests"] == 28
    values = {(row["row"], row["column"], row["figure"]): float(row["ours"]) for row in found["rows"]}
    samples = StandIns(make_photos(tmp_path / "photos", 10), tmp_path / "out/data").samples("blur", "test")
    for kind, baseline in BASELINES.items():
        direct = evaluate(baseline(), samples).mean
        assert values["blur", kind, "iou"] == pytest.approx(100 * direct.iou, abs=1e-3)
        assert values["blur", kind, "ap"] == pytest.approx(100 * direct.ap, abs=1e-3)
        for figure in ("iou", "ap"):
            both = (values["blur", kind, figure] + values["noise", kind, figure]) / 2
            assert values["mean of test sets", kind, figure] == pytest.approx(both, abs=1e-3)
    assert f"{kind}, not trained" in found["card"]["differing"]["training set"]
    # The decoders' cells are those of other experiments, the rivals' are their own.
    run("dolos", tmp_path)
    assert len(fake.calls) == 10


def make_dolos(root: Path) -> None:
    """Dolos and AutoSplice as they lie on disk, two pictures of each part."""
    for part in ("train", "valid", "test"):
        make_photos(root / "celebahq/real" / part, 2)
        make_photos(root / "celebahq/fake/p2" / part, 2)
        for name in Dolos.names:
            folder = root / "celebahq/fake" / name
            for picture in make_photos(folder / "images" / part, 2):
                mask = np.ones((64, 64), bool)
                mask[8:40, 8:40] = False  # black is fake
                (folder / "masks" / part).mkdir(parents=True, exist_ok=True)
                write_mask(folder / "masks" / part / picture.name, mask)
    for quality in (75, 90, 100):
        for picture in make_photos(root / f"AutoSplice/Forged_JPEG{quality}", 2):
            picture.rename(picture.with_name(f"{picture.stem.replace('-', '')}_0.png"))
    for number in range(2):
        (root / "AutoSplice/Mask").mkdir(exist_ok=True)
        write_mask(root / f"AutoSplice/Mask/photo{number:02d}_mask.png", mask)


@pytest.mark.parametrize("experiment", ["dolos", "detection", "autosplice"])
def test_the_full_scale_reads_the_published_layouts(tmp_path: Path, fake: FakeTraining, experiment: str) -> None:
    make_dolos(tmp_path / "data")
    given = {"data": tmp_path / "data", "backbone": "residual-statistics"}
    outcome = reproduce(experiment, tmp_path / "out", **given)  # type: ignore[arg-type]
    assert not outcome.is_tiny
    assert all(" 0 failed;" in card["samples"] for card in outcome.protocols)
    assert all(call["config"].model.decoder.kind in ("conv-20", "linear") for call in fake.calls)
    assert all(call["config"].epochs == 400 for call in fake.calls)
    rows = {(entry.row, entry.column): entry.value for entry in outcome.entries}
    match experiment:
        case "dolos":
            assert outcome.protocols[0]["polarity"] == "black = manipulated in 2 mask files"
            assert ("lama", "repaint-p2-9k") in rows
        case "detection":
            assert 0 <= rows["full fakes", "whole pictures, linear, trained on p2"] <= 1
        case _:
            assert {row for row, _ in rows} == {"JPEG 75", "JPEG 90", "JPEG 100"}
            assert len(rows) == 12


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"scale": "full"}, "--scale full needs --data"),
        ({"scale": "tiny"}, "give --photos"),
        ({"scale": "tiny", "photos": [], "data": "x"}, "takes --photos, not --data"),
        ({"scale": "full", "photos": [], "data": "x"}, "--photos is for --scale tiny"),
        ({"scale": "full", "data": "nowhere"}, "has no folder celebahq"),
    ],
)
def test_what_is_missing_is_said(tmp_path: Path, options: dict[str, Any], told: str) -> None:
    with pytest.raises(DeclipError, match=told):
        reproduce("dolos", tmp_path, **options)
    assert not list(tmp_path.iterdir())


def test_the_experiments_are_those_of_the_command() -> None:
    from declip.cli import measure

    assert get_args(measure.Experiment) == EXPERIMENTS == tuple(FIGURES)


# --- the command, killed ---------------------------------------------------------------------------------------------


def command(tmp_path: Path) -> list[str]:
    given = ["--scale", "tiny", "--photos", str(tmp_path / "photos"), "--out", str(tmp_path / "out")]
    return [sys.executable, "-m", "declip", "reproduce", "dolos", *given, "--backbone", "residual-statistics"]


def stamps(folder: Path) -> dict[Path, tuple[int, bytes]]:
    """Every file below: when it was written, and what is in it."""
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}


def epochs(folder: Path) -> list[int]:
    return [json.loads(line)["epoch"] for line in (folder / "run/metrics.jsonl").read_text().splitlines()]


def wait_for(process: subprocess.Popen[str], out: Path) -> Path:
    """Until one training is finished and another one has begun: the folder of that one."""
    while process.poll() is None:
        trained = {path.parent for path in out.glob("cells/train-*/result.json")}
        begun = {path.parents[1] for path in out.glob("cells/train-*/run/state.pt")} - trained
        if trained and begun:
            return begun.pop()
        time.sleep(0.05)
    raise AssertionError(f"the command ended with {process.returncode} before it could be killed")


@pytest.mark.slow
@pytest.mark.timeout(1500)  # minutes of training, on any processor
def test_a_killed_command_finishes_without_redoing_what_is_finished(tmp_path: Path) -> None:
    make_photos(tmp_path / "photos", 10)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (
        (tmp_path / "log").open("w") as log,
        subprocess.Popen(command(tmp_path), stdout=log, stderr=log, text=True, env=environment) as process,
    ):
        interrupted = wait_for(process, tmp_path / "out")
        os.kill(process.pid, signal.SIGKILL)
    finished = [path.parent for path in (tmp_path / "out").glob("cells/*/result.json")]
    assert interrupted not in finished and 2 <= len(finished) < 36
    before = {folder: stamps(folder) for folder in finished}
    done_epochs = epochs(interrupted)
    assert len(done_epochs) < 120

    rerun = subprocess.run(command(tmp_path), capture_output=True, text=True, env=environment)
    assert rerun.returncode == 0, rerun.stderr
    assert {folder: stamps(folder) for folder in finished} == before
    done = [line for line in rerun.stderr.splitlines() if line.endswith("done before")]
    assert len(done) == len(finished) and done[0].startswith("declip: 1/36 train ")
    # The training that was cut short went on after the epoch that was kept last: each is there once.
    assert epochs(interrupted) == list(range(1, 121))
    folder = tmp_path / "out/dolos"
    assert {path.name for path in folder.iterdir()} == FILES | FIGURES["dolos"]
    assert "ID mean" in rerun.stdout and str(folder / "table.md") in rerun.stdout

    everything = stamps(tmp_path / "out/cells")
    again = subprocess.run(command(tmp_path), capture_output=True, text=True, env=environment)
    assert sum(line.endswith("done before") for line in again.stderr.splitlines()) == 36
    assert stamps(tmp_path / "out/cells") == everything and again.stdout == rerun.stdout
