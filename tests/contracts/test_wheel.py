"""The built wheel, installed alone into an empty environment, localizes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

import declip

ROOT = Path(__file__).resolve().parents[2]
MINI = Path(declip.__file__).parent / "assets" / "mini.onnx"

pytestmark = pytest.mark.slow


def run(*command: str | Path, cwd: Path) -> str:
    """Run a command outside of the repository and without its paths; its stdout."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    result = subprocess.run([*map(str, command)], capture_output=True, text=True, cwd=cwd, env=environment)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "build", "--wheel", "--outdir", folder, ROOT, cwd=folder)
    (path,) = folder.glob("*.whl")
    return path


def core_at_its_lowest() -> list[str]:
    """Of each dependency of the core, the lowest version that pyproject.toml allows."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert all(">=" in entry for entry in project["dependencies"])
    return [entry.replace(">=", "==") for entry in project["dependencies"]]


def test_what_is_in_it(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        info = f"declip-{declip.__version__}.dist-info"
        for name in ("LICENSE", "NOTICE"):
            assert archive.read(f"{info}/licenses/{name}") == (ROOT / name).read_bytes()
        for asset in ("mini.onnx", "mini.json", "report.html"):
            assert archive.read(f"declip/assets/{asset}") == (MINI.parent / asset).read_bytes()
        static = MINI.parents[1] / "serve" / "static"
        for path in (path for path in static.rglob("*") if path.is_file()):
            assert archive.read(f"declip/serve/static/{path.relative_to(static).as_posix()}") == path.read_bytes()
        assert {"declip/py.typed", f"{info}/entry_points.txt"} <= names
        assert {name.partition("/")[0] for name in names} == {"declip", info}
    assert wheel.stat().st_size <= 14_000_000


@pytest.mark.timeout(1800)  # a slow network is no fault of the wheel
@pytest.mark.parametrize("versions", ["newest", "lowest"])
def test_it_localizes(wheel: Path, tmp_path: Path, versions: str) -> None:
    if versions == "lowest" and sys.version_info >= (3, 13):
        pytest.skip("the lowest versions were built for Python 3.11 and 3.12")
    venv.create(tmp_path / "env")
    bin_ = tmp_path / "env" / ("Scripts" if os.name == "nt" else "bin")
    pip = (sys.executable, "-m", "pip", "--python", bin_ / "python")
    pinned = core_at_its_lowest() if versions == "lowest" else []
    run(*pip, "install", "--quiet", "--no-compile", wheel, *pinned, cwd=tmp_path)
    assert "Usage: " in run(bin_ / "declip", "--help", cwd=tmp_path)
    photo = min((ROOT / "examples" / "photos").iterdir())
    stdout = run(bin_ / "declip", "localize", photo, "--out", "out", "--json", "--offline", cwd=tmp_path)
    (line,) = stdout.splitlines()
    row = json.loads(line)
    assert (row["height"], row["width"]) == declip.images.read.read_photo(photo).size
    assert (row["image"], row["model"]) == (str(photo), "mini") and 0 <= row["score"] <= 1
    written = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert written == [f"{photo.name}.{kind}.png" for kind in ("mask", "overlay", "scores")]
    code = "import importlib.util as u, declip; print(u.find_spec('torch'), declip.__file__)"
    torch, _, file = run(bin_ / "python", "-c", code, cwd=tmp_path).strip().partition(" ")
    assert torch == "None" and Path(file).is_relative_to(tmp_path)
