"""The doors agree: command line, service, batch and Python say the same of the same file, in every field."""

from __future__ import annotations

import base64
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

import declip
from declip.images.mapfiles import mask_png, scores_png
from declip.images.overlay import overlay_png
from declip.localize.localizer import Localizer
from tests.serve import serving

REAL_SCOPE = True
ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples" / "photos"
MINI = Path(declip.__file__).parent / "assets" / "mini.onnx"
DATA = ROOT.parent / "shared" / "data"

# Told by one door in its own way: where the file lay, and how long it took.
OWN = ("image", "seconds")


@pytest.fixture(scope="module")
def mini() -> Localizer:
    return declip.load()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Something manipulated, in doubt, untouched, no photograph, and too small."""
    folder = tmp_path_factory.mktemp("doors")
    names = ("astronaut-navier-stokes.jpg", "rocket-telea.jpg", "coffee-untouched.jpg")
    for name in names:
        (folder / name).write_bytes((EXAMPLES / name).read_bytes())
    drawn = Image.new("RGB", (640, 480), "white")
    draw = ImageDraw.Draw(drawn)
    for row in range(20):
        draw.text((20, 10 + 22 * row), f"Line {row}: this is a page of text, and no photograph at all.", fill="black")
    drawn.save(folder / "text.png")
    Image.new("RGB", (8, 8), (90, 120, 40)).save(folder / "tiny.png")
    return sorted(folder.iterdir())


def told(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key not in OWN}


def command(*arguments: object) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "declip", *map(str, arguments)], capture_output=True, text=True, check=True, timeout=300
    )
    return done.stdout


@pytest.fixture(scope="module")
def direct(mini: Localizer, files: list[Path]) -> list[declip.Localization]:
    return [mini(path) for path in files]


def test_the_files_have_all_verdicts(direct: list[declip.Localization]) -> None:
    assert {result.verdict for result in direct} == {"manipulated", "inconclusive", "nothing found", "not examined"}


@pytest.mark.parametrize("options", [(), ("--threshold", 0.3)], ids=["own rule", "threshold"])
def test_the_command_line_says_what_python_says(
    direct: list[declip.Localization], files: list[Path], tmp_path: Path, options: tuple[object, ...]
) -> None:
    rows = [
        json.loads(line) for line in command("localize", *files, "--out", tmp_path, "--json", *options).splitlines()
    ]
    if options:
        direct = [declip.load(threshold=0.3)(path) for path in files]
    for path, row, result in zip(files, rows, direct, strict=True):
        assert told(row) == json.loads(json.dumps(told(result.to_dict())))
        with Image.open(tmp_path / f"{path.name}.mask.png") as mask:
            assert np.array_equal(np.asarray(mask) > 0, result.mask)
        assert (row["area"] > 0) == bool(row["regions"]) == bool(result.mask.any())


@pytest.fixture(scope="module")
def client(mini: Localizer) -> Iterator[Any]:
    with serving.running(mini) as client:
        yield client


def test_the_service_says_what_python_says(client: Any, direct: list[declip.Localization], files: list[Path]) -> None:
    for path, result in zip(files, direct, strict=True):
        answer = client.post(
            "/v1/localize", files={"file": (path.name, path.read_bytes())}, data={"maps": "mask,overlay,scores"}
        )
        (row,) = answer.json()["results"]
        maps = row.pop("maps")
        assert told(row) == json.loads(json.dumps(told(result.to_dict())))
        assert base64.b64decode(maps["mask"]) == mask_png(result.mask)
        assert base64.b64decode(maps["scores"]) == scores_png(result.scores)
        assert base64.b64decode(maps["overlay"]) == overlay_png(path, result)


@pytest.mark.slow
def test_the_service_writes_the_page_of_the_command_line(client: Any, files: list[Path], tmp_path: Path) -> None:
    """To the letter, but for the date. The untouched photo's page once showed a red part that no other door flagged."""
    dates = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC")
    for path in files:
        out = tmp_path / f"{path.name}.html"
        command("report", path, "--out", out)
        page = client.post("/v1/report", files={"file": (path.name, path.read_bytes())}).text
        assert dates.sub("", page) == dates.sub("", out.read_text(encoding="utf-8"))


