"""The command line: what is printed where, exit codes, and what is not imported."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pytest
from PIL import Image

import declip
from declip import calibration, datasets, report, synthesis, training
from declip.cli import main as cli
from declip.images.mapfiles import write_mask
from declip.images.read import MAX_BYTES, MAX_PIXELS
from declip.localize import localizer
from declip.localize.localizer import Localizer
from declip.results import ResultRow, Sample
from declip.spec import Calibration
from tests.fakes import fake_engine

KEYS = [field.name for field in fields(ResultRow)]
LIMITS = {"max_pixels": MAX_PIXELS, "max_bytes": MAX_BYTES}
ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(declip.__file__).parents[1])}


class Done(NamedTuple):
    """What a command ended with, and what it printed."""

    code: int
    out: str
    err: str


Run: TypeAlias = Callable[..., Done]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Run `declip ARGUMENTS` in this process."""

    def run(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["declip", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        return Done(int(caught.value.code or 0), *capfd.readouterr())

    return run


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Replace the model by a fake; gives the arguments `load` was called with."""
    seen: dict[str, Any] = {}

    def load(model: Any = None, **options: Any) -> Localizer:
        seen.update(options, model=model)
        kept = {key: options[key] for key in ("mode", "threshold", *LIMITS) if key in options}
        return Localizer(fake_engine(), **kept)

    monkeypatch.setattr(localizer, "load", load)
    return seen


def picture(path: Path, white: int = 32) -> Path:
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[:, :white] = 255
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, format="PNG")
    return path


def script(code: str, *arguments: object, **options: Any) -> subprocess.CompletedProcess[Any]:
    """Run a script with these arguments."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, timeout=120, **{"text": True, "env": ENVIRONMENT, **options})


# --- localize -------------------------------------------------------------------------------------------------------


def test_json_is_one_line_per_image(tmp_path: Path, fake: dict[str, Any], run: Run) -> None:
    for name, white in (("a.png", 64), ("b.png", 32), ("c.png", 0), ("._d.png", 0)):
        picture(tmp_path / "in" / name, white)
    done = run("localize", tmp_path / "in", "--out", tmp_path / "out", "--json")
    rows = [json.loads(line) for line in done.out.splitlines()]
    assert done.code == 0 and [list(row) for row in rows] == [KEYS] * 3
    assert [row["verdict"] for row in rows] == ["manipulated", "inconclusive", "nothing found"]
    assert [row["area"] for row in rows] == [1.0, 0.5, 0.0]
    assert [row["score"] for row in rows] == [0.995, 0.95, 0.0]
    assert rows[1]["image_score"] == pytest.approx(0.5, abs=1e-3)
    assert (rows[1]["false_alarm_rate"], rows[1]["untouched"], rows[1]["regions"][0]["rank"]) == (0.05, 199, 0.95)
    assert rows[0]["model"] == "fake"
    assert "3 localized to " in done.err and "0 failed, 0 other files, 1 hidden name skipped" in done.err
    assert len(list((tmp_path / "out").iterdir())) == 9
    expected = {"model": "mini", "mode": None, "threshold": None, "precision": "exact", "offline": False}
    assert fake == expected | {"clues": True} | LIMITS


def test_options_reach_the_library(tmp_path: Path, fake: dict[str, Any], run: Run) -> None:
    arguments = ("localize", picture(tmp_path / "a.png"), "--out", tmp_path / "out")
    options = ("--model", "m.onnx", "--tile", "--threshold", 0.25, "--precision", "fast", "--offline", "--json")
    done = run(*arguments, *options, "--batch-size", 2, "--no-clues")
    expected = {"model": "m.onnx", "mode": "tiled", "threshold": 0.25, "precision": "fast", "offline": True}
    assert done.code == 0 and fake == expected | {"clues": False} | LIMITS
    row = json.loads(done.out)
    assert row["threshold"] == 0.25 and row["verdict"] is None  # neither mode nor precision are the calibration's
    assert run(*arguments, "--force", "--whole").code == 0 and fake["mode"] == "whole"
    done = run(*arguments, "--whole", "--tile")
    assert done.code == 2 and done.err.startswith("declip: --tile and --whole contradict each other; give one")


def test_short_lines_without_json(tmp_path: Path, fake: dict[str, Any], run: Run) -> None:
    photo = picture(tmp_path / "a.png", 64)
    done = run("localize", photo, "--out", tmp_path / "out")
    assert done[:2] == (0, f"manipulated      rank  0.995  area 100.00%  {photo}\n")


def test_bad_files_are_lines_and_exit_1(tmp_path: Path, fake: dict[str, Any], run: Run) -> None:
    folder = tmp_path / "in"
    picture(folder / "good.png")
    Image.new("RGB", (200, 200), "red").save(folder / "cut.jpg", quality=95)
    (folder / "cut.jpg").write_bytes((folder / "cut.jpg").read_bytes()[:-400])
    (folder / "text.png").write_text("no picture")
    (folder / "notes.txt").write_text("not counted as a failure")
    done = run("localize", folder, "--out", tmp_path / "out", "--json")
    rows = [json.loads(line) for line in done.out.splitlines()]
    assert done.code == 1 and [row.get("kind") for row in rows] == ["corrupt", None, "format"]
    assert list(rows[0]) == ["image", "error", "kind"]
    assert "1 localized" in done.err and "2 failed, 1 other file skipped" in done.err
    done = run("localize", folder, "--out", tmp_path / "out")  # now the good one exists
    assert done[:2] == (1, "") and "exists: " in done.err and "--force" in done.err


def test_usage_and_missing_paths_exit_2(tmp_path: Path, fake: dict[str, Any], run: Run) -> None:
    photo, out = picture(tmp_path / "a.png"), ("--out", tmp_path / "out")
    for arguments in ((photo,), (photo, *out, "--threshold", 2), (photo, *out, "--precision", "half")):
        assert run("localize", *arguments).code == 2
    assert run("localise", photo).code == 2
    gone = tmp_path / "gone.png"
    assert run("localize", photo, gone, *out) == (2, "", f"declip: {gone}: there is no such file or folder\n")
    assert not (tmp_path / "out").exists()


def test_an_unknown_model_exits_2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    arguments = ("localize", picture(tmp_path / "a.png"), "--out", tmp_path / "out", "--model")
    done = run(*arguments, "minni")
    assert done.code == 2 and "did you mean mini" in done.err
    monkeypatch.setenv("DECLIP_CACHE", str(tmp_path / "cache"))
    done = run(*arguments, "fusion-conv20-ldm", "--offline")
    assert done.code == 2 and f"put it at {tmp_path / 'cache' / 'fusion-conv20-ldm.pth'}" in done.err


def test_file_names_cannot_command_the_terminal(tmp_path: Path, fake: dict[str, Any], run: Run) -> None:
    done = run("localize", picture(tmp_path / "a\x1b[2J\n.png"), "--out", tmp_path / "out")
    assert done.code == 0 and "\x1b" not in done.out and done.out.count("\n") == 1
    assert r"a\x1b[2J\n.png" in done.out


def test_the_bar_never_swallows_results(
    tmp_path: Path, fake: dict[str, Any], monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    for i in range(6):
        picture(tmp_path / "in" / f"{i}.png")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("FORCE_COLOR", "1")
    done = run("localize", tmp_path / "in", "--out", tmp_path / "out", "--json")
    assert [Path(json.loads(line)["image"]).name for line in done.out.splitlines()] == [f"{i}.png" for i in range(6)]
    assert done.code == 0 and "localizing" in done.err and "6/6" in done.err


@pytest.mark.parametrize("verb", ["localize in", "calibrate in", "synthesize in", "reproduce layers --photos in"])
def test_a_folder_without_pictures_exits_2(
    verb: str, tmp_path: Path, fake: dict[str, Any], monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "notes.txt").write_text("")
    monkeypatch.chdir(tmp_path)
    done = run(*verb.split(), "--out", "out.onnx")
    assert done.code == 2
    assert done.err.startswith("declip: there is no picture in in: 1 other file; expected files that")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_what_the_encoding_lacks_is_escaped(encoding: str, tmp_path: Path) -> None:
    picture(tmp_path / "写真.png")
    (tmp_path / "写.png").write_text("no picture")
    code = (
        "import logging\n"
        "from rich.console import Console\n"
        "from declip.cli import main as cli\n"
        "@cli.app.command()\n"
        "def noise():\n"
        "    Console().print('写真 \\udce9 ━')\n"
        "    logging.getLogger('declip').error('写真 \\udce9', exc_info=ValueError('写真'))\n"
        "cli.main()"
    )
    options = {"env": ENVIRONMENT | {"PYTHONIOENCODING": encoding}, "text": False}
    shown = "写真 " if encoding == "utf-8" else r"\u5199\u771f "
    done = script(code, "noise", **options)
    assert done.returncode == 0
    assert (shown + r"\udce9").encode(encoding) in done.stdout
    assert (shown + r"\udce9").encode(encoding) in done.stderr
    assert b"Traceback" not in done.stderr.split(b"ValueError")[1]
    done = script(code, "localize", tmp_path, "--out", tmp_path / "out", **options)
    assert done.returncode == 1
    assert (shown.strip() + ".png").encode(encoding) in done.stdout and b"1 localized" in done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="paths of POSIX")
def test_addresses_are_paths_in_every_verb_and_option(tmp_path: Path, fake: dict[str, Any], run: Run) -> None:
    photo = picture(tmp_path / "my photos" / "a.png")
    out = (tmp_path / "my out").as_uri()
    done = run("localize", photo.as_uri(), f"--out={out}", "--json")
    assert done.code == 0 and json.loads(done.out)["image"] == str(photo)
    assert (tmp_path / "my out" / "a.png.mask.png").is_file()
    address = photo.parent.as_uri().replace("file://", "file://localhost")
    assert run("index", "folder", address, "--out", f"{out}/s.jsonl").code == 0
    assert datasets.read_manifest(tmp_path / "my out" / "s.jsonl")[0].image.resolve() == photo
    done = run("localize", "file://server/a.png", "--out", out)
    assert done.code == 2 and "a file of the machine 'server'" in done.err


def test_a_report_that_the_memory_does_not_hold_is_an_error(
    tmp_path: Path, fake: dict[str, Any], monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    def examine(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(report, "examine", examine)
    photo = picture(tmp_path / "a.png")
    done = run("report", photo, "--out", tmp_path / "a.html", "--json")
    row = json.loads(done.out)
    assert done.code == 1 and (row["image"], row["kind"]) == (str(photo), "too-large")
    assert "not enough memory" in row["error"]


def test_edits_are_tried_in_a_photo(tmp_path: Path, fake: dict[str, Any], run: Run) -> None:
    noise = np.random.default_rng(0).integers(0, 90, (100, 120, 3)).astype(np.uint8)
    photo, out = tmp_path / "a.png", tmp_path / "out"
    Image.fromarray(noise).save(photo)
    done = run("detectability", photo, "--out", out, "--json")
    facts = json.loads(done.out)
    assert done.code == 0 and facts["image"] == str(photo) and [row["tried"] for row in facts["kinds"]] == [8, 8, 8]
    assert sorted(path.name for path in out.iterdir()) == ["a.png.edits.json", "a.png.edits.png"]
    assert json.loads((out / "a.png.edits.json").read_text()) == facts
    done = run("detectability", photo, "--out", out)
    assert done.code == 2 and "exists; --force overwrites it" in done.err
    assert run("detectability", photo).out.splitlines() == facts["sentences"]
    done = run("detectability", tmp_path / "missing.png", "--json")
    row = json.loads(done.out)
    assert (done.code, row["image"], row["kind"]) == (1, str(tmp_path / "missing.png"), "missing")


def test_limits_and_pages_reach_the_library(tmp_path: Path, fake: dict[str, Any], run: Run) -> None:
    scan, out = tmp_path / "scan.tif", tmp_path / "out"
    Image.new("RGB", (64, 64)).save(scan, save_all=True, append_images=[Image.new("RGB", (32, 32), "white")])
    small = ("--max-megapixels", 0.002)
    done = run("localize", scan, "--out", out, "--pages", "all", *small)
    assert done.code == 1 and f"{scan}#2" in done.out and f"too-large: {scan}" in done.err
    assert "at most 2000 are read (--max-megapixels or max_pixels raises the limit)" in done.err
    assert "1 localized to" in done.err and "1 failed" in done.err
    assert (out / "scan.tif#2.mask.png").exists() and not (out / "scan.tif#1.mask.png").exists()
    done = run("localize", scan, "--out", tmp_path / "other", "--max-megabytes", 0.001)
    assert done.code == 1 and "at most 1000 are read (--max-megabytes or max_bytes raises the limit)" in done.err
    done = run("report", scan, "--out", tmp_path / "page.html", *small)
    assert done.code == 1 and "(--max-megapixels or max_pixels raises the limit)" in done.err


# --- evaluate -------------------------------------------------------------------------------------------------------


def samples(folder: Path, **changes: Any) -> Path:
    """A manifest of two fakes, of which the fake model flags the bright half, and an untouched dark picture."""
    found = []
    for name, white in (("a.png", 16), ("b.png", 32), ("c.png", 0)):
        mask = np.zeros((64, 64), dtype=bool)
        mask[:, :white] = True
        path = picture(folder / name, white)
        write_mask(folder / f"{name}.mask.png", mask)
        given: dict[str, Any] = {"label": "fake", "mask": folder / f"{name}.mask.png", "split": "test"} | changes
        found.append(Sample(image=path, **(given if white else {"label": "real"})))
    datasets.write_manifest(folder / "samples.jsonl", found)
    return folder / "samples.jsonl"


def test_evaluate_prints_figures_and_protocol_and_writes_them(tmp_path: Path, fake: dict[str, Any], run: Run) -> None:
    out = tmp_path / "out"
    arguments = ("evaluate", samples(tmp_path), "--out", out)
    done = run(*arguments, "--threshold", 0.5, "--whole")
    assert fake == {"model": None, "mode": "whole", "precision": "exact", "clues": True, "offline": False} | LIMITS
    assert done.code == 0 and done.err == "" and "WARNING" not in done.out
    assert all(word in done.out for word in ("IoU", "oracle", "32×32 px", "scores >= 0.5 (given)"))
    figures = json.loads((out / "summary.json").read_text(encoding="utf-8"))["overall"]["figures"]
    assert figures["iou"]["mean"] > 0.9 and figures["false_alarm"]["mean"] == 0.0
    # A threshold of one's own leaves no verdict to be right or wrong.
    assert (figures["iou"]["defined"], figures["area"]["defined"], figures["accuracy"]["defined"]) == (2, 1, 0)
    done = run(*arguments)
    assert done.code == 2 and "images.csv exists; --force" in done.err
    done = run(*arguments, "--force", "--split", "test")
    assert done.code == 0 and "2 fakes, 0 reals" in done.out
    done = run(*arguments, "--force", "--split", "gone")
    assert done.code == 2 and "no samples" in done.err
    done = run("evaluate", tmp_path, "--out", tmp_path / "other")
    assert done.code == 2 and f"{tmp_path} is a folder; expected a manifest (.jsonl); write one with `declip index fold"


def test_evaluate_calls_out_an_inverted_manifest(tmp_path: Path, fake: dict[str, Any], run: Run) -> None:
    done = run("evaluate", samples(tmp_path, fake_is="black"), "--out", tmp_path / "out", "--model", "m.onnx")
    assert done.code == 0 and done.out.index("WARNING") < done.out.index("IoU")
    assert "wrong way" in done.out and "fake_is" in done.out


def test_evaluate_scores_what_localize_wrote(tmp_path: Path, fake: dict[str, Any], run: Run) -> None:
    manifest, maps = samples(tmp_path / "in"), tmp_path / "maps"
    by_maps = ("evaluate", manifest, "--maps", maps, "--out")
    assert run("localize", *(tmp_path / "in" / f"{name}.png" for name in "abc"), "--out", maps).code == 0
    assert run(*by_maps, tmp_path / "by-maps").code == 0
    assert run("evaluate", manifest, "--out", tmp_path / "by-model").code == 0
    both = [json.loads((tmp_path / name / "summary.json").read_text()) for name in ("by-maps", "by-model")]
    for name in ("iou", "f1", "ap", "auc", "area"):
        first, second = (summary["overall"]["figures"][name]["mean"] for summary in both)
        assert first == pytest.approx(second, abs=1e-4), name
    (maps / "a.png.scores.png").unlink()
    done = run(*by_maps, tmp_path / "out")
    assert done.code == 1 and "1 of 3 samples failed" in done.out and "1 fakes, 1 reals, 1 failed" in done.out
    assert done.err.startswith("declip: missing: ") and "a.png: no map in" in done.err
    assert "a.png" in (tmp_path / "out" / "images.csv").read_text()
    for options in (("--model", "m"), ("--precision", "fast"), ("--whole",), ("--maps", tmp_path / "gone")):
        assert run(*by_maps, tmp_path / "x", *options).code == 2
    assert not (tmp_path / "x").exists()


# --- calibrate ------------------------------------------------------------------------------------------------------


def test_calibrate_prints_what_it_promises_and_writes_a_model(
    tmp_path: Path, tiny_model: tuple[Path, Path], run: Run
) -> None:
    folder, out = tmp_path / "photos", tmp_path / "mine.onnx"
    for white in range(60):
        picture(folder / f"{white}.png", white)
    arguments = ("calibrate", folder, "--model", tiny_model[1], "--out", out)
    done = run(*arguments, "--false-alarms", "0.01")
    assert done.code == 2 and "a false-alarm rate of 0.01 cannot be guaranteed by 60 untouched photos" in done.err
    assert not out.exists()
    (folder / "notes.txt").write_text("no picture")
    picture(folder / "again.png", 30)
    done = run(*arguments, "--false-alarms", "0.02,0.1", "--tile")
    rows = [" ".join(line.split()) for line in done.out.splitlines()]
    # Of 60 photos the strongest and the sixth: Beta(1, 60) and Beta(6, 55).
    assert done.code == 0 and rows[1:5] == [
        "under 0.5 MP 60 manipulated at most 2 % 0.085 to 4.9 %",
        "under 0.5 MP 60 inconclusive at most 10 % 4.4 to 17 %",
        "0.5 to 3 MP 0 none: too few photos - -",
        "over 3 MP 0 none: too few photos - -",
    ]
    assert "left out        0 unreadable, 1 repeated, 0 that are no photographs, 1 other file skipped\n" in done.out
    assert "temperature     1, kept\nthreshold       0.5, kept\nverdicts in     tiled mode only\n" in done.out
    assert f"written         {out}\n" in done.out and "only 60 photos" not in done.out
    done = run(*arguments, "--false-alarms", "0.02,0.1")
    assert (done.code, done.err) == (2, f"declip: {out} exists; --force (force=True) overwrites it\n")
    (folder / "torn.png").write_bytes((folder / "1.png").read_bytes()[:-20])
    done = run(*arguments, "--false-alarms", "0.1", "--force")
    assert done.code == 1 and "left out        1 unreadable, 1 repeated" in done.out and "inconclusive" not in done.out


def test_calibrate_passes_its_settings_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    seen: dict[str, Any] = {}
    found = Calibration(
        temperature=1.5, threshold=0.6, untouched=((0.7,) * 30, (), ()), photos=(30, 0, 0), rates=(0.05,)
    )

    def calibrate(model: str, photos: list[Path], out: Path, **settings: Any) -> calibration.Outcome:
        seen.update(settings, model=model, photos=photos, out=out)
        return calibration.Outcome(calibration=found, fakes=1, lost=1)

    monkeypatch.setattr(calibration, "calibrate", calibrate)
    manifest, out = samples(tmp_path / "data"), tmp_path / "mine.onnx"
    photos = [picture(tmp_path / "photos" / "b" / "2.png"), picture(tmp_path / "1.png")]
    options = ("--data", manifest, "--split", "test", "--whole", "--batch-size", 3, "--offline", "--force")
    options += ("--saves", 2, "--no-clues")
    arguments = ("calibrate", tmp_path / "photos", tmp_path / "1.png", "--out", out)
    done = run(*arguments, *options, "--precision", "fast", "--model", "m.onnx")
    assert (done.code, done.err) == (1, "declip: 1 samples of --data were left out\n")
    for line in ("temperature     1.5, refitted on 1 man", "threshold       0.6, refitted on 1 manipulated pictures\n"):
        assert line in done.out
    chosen = [(sample.image.name, sample.label, sample.split) for sample in seen.pop("samples")]
    assert chosen == [("a.png", "fake", "test"), ("b.png", "fake", "test")]
    expected = {"model": "m.onnx", "photos": photos, "out": out, "rates": [0.01, 0.05], "mode": "whole", "pieces": 0}
    expected |= {"precision": "fast", "batch_size": 3, "offline": True, "force": True, "progress": False}
    expected |= {"saves": 2, "clues": False}
    assert seen == expected | LIMITS
    assert run(*arguments).code == 1
    assert (seen["model"], seen["samples"], seen["mode"], seen["force"]) == ("mini", None, None, False)
    done = run(*arguments, "--false-alarms", "5%")
    assert done.code == 2 and "got the false-alarm rate '5%'; expected a number in (0, 1)" in done.err
    done = run(*arguments, "--split", "test")
    assert done.code == 2 and "add --data" in done.err


# --- the other verbs ------------------------------------------------------------------------------------------------


def test_models_lists_the_catalogue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    monkeypatch.setenv("DECLIP_CACHE", str(tmp_path))
    (tmp_path / "vit-l14-conv20-lama.safetensors").write_bytes(b"x" * 3_000_000)
    lines = {line.split()[0]: line for line in run("models").out.splitlines()}
    assert {card.name for card in declip.MODELS} < lines.keys()
    assert lines["vit-l14-conv20-lama"].split()[-3:] == ["3", "MB", "yes"]
    assert lines["fusion-conv20-ldm"].split()[-3:] == ["784", "MB", "no"]
    assert "CC BY-NC-SA 4.0" in lines["fusion-conv20-ldm"] and "Apache-2.0" in lines["mini"]
    assert lines["pscc-net-official"].split()[-3:] == ["by", "hand", "no"]


@pytest.mark.parametrize("verb", [("convert", "x.pth"), ("export", "x.safetensors")])
def test_an_existing_file_is_not_overwritten(tmp_path: Path, run: Run, verb: tuple[str, str]) -> None:
    kept = tmp_path / "kept.onnx"
    kept.write_text("mine")
    assert run(*verb, "--out", kept) == (2, "", f"declip: {kept} exists; --force overwrites it\n")
    assert kept.read_text() == "mine"


def test_what_is_onnx_already_is_not_exported(tmp_path: Path, run: Run) -> None:
    done = run("export", "mini", "--out", tmp_path / "out.onnx")
    assert done.code == 2 and "expected a .safetensors checkpoint: an .onnx file is exported already" in done.err


def test_synthesize_passes_its_recipe_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    photos = [picture(tmp_path / "photos" / name) for name in ("1.png", "b/2.png")]
    seen: dict[str, Any] = {}
    left_out = 0

    def synthesize(photos: Any, recipe: synthesis.Recipe, out: Path, **settings: Any) -> Path:
        seen.update(settings, photos=photos, recipe=recipe)
        fakes = len(photos) * recipe.per_photo - left_out
        samples = [Sample(image=out / "f.png", mask=out / "m.png", label="fake")] * fakes
        datasets.write_manifest(out / "samples.jsonl", [*samples, Sample(image=out / "r.png", label="real")])
        return out / "samples.jsonl"

    monkeypatch.setattr(synthesis, "synthesize", synthesize)
    verb = ("synthesize", tmp_path / "photos", "--out", tmp_path / "data")
    options = ("--generators", "telea,splice-hard", "--seed", 3, "--set", "per_photo=2", "--workers", 2)
    assert run(*verb, *options)[:2] == (0, f"{tmp_path / 'data' / 'samples.jsonl'}\n")
    assert seen["photos"] == photos and seen["workers"] == 2
    assert seen["recipe"] == synthesis.Recipe(generators=("telea", "splice-hard"), seed=3, per_photo=2)
    left_out = 1
    assert run(*verb, "--recipe", "fresh").code == 1
    done = run(*verb, "--set", "sise=3")
    assert done.code == 2 and "a recipe has no setting sise; did you mean size?" in done.err


def test_train_passes_recipe_parts_and_changes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    for split in ("train", "valid"):
        sample = Sample(image=picture(tmp_path / f"{split}.png"), label="real", split=split)
        datasets.write_manifest(tmp_path / f"{split}.jsonl", [sample])
    seen: dict[str, Any] = {}

    def train(config: Any, **settings: Any) -> training.Run:
        seen.update(settings, config=config)
        return training.Run(best=tmp_path / "best", last=tmp_path / "last", epoch=1, iou=0.5, ap=0.5)

    monkeypatch.setattr(training, "train", train)
    monkeypatch.setattr(training.TrainConfig, "from_toml", lambda path, changes=(): (path, list(changes)))
    manifests = ("--data", tmp_path / "train.jsonl", "--data", tmp_path / "valid.jsonl")
    options = ("--set", "lr=3e-4", "--set", "seed=1", "--resume")
    done = run("train", "r.toml", *manifests, "--out", tmp_path / "run", *options)
    assert done[:2] == (0, f"{tmp_path / 'best'}\n")
    assert seen["config"] == (Path("r.toml"), ["lr=3e-4", "seed=1"])
    assert [sample.image.name for sample in (*seen["train"], *seen["valid"])] == ["train.png", "valid.png"]
    assert (seen["out"], seen["resume"]) == (tmp_path / "run", True)


# --- index ----------------------------------------------------------------------------------------------------------


def lines(manifest: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in manifest.read_text().splitlines()]


class FakeAudit(ModuleType):
    """Stand in for the audit: a sample of the group "wrong" is broken, and one of the group "half" is an error."""

    def __init__(self) -> None:
        super().__init__("declip.datasets.audit")
        self.checked: list[dict[str, Any]] = []

    def check(self, samples: Sequence[Sample], **options: Any) -> Any:
        self.checked.append(options | {"samples": list(samples)})
        found = [sample.image.name for sample in samples if sample.group in ("wrong", "half")]
        groups = [sample.group for sample in samples]
        return SimpleNamespace(errors=len(found), to_json=lambda: json.dumps({"found": found}), groups=groups)

    def render(self, report: Any, console: Any) -> None:
        console.print(f"{report.errors} errors")

    def broken(self, report: Any) -> dict[int, str]:
        return dict.fromkeys((i for i, group in enumerate(report.groups) if group == "wrong"), "why")


@pytest.fixture
def audit(monkeypatch: pytest.MonkeyPatch) -> FakeAudit:
    module = FakeAudit()
    monkeypatch.setitem(sys.modules, "declip.datasets.audit", module)
    monkeypatch.setattr(datasets, "audit", module, raising=False)
    return module


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """A good sample, one that can be left out, and one that cannot be mended unless it is called otherwise."""
    groups = {"a": "right", "b": "wrong", "c": "right"}
    samples = [
        Sample(image=picture(tmp_path / "data" / f"{name}.png"), label="real", group=group)
        for name, group in groups.items()
    ]
    path = tmp_path / "data" / "samples.jsonl"
    datasets.write_manifest(path, samples, [{"seed": 1}, {"seed": 2}, None])
    return path


def test_index_writes_a_manifest(tmp_path: Path, run: Run) -> None:
    root, out = tmp_path / "dolos", tmp_path / "lists" / "samples.jsonl"
    for split, name in (("train", "7"), ("test", "8")):
        for generator in ("lama", "ldm"):
            for kind in ("images", "masks"):
                picture(root / "celebahq" / "fake" / generator / kind / split / f"{name}-0.png")
        picture(root / "celebahq" / "real" / split / f"{name}.png")
    arguments = ("index", "dolos", root, "--out", out)
    done = run(*arguments, "--generator", "lama,ldm", "--split", "train", "--reals")
    assert done == (0, "", f"declip: {out}: 2 manipulated and 1 real samples\n")
    assert lines(out) == [
        {
            "image": f"../dolos/celebahq/{image}.png",
            "mask": f"../dolos/celebahq/{mask}.png" if mask else None,
            "fake_is": "black" if mask else "white",
            "label": "fake" if mask else "real",
            "split": "train",
            "source": source,
            "group": "7",
        }
        for image, mask, source in (
            ("fake/lama/images/train/7-0", "fake/lama/masks/train/7-0", "lama"),
            ("real/train/7", None, "celebahq"),
            ("fake/ldm/images/train/7-0", "fake/ldm/masks/train/7-0", "ldm"),
        )
    ]
    before = out.read_bytes()
    assert run(*arguments, "--generator", "ldm") == (2, "", f"declip: {out} exists; --force overwrites it\n")
    assert out.read_bytes() == before
    assert run(*arguments, "--generator", "ldm", "--force").code == 0
    assert [line["split"] for line in lines(out)] == ["train", "test"]


def test_a_name_that_is_no_text_goes_into_a_manifest_and_back(tmp_path: Path, run: Run) -> None:
    photo = picture(tmp_path / "ph" / os.fsdecode(b"caf\xe9.png"))
    assert run("index", "folder", tmp_path / "ph", "--out", tmp_path / "s.jsonl").code == 0
    assert [sample.image for sample in datasets.read_manifest(tmp_path / "s.jsonl")] == [photo]


def test_index_of_the_other_layouts(tmp_path: Path, run: Run) -> None:
    auto = ("Forged_JPEG75/5_0.jpg", "Forged_JPEG90/5_0.jpg", "Mask/5_mask.png", "Authentic/5.jpg")
    coco = ("images/test/1-0.png", "masks/test/1-0.png", "images/train/2-0.png", "masks/train/2-0.png")
    for root, names in (("auto", auto), ("coco", coco), ("casia", ("Tp/1.jpg", "Gt/1_gt.png", "Au/2.jpg"))):
        for name in names:
            picture(tmp_path / root / name)
    (tmp_path / "casia.json").write_text('[["casia/Tp/1.jpg", "casia/Gt/1_gt.png"], ["casia/Au/2.jpg", "Negative"]]')

    def index(*arguments: object) -> list[list[str]]:
        assert run("index", *arguments, "--out", tmp_path / "x.jsonl", "--force")[:2] == (0, "")
        keys = ("image", "label", "fake_is", "split", "group")
        return [[line[key] for key in keys] for line in lines(tmp_path / "x.jsonl")]

    options = ("--quality", 90, "--split", "test")
    fake = ["auto/Forged_JPEG90/5_0.jpg", "fake", "white", "test", "5"]
    real = ["auto/Authentic/5.jpg", "real", "white", "test", "5"]
    assert index("autosplice", tmp_path / "auto", *options, "--no-reals") == [fake]
    assert index("autosplice", tmp_path / "auto", *options) == [fake, real]
    assert index("coco-sd", tmp_path / "coco", "--split", "test") == [
        ["coco/images/test/1-0.png", "fake", "white", "test", "1"]
    ]
    assert index("imdl", tmp_path / "casia") == [["casia/Tp/1.jpg", "fake", "white", "", ""]]
    assert index("imdl", tmp_path / "casia.json", "--split", "train") == [
        ["casia/Tp/1.jpg", "fake", "white", "train", ""],
        ["casia/Au/2.jpg", "real", "white", "train", ""],
    ]
    masks = ("--masks", tmp_path / "casia" / "Gt", "--mask-name", "{stem}_gt.png", "--fake-is", "black")
    assert index("folder", tmp_path / "casia" / "Tp", *masks, "--group", "(.)") == [
        ["casia/Tp/1.jpg", "fake", "black", "", "1"]
    ]
    assert index("folder", tmp_path / "casia" / "Au") == [["casia/Au/2.jpg", "real", "white", "", ""]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("dolls ROOT --out x.jsonl", "dolls is neither a manifest (.jsonl) nor a layout; those are dolos, autosplice,"),
        ("dolos --out x.jsonl", "dolos needs its folder: declip index dolos ROOT --out samples.jsonl"),
        ("dolos ROOT --out x.jsonl", "dolos needs a generator; expected one or several of lama, ldm,"),
        ("dolos ROOT --generator lama", "--out is missing"),
        ("dolos ROOT --generator lama --fix", "--out is missing"),
        ("dolos ROOT --generator lama --fake-is white --out x.jsonl", "--fake-is is not for dolos"),
        ("folder ROOT --mask-name {stem}.png --quality 75 --out x.jsonl", "--quality is not for folder"),
        ("autosplice ROOT --quality 80 --out x.jsonl", "quality is 80; expected 75, 90, 100, or None"),
        (
            "imdl gone.json --out x.jsonl",
            "gone.json: no such file or folder; expected a JSON file, or a folder with Tp/ and Gt/",
        ),
        ("s.jsonl", "s.jsonl is a manifest; add --check, --fix, or both"),
        ("s.jsonl ROOT --check", "s.jsonl is a manifest; expected nothing after it, got ROOT"),
        ("s.jsonl --split test --check", "--split is not for a manifest"),
        ("s.jsonl --check --out x.jsonl", "--out says where --fix writes; add --fix"),
        ("s.jsonl --fix --json", "--json prints what --check finds; add --check"),
        ("s.jsonl --check", "s.jsonl: no such manifest"),
    ],
)
def test_index_says_what_does_not_go_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run, arguments: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    done = run("index", *arguments.split())
    assert done[:2] == (2, "") and done.err.startswith(f"declip: {message}") and done.err.count("\n") == 1
    assert not any(tmp_path.iterdir())


def test_index_checks_a_manifest(audit: FakeAudit, manifest: Path, run: Run) -> None:
    before = manifest.read_bytes()
    assert run("index", manifest, "--check", "--workers", 2) == (1, "1 errors\n", "")
    assert run("index", manifest, "--check", "--json") == (1, '{"found": ["b.png"]}\n', "")
    assert [sample.image.name for sample in audit.checked[0]["samples"]] == ["a.png", "b.png", "c.png"]
    assert (audit.checked[0]["workers"], audit.checked[0]["progress"]) == (2, False)
    assert manifest.read_bytes() == before
    datasets.write_manifest(manifest, datasets.read_manifest(manifest)[:1])
    assert run("index", manifest, "--check").code == 0
    assert sorted(path.name for path in manifest.parent.iterdir()) == ["a.png", "b.png", "c.png", "samples.jsonl"]


def test_index_leaves_broken_samples_out(audit: FakeAudit, manifest: Path, run: Run) -> None:
    before = manifest.read_bytes()
    assert run("index", manifest, "--fix") == (2, "", f"declip: {manifest} exists; --force overwrites it\n")
    assert audit.checked == []
    out, said = manifest.parent / "lists" / "fixed.jsonl", f"{manifest.parent / 'b.png'} is left out: why\n"
    done = run("index", manifest, "--check", "--fix", "--out", out)
    assert done == (0, f"1 errors\n{said}", f"declip: {out}: 0 manipulated and 2 real samples\n")
    assert manifest.read_bytes() == before
    kept = [(line["image"], line.get("provenance")) for line in lines(out)]
    assert kept == [("../a.png", {"seed": 1}), ("../c.png", None)]
    pictures = {path: path.read_bytes() for path in manifest.parent.glob("*.png")}
    assert run("index", manifest, "--fix", "--force")[:2] == (0, said)
    kept = [(line["image"], line.get("provenance")) for line in lines(manifest)]
    assert kept == [("a.png", {"seed": 1}), ("c.png", None)]
    assert {path: path.read_bytes() for path in manifest.parent.glob("*.png")} == pictures


def test_index_says_what_fix_cannot_mend(audit: FakeAudit, manifest: Path, run: Run) -> None:
    samples = datasets.read_manifest(manifest)
    datasets.write_manifest(manifest, [*samples[:2], replace(samples[2], group="half")])
    done = run("index", manifest, "--check", "--json", "--fix", "--force")
    assert done.code == 1 and json.loads(done.out) == {"found": ["b.png", "c.png"]}
    assert "b.png is left out: why\n" in done.err
    assert "declip: errors that are left, which --fix cannot mend: 1" in done.err
    assert [line["image"] for line in lines(manifest)] == ["a.png", "c.png"]


def test_index_checks_what_it_writes(tmp_path: Path, audit: FakeAudit, run: Run) -> None:
    for name in ("wrong", "right"):
        picture(tmp_path / "photos" / f"{name}.png")
    arguments = ("index", "folder", tmp_path / "photos", "--group", "(.+)")
    assert run(*arguments, "--check")[:2] == (1, "1 errors\n")  # only looks
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]
    assert run(*arguments, "--check", "--out", tmp_path / "all.jsonl").code == 1
    assert len(lines(tmp_path / "all.jsonl")) == 2
    assert run(*arguments, "--fix", "--out", tmp_path / "good.jsonl").code == 0
    assert [line["group"] for line in lines(tmp_path / "good.jsonl")] == ["right"]


# --- the command itself ---------------------------------------------------------------------------------------------


def test_the_version(run: Run) -> None:
    assert run("--version") == (0, f"declip {declip.__version__}\n", "")


def test_errors_of_the_system_and_missing_extras_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    monkeypatch.setattr(cli, "app", lambda: (tmp_path / "gone").read_bytes())
    gone = tmp_path / "gone"
    assert run() == (2, "", f"declip: {gone}: No such file or directory\n")

    def app() -> None:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.setattr(cli, "app", app)
    said = "declip: this needs the package 'torch', which is not installed: pip install 'declip[torch]'\n"
    assert run() == (2, "", said)


def test_help_is_light() -> None:
    code = (
        "import sys\n"
        "from declip.cli.main import main\n"
        "try: main()\n"
        "finally: print(*(m for m in ('numpy', 'scipy', 'PIL', 'torch', 'onnxruntime') if m in sys.modules), 'end')"
    )
    result = script(code, "localize", "--help")
    assert result.returncode == 0 and "--batch-size" in result.stdout
    assert result.stdout.splitlines()[-1] == "end"


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_ctrl_c_exits_130(tmp_path: Path) -> None:
    code = (
        "import time\n"
        "from declip.cli import main as cli\nfrom declip.localize import folder\n"
        "def wait(paths):\n"
        "    print('ready', flush=True)\n"
        "    time.sleep(60)\n"
        "folder.find_pictures = wait\n"
        "cli.main()"
    )
    command = [sys.executable, "-c", code, "localize", "x", "--out", str(tmp_path)]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, text=True, env=ENVIRONMENT, **pipes) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in stderr


def test_a_closed_pipe_is_quiet() -> None:
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "declip", "--version"]
    result = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT, timeout=60)
    os.close(write)
    assert result.stderr == ""


