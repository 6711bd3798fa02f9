"""The command line: what is printed where, exit codes, and what is not imported."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import declip
from declip import cli, localizer
from declip.localizer import Localizer
from declip.types import BackboneSpec, Calibration, DecoderSpec, ModelSpec

MINI = Path(declip.__file__).parent / "assets" / "mini.onnx"
needs_mini = pytest.mark.skipif(not MINI.is_file(), reason="the embedded model is not built yet")

KEYS = [
    "image",
    "width",
    "height",
    "score",
    "verdict",
    "false_alarm_rate",
    "score_threshold",
    "threshold",
    "area",
    "regions",
    "model",
    "sha256",
    "seconds",
]


class FakeEngine:
    """Bright is manipulated: logits = 8 × normalised brightness, at half the input's size."""

    spec = ModelSpec(
        backbones=(BackboneSpec(name="residual-statistics", layer=0),),
        decoder=DecoderSpec(kind="linear"),
        input_size=32,
        output_size=16,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        calibration=Calibration(image_thresholds=((0.01, 0.9), (0.05, 0.3)), photos=100),
    )
    model = "fake"
    sha256 = "00" * 32

    def logits(self, inputs: Mapping[str, Any]) -> Any:
        grey = inputs["image"].mean(axis=1)
        return np.float32(8) * grey.reshape(len(grey), 16, 2, 16, 2).mean(axis=(2, 4))


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Replace the model by FakeEngine; gives the arguments `load` was called with."""
    seen: dict[str, Any] = {}

    def load(model: Any = None, **options: Any) -> Localizer:
        seen.update(options, model=model)
        kept = {key: options[key] for key in ("mode", "threshold", "precision")}
        return Localizer(FakeEngine(), **kept)

    monkeypatch.setattr(localizer, "load", load)
    return seen


def picture(path: Path, white: int = 32, size: tuple[int, int] = (64, 64)) -> Path:
    pixels = np.zeros((*size, 3), np.uint8)
    pixels[:, :white] = 255
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, format="PNG")
    return path


def call(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """Run `declip ARGUMENTS` in this process; its exit code."""
    monkeypatch.setattr(sys, "argv", ["declip", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    return int(caught.value.code or 0)


def declip_process(*arguments: object, code: str | None = None, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "declip"] if code is None else [sys.executable, "-c", code]
    # As on a user's machine, where compiled modules are kept: compiling them anew takes a second.
    environment = os.environ | {"PYTHONPATH": str(Path(declip.__file__).parents[1]), "PYTHONDONTWRITEBYTECODE": ""}
    return subprocess.run(
        [*command, *map(str, arguments)], capture_output=True, text=True, env=environment, timeout=120, **options
    )


# --- localize -------------------------------------------------------------------------------------------------------


def test_json_is_one_line_per_image(
    tmp_path: Path, fake: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name, white in (("a.png", 64), ("b.png", 32), ("c.png", 0)):
        picture(tmp_path / "in" / name, white)
    assert call(monkeypatch, "localize", tmp_path / "in", "--out", tmp_path / "out", "--json") == 0
    stdout, stderr = capfd.readouterr()
    rows = [json.loads(line) for line in stdout.splitlines()]
    assert [list(row) for row in rows] == [KEYS] * 3
    assert [row["verdict"] for row in rows] == ["manipulated", "inconclusive", "nothing found"]
    assert [row["area"] for row in rows] == [1.0, 0.5, 0.0]
    assert rows[1]["score"] == pytest.approx(0.5, abs=1e-3)
    assert (rows[1]["false_alarm_rate"], rows[1]["score_threshold"]) == (0.05, 0.3)
    assert rows[0]["model"] == "fake"
    assert "3 localized" in stderr
    assert len(list((tmp_path / "out").iterdir())) == 9
    assert fake == {"model": "mini", "mode": None, "threshold": None, "precision": "exact", "offline": False}


def test_options_reach_the_library(
    tmp_path: Path, fake: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    photo, out = picture(tmp_path / "a.png"), tmp_path / "out"
    options = ("--model", "m.onnx", "--tile", "--threshold", 0.25, "--precision", "fast", "--offline", "--json")
    assert call(monkeypatch, "localize", photo, "--out", out, *options, "--batch-size", 2) == 0
    assert fake == {"model": "m.onnx", "mode": "tiled", "threshold": 0.25, "precision": "fast", "offline": True}
    row = json.loads(capfd.readouterr().out)
    assert row["threshold"] == 0.25
    assert row["verdict"] is None  # neither mode nor precision are the calibration's
    assert call(monkeypatch, "localize", photo, "--out", out, "--force", "--whole") == 0
    assert fake["mode"] == "whole"


def test_short_lines_without_json(
    tmp_path: Path, fake: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    photo = picture(tmp_path / "a.png", 64)
    assert call(monkeypatch, "localize", photo, "--out", tmp_path / "out") == 0
    assert capfd.readouterr().out == f"manipulated      score 1.000  area 100.00%  {photo}\n"


def test_bad_files_are_lines_and_exit_1(
    tmp_path: Path, fake: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "in"
    picture(folder / "good.png")
    Image.new("RGB", (200, 200), "red").save(folder / "cut.jpg", quality=95)
    (folder / "cut.jpg").write_bytes((folder / "cut.jpg").read_bytes()[:-400])
    (folder / "text.png").write_text("no picture")
    (folder / "notes.txt").write_text("not counted as a failure")
    assert call(monkeypatch, "localize", folder, "--out", tmp_path / "out", "--json") == 1
    stdout, stderr = capfd.readouterr()
    rows = [json.loads(line) for line in stdout.splitlines()]
    assert [row.get("kind") for row in rows] == ["corrupt", None, "format"]
    assert list(rows[0]) == ["image", "error", "kind"]
    assert "1 localized" in stderr
    assert "2 failed, 1 other files skipped" in stderr
    assert call(monkeypatch, "localize", folder, "--out", tmp_path / "out") == 1  # now the good one exists
    stdout, stderr = capfd.readouterr()
    assert stdout == ""
    assert "exists: " in stderr
    assert "--force" in stderr


def test_usage_and_missing_paths_exit_2(
    tmp_path: Path, fake: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    photo = picture(tmp_path / "a.png")
    assert call(monkeypatch, "localize", photo) == 2
    assert call(monkeypatch, "localize", photo, "--out", tmp_path / "out", "--threshold", 2) == 2
    assert call(monkeypatch, "localize", photo, "--out", tmp_path / "out", "--precision", "half") == 2
    assert call(monkeypatch, "localise", photo) == 2
    capfd.readouterr()
    assert call(monkeypatch, "localize", photo, tmp_path / "gone.png", "--out", tmp_path / "out") == 2
    stdout, stderr = capfd.readouterr()
    assert stdout == ""
    assert stderr == f"declip: {tmp_path / 'gone.png'}: there is no such file or folder\n"
    assert not (tmp_path / "out").exists()


def test_an_unknown_model_exits_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    photo = picture(tmp_path / "a.png")
    assert call(monkeypatch, "localize", photo, "--out", tmp_path / "out", "--model", "minni") == 2
    assert "did you mean mini" in capfd.readouterr().err
    options = ("--model", "fusion-conv20-ldm", "--offline")
    monkeypatch.setenv("DECLIP_CACHE", str(tmp_path / "cache"))
    assert call(monkeypatch, "localize", photo, "--out", tmp_path / "out", *options) == 2
    assert f"put it at {tmp_path / 'cache' / 'fusion-conv20-ldm.pth'}" in capfd.readouterr().err


def test_file_names_cannot_command_the_terminal(
    tmp_path: Path, fake: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    photo = picture(tmp_path / "a\x1b[2J\n.png")
    assert call(monkeypatch, "localize", photo, "--out", tmp_path / "out") == 0
    stdout = capfd.readouterr().out
    assert "\x1b" not in stdout
    assert stdout.count("\n") == 1
    assert r"a\x1b[2J\n.png" in stdout


def test_the_bar_never_swallows_results(
    tmp_path: Path, fake: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for i in range(6):
        picture(tmp_path / "in" / f"{i}.png")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert call(monkeypatch, "localize", tmp_path / "in", "--out", tmp_path / "out", "--json") == 0
    stdout, stderr = capfd.readouterr()
    assert [Path(json.loads(line)["image"]).name for line in stdout.splitlines()] == [f"{i}.png" for i in range(6)]
    assert "localizing" in stderr
    assert "6/6" in stderr


# --- the other verbs ------------------------------------------------------------------------------------------------


def test_models_lists_the_catalogue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DECLIP_CACHE", str(tmp_path))
    (tmp_path / "vit-l14-conv20-lama.safetensors").write_bytes(b"x" * 3_000_000)
    assert call(monkeypatch, "models") == 0
    lines = {line.split()[0]: line for line in capfd.readouterr().out.splitlines()}
    assert len(lines) == 11
    assert lines["vit-l14-conv20-lama"].split()[-3:] == ["3", "MB", "yes"]
    assert lines["fusion-conv20-ldm"].split()[-3:] == ["784", "MB", "no"]
    assert "CC BY-NC-SA 4.0" in lines["fusion-conv20-ldm"]
    assert "Apache-2.0" in lines["mini"]


@pytest.mark.parametrize("verb", [("convert", "x.pth"), ("export", "x.safetensors")])
def test_an_existing_file_is_not_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], verb: tuple[str, str]
) -> None:
    kept = tmp_path / "kept.onnx"
    kept.write_text("mine")
    assert call(monkeypatch, *verb, "--out", kept) == 2
    assert capfd.readouterr().err == f"declip: {kept} exists; --force overwrites it\n"
    assert kept.read_text() == "mine"


def test_synthesize_passes_its_settings_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from declip import datasets, synthesis
    from declip.types import Sample

    picture(tmp_path / "photos" / "b" / "2.png")
    picture(tmp_path / "photos" / "1.png")
    seen: dict[str, Any] = {}
    left_out = 0

    def synthesize(photos: Any, out: Path, **settings: Any) -> Path:
        seen.update(settings, photos=photos, out=out)
        fakes = len(photos) * settings["per_photo"] - left_out
        samples = [Sample(image=out / "f.png", mask=out / "m.png", label="fake")] * fakes
        datasets.write_manifest(out / "samples.jsonl", [*samples, Sample(image=out / "r.png", label="real")])
        return out / "samples.jsonl"

    monkeypatch.setattr(synthesis, "synthesize", synthesize)
    options = ("--generators", "telea,splice", "--seed", 3, "--per-photo", 2, "--size", 256, "--workers", 2)
    assert call(monkeypatch, "synthesize", tmp_path / "photos", "--out", tmp_path / "data", *options) == 0
    assert capfd.readouterr().out == f"{tmp_path / 'data' / 'samples.jsonl'}\n"
    assert seen["photos"] == [tmp_path / "photos" / "1.png", tmp_path / "photos" / "b" / "2.png"]
    assert (seen["generators"], seen["masks"]) == (["telea", "splice"], ["random", "object"])
    assert (seen["seed"], seen["size"], seen["per_photo"], seen["workers"]) == (3, 256, 2, 2)
    assert (seen["jpeg_share"], seen["webp_share"], seen["resize_share"], seen["social_share"]) == (0.5, 0, 0, 0)
    assert (seen["models"], seen["layout"], seen["fully_regenerated"]) == ({}, "manifest", False)
    options = ("--masks", "face", "--weights", "lama=a=b.pt", "--weights", "ldm=o/n", "--steps", 9, "--device", "cuda")
    more = ("--fully-regenerated", "--autoencoder", "o/vae", "--layout", "dolos", "--webp", 0.2, "--social", 0.1)
    last = ("--jpeg", 0.4, "--resize", 0.3, "--social-side", 300)
    assert call(monkeypatch, "synthesize", tmp_path / "photos", "--out", tmp_path / "data", *options, *more, *last) == 0
    assert seen["models"] == {"lama": "a=b.pt", "ldm": "o/n"} and seen["masks"] == ["face"]
    assert (seen["steps"], seen["device"], seen["fully_regenerated"]) == (9, "cuda", True)
    assert (seen["autoencoder"], seen["layout"]) == ("o/vae", "dolos")
    assert (seen["jpeg_share"], seen["webp_share"], seen["resize_share"]) == (0.4, 0.2, 0.3)
    assert (seen["social_share"], seen["social_side"]) == (0.1, 300)
    capfd.readouterr()
    left_out = 1
    assert call(monkeypatch, "synthesize", tmp_path / "photos", "--out", tmp_path / "data") == 1
    assert capfd.readouterr().out == f"{tmp_path / 'data' / 'samples.jsonl'}\n"
    assert call(monkeypatch, "synthesize", tmp_path / "photos", "--out", tmp_path / "data", "--weights", "lama") == 2
    assert capfd.readouterr().err == "declip: got lama; expected NAME=SOURCE\n"


def test_train_passes_recipe_parts_and_changes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from declip import datasets, training
    from declip.types import Sample

    for split in ("train", "valid"):
        sample = Sample(image=picture(tmp_path / f"{split}.png"), label="real", split=split)
        datasets.write_manifest(tmp_path / f"{split}.jsonl", [sample])
    seen: dict[str, Any] = {}

    def train(config: Any, **settings: Any) -> training.Run:
        seen.update(settings, config=config)
        return training.Run(best=tmp_path / "best", last=tmp_path / "last", epoch=1, iou=0.5, ap=0.5)

    def from_toml(path: Path, changes: Any = ()) -> Any:
        return path, list(changes)

    monkeypatch.setattr(training, "train", train)
    monkeypatch.setattr(training.TrainConfig, "from_toml", from_toml)
    manifests = ("--data", tmp_path / "train.jsonl", "--data", tmp_path / "valid.jsonl")
    options = ("--set", "lr=3e-4", "--set", "seed=1", "--resume")
    assert call(monkeypatch, "train", "r.toml", *manifests, "--out", tmp_path / "run", *options) == 0
    assert capfd.readouterr().out == f"{tmp_path / 'best'}\n"
    assert seen["config"] == (Path("r.toml"), ["lr=3e-4", "seed=1"])
    assert [sample.image.name for sample in seen["train"]] == ["train.png"]
    assert [sample.image.name for sample in seen["valid"]] == ["valid.png"]
    assert (seen["out"], seen["resume"]) == (tmp_path / "run", True)


def test_the_version(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, "--version") == 0
    assert capfd.readouterr().out == f"declip {declip.__version__}\n"


def test_errors_of_the_system_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "app", lambda: (tmp_path / "gone").read_bytes())
    assert call(monkeypatch) == 2
    assert capfd.readouterr().err == f"declip: [Errno 2] No such file or directory: '{tmp_path / 'gone'}'\n"


def test_a_missing_extra_says_the_pip_line(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    def app() -> None:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.setattr(cli, "app", app)
    assert call(monkeypatch) == 2
    assert "pip install 'declip[torch]'" in capfd.readouterr().err


# --- processes ------------------------------------------------------------------------------------------------------


def test_help_is_light() -> None:
    code = (
        "import sys; sys.argv = ['declip', *sys.argv[1:]]\n"
        "from declip.cli import main\n"
        "try: main()\n"
        "finally: print(*(m for m in ('numpy', 'scipy', 'PIL', 'torch', 'onnxruntime') if m in sys.modules), 'end')"
    )
    result = declip_process("localize", "--help", code=code)
    assert result.returncode == 0
    assert "--batch-size" in result.stdout
    assert result.stdout.splitlines()[-1] == "end"


def test_importing_declip_imports_nothing_heavy() -> None:
    heavy = ("numpy", "scipy", "PIL", "torch", "onnxruntime", "typer", "rich")
    code = f"import sys, declip; print([m for m in {heavy} if m in sys.modules])"
    assert declip_process(code=code).stdout == "[]\n"


def test_a_missing_path_in_a_process() -> None:
    result = declip_process("localize", "gone.png", "--out", "out")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "declip: gone.png: there is no such file or folder\n"


def test_the_public_names() -> None:
    assert set(declip.__all__) <= set(dir(declip))
    assert declip.overlay is declip.image.overlay
    assert declip.Localizer is Localizer
    assert declip.MODELS[0].name == "mini"
    with pytest.raises(AttributeError, match="has no attribute 'localise'"):
        declip.localise  # noqa: B018


@pytest.mark.parametrize("name", declip.__all__)
def test_every_public_name_exists(name: str) -> None:
    assert getattr(declip, name) is not None


def test_without_torch_the_light_names_work_and_the_others_say_why() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import declip\n"
        "print(declip.load.__name__, declip.ModelSpec.__name__)\n"
        "try: declip.export\n"
        "except declip.MissingExtraError as error: print(error)"
    )
    result = declip_process(code=code)
    assert result.stdout.splitlines() == [
        "load ModelSpec",
        "this needs the package 'torch', which is not installed: pip install 'declip[torch]'",
    ]


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_ctrl_c_exits_130(tmp_path: Path) -> None:
    code = (
        "import time\n"
        "from declip import cli, outputs\n"
        "def wait(paths):\n"
        "    print('ready', flush=True)\n"
        "    time.sleep(60)\n"
        "outputs.find_pictures = wait\n"
        "cli.main()"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(declip.__file__).parents[1])}
    command = [sys.executable, "-c", code, "localize", "x", "--out", str(tmp_path)]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, text=True, env=environment, **pipes) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in stderr


def test_a_closed_pipe_is_quiet() -> None:
    environment = os.environ | {"PYTHONPATH": str(Path(declip.__file__).parents[1])}
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "declip", "--version"]
    result = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, env=environment, timeout=60)
    os.close(write)
    assert result.stderr == ""


# --- the embedded model ---------------------------------------------------------------------------------------------


@needs_mini
def test_localize_with_mini_needs_no_torch(tmp_path: Path) -> None:
    photo = picture(tmp_path / "a.png", size=(300, 200))
    code = "import sys; sys.modules['torch'] = None\nfrom declip.cli import main\nmain()"
    result = declip_process("localize", photo, "--out", tmp_path / "out", "--json", code=code)
    assert result.returncode == 0, result.stderr
    row = json.loads(result.stdout)
    assert list(row) == KEYS
    assert (row["model"], row["width"], row["height"]) == ("mini", 200, 300)
    assert row["sha256"] == declip.load().sha256


@needs_mini
def test_the_issues_folder_of_bad_files(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    picture(folder / "good.png")
    Image.new("RGB", (200, 200), "red").save(folder / "cut.jpg", quality=95)
    (folder / "cut.jpg").write_bytes((folder / "cut.jpg").read_bytes()[:-400])
    (folder / "text.png").write_text("no picture")
    result = declip_process("localize", folder, "--out", tmp_path / "out", "--json")
    assert result.returncode == 1
    assert [json.loads(line).get("kind") for line in result.stdout.splitlines()] == ["corrupt", None, "format"]


@needs_mini
def test_a_512_px_photo_takes_2_seconds_from_start_to_end(tmp_path: Path) -> None:
    photo = picture(tmp_path / "a.png", size=(512, 512))
    taken = []
    for i in range(6):
        start = time.perf_counter()
        assert declip_process("localize", photo, "--out", tmp_path / f"out{i}").returncode == 0
        taken.append(time.perf_counter() - start)
    assert min(taken) <= 2