def test_the_facts_of_a_report_are_those_of_the_result(mini: Localizer, files: list[Path], tmp_path: Path) -> None:
    (path,) = (path for path in files if path.name.startswith("coffee"))
    facts = json.loads(command("report", path, "--out", tmp_path / "page.html", "--json"))
    row = json.loads(json.dumps(mini(path).to_dict()))
    assert {key: facts[key] for key in told(row)} == told(row)


def test_the_batch_says_what_python_says(mini: Localizer, direct: list[declip.Localization], files: list[Path]) -> None:
    pytest.importorskip("pyarrow")
    from declip.batch.rows import decode_mask
    from declip.batch.worker import localize_part

    for path, row, result in zip(files, localize_part(mini, list(map(str, files)), "mini"), direct, strict=True):
        expected = result.to_dict()
        assert {key: row[key] for key in told(expected)} == told(expected), path
        assert np.array_equal(decode_mask(row), result.mask)


# --- no contradictions ----------------------------------------------------------------------------------------------


def contradictions(row: dict[str, Any], mask: Any) -> list[str]:
    """What of a row speaks against the rest of it."""
    flagged, verdict = bool(mask.any()), row["verdict"]
    words = {region["verdict"] for region in row["regions"]}
    strongest = max((region["rank"] for region in row["regions"]), default=None)
    checks = {
        "a verdict over an empty mask": verdict in ("manipulated", "inconclusive") and not flagged,
        "a mask under no finding": verdict in ("nothing found", "not examined") and flagged,
        "regions and mask": flagged != bool(row["regions"]) or flagged != (row["area"] > 0),
        "words of the parts": flagged and (verdict not in words or not words <= {"manipulated", "inconclusive"}),
        "score and strongest part": strongest is not None and strongest != row["score"],
        "score and verdict": verdict == "manipulated" and row["score"] < 1 - row["false_alarm_rate"] - 1e-9,
        "nothing, yet as rare": verdict == "nothing found" and row["score"] >= 1 - row["false_alarm_rate"] - 1e-9,
    }
    return [name for name, wrong in checks.items() if wrong]


def test_what_counts_as_a_contradiction() -> None:
    region = {"rank": 0.96, "verdict": "inconclusive"}
    row = {"verdict": "inconclusive", "score": 0.96, "false_alarm_rate": 0.05, "area": 0.5, "regions": [region]}
    some, none = np.ones((2, 2), bool), np.zeros((2, 2), bool)
    assert contradictions(row, some) == []
    assert contradictions(row, none) == ["a verdict over an empty mask", "regions and mask"]
    assert "a mask under no finding" in contradictions(row | {"verdict": "nothing found"}, some)
    assert "score and strongest part" in contradictions(row | {"score": 0.97}, some)


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason="needs ../shared")
@pytest.mark.timeout(1500)
def test_no_result_contradicts_itself_on_real_files(mini: Localizer) -> None:
    forged = sorted((DATA / "forged" / "dev").glob("*/image/*"))
    valid = sorted((DATA / "photos" / "valid").iterdir())
    wrong, sizes, alarms = {}, [0, 0, 0], [0, 0, 0]
    for path, result in zip([*forged, *valid], mini.map([*forged, *valid]), strict=True):
        assert isinstance(result, declip.Localization)
        if found := contradictions(result.to_dict(), result.mask):
            wrong[path.name] = found
        if path.parent.name == "valid":
            size_class = declip.Calibration.size_class(result.scores.size)
            sizes[size_class] += 1
            alarms[size_class] += result.verdict == "manipulated"
    assert len(forged) == 125 and len(valid) == 118 and wrong == {}
    # Promised is 1 %. Only sizes of at least 50 photos can show it.
    print("untouched photos called manipulated, by size:", alarms, "of", sizes)
    assert all(alarm <= 0.02 * size for alarm, size in zip(alarms, sizes, strict=True) if size >= 50)