def test_localize_with_mini_needs_no_torch(tmp_path: Path) -> None:
    code = "import sys; sys.modules['torch'] = None\nfrom declip.cli.main import main\nmain()"
    result = script(code, "localize", picture(tmp_path / "a.png"), "--out", tmp_path / "out", "--json")
    row = json.loads(result.stdout)
    assert (list(row), row["model"], row["width"]) == (KEYS, "mini", 64)


# --- serve ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def served(fake: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What `serve` hands to the server, instead of a server that runs."""

    def serve(app: Any, *, host: str, port: int, started: Any, **options: Any) -> None:
        fake.update(app=app, host=host, port=port, **options)
        started(f"http://{host}:{port}")

    monkeypatch.setattr(declip.serve, "serve", serve)
    monkeypatch.delenv("DECLIP_TOKEN", raising=False)
    return fake


def test_serve_is_for_this_machine_unless_told_otherwise(served: dict[str, Any], run: Run) -> None:
    assert run("serve") == (0, "", "declip: fake on http://127.0.0.1:8000\n")
    assert (served["model"], served["host"], served["port"]) == ("mini", "127.0.0.1", 8000)
    service = served["app"].state.service
    assert service.token is None and service.limits.seconds == 120
    assert (served["access_log"], served["proxies"]) == (True, ())
    (guard,) = served["app"].user_middleware
    assert set(guard.kwargs["hosts"]) == {"127.0.0.1", "localhost", "::1"}


def test_serve_passes_its_limits_and_the_token_of_the_environment(
    served: dict[str, Any], monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    monkeypatch.setenv("DECLIP_TOKEN", "secret")
    arguments = (
        "--host 0.0.0.0 --max-megabytes 2.5 --max-megapixels 0.5 --max-files 3 --queue 7 --timeout 9 --workers 2"
        " --port 0 --client-requests 5 --max-memory 50"
    )
    done = run("serve", *arguments.split())
    assert done.code == 0 and "DECLIP_TOKEN" not in done.err
    service = served["app"].state.service
    limits = service.limits
    assert (limits.request_bytes, limits.pixels, limits.files, limits.queue) == (2_500_000, 500_000, 3, 7)
    assert (limits.seconds, limits.client_requests, limits.held_bytes) == (9, 5, 50_000_000)
    assert service.token == "secret" and len(service.workers._threads) == 2
    assert served["app"].user_middleware[0].kwargs["hosts"] is None
    assert run("serve", "--no-access-log", "--trust-proxy", "127.0.0.1", "--trust-proxy", "10.0.0.0/8").code == 0
    assert (served["access_log"], served["proxies"]) == (False, ["127.0.0.1", "10.0.0.0/8"])


def test_serve_for_other_machines_wants_a_token(
    served: dict[str, Any], monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    """Or to be told that there is none, before any model is loaded."""
    for host in ("0.0.0.0", "::", "192.0.2.1", "photos.example.org"):
        done = run("serve", "--host", host)
        assert done.code == 2 and len(done.err.splitlines()) == 1 and host in done.err
        assert "set DECLIP_TOKEN" in done.err and "--no-token" in done.err
    assert "model" not in served
    public = ("serve", "--host", "0.0.0.0")
    assert run(*public, "--no-token").code == 0 and served["app"].state.service.token is None
    monkeypatch.setenv("DECLIP_TOKEN", "")
    done = run(*public)
    assert done.code == 2 and "the token is empty" in done.err
    monkeypatch.setenv("DECLIP_TOKEN", "secret")
    done = run(*public, "--no-token")
    assert done.code == 2 and "both a DECLIP_TOKEN and --no-token" in done.err
    assert run(*public).code == 0 and served["app"].state.service.token == "secret"


def test_serve_without_its_extra_says_the_pip_line() -> None:
    code = (
        "import sys\n"
        "for name in ('fastapi', 'starlette', 'uvicorn', 'python_multipart', 'prometheus_client', 'jinja2'):\n"
        "    sys.modules[name] = None\n"
        "from declip.cli import main as cli\n"
        "cli.main()\n"
    )
    result = script(code, "serve")
    assert result.returncode == 2 and len(result.stderr.splitlines()) == 1
    assert result.stderr.endswith("which is not installed: pip install 'declip[serve]'\n")
