"""The core install localizes: no torch, nor anything else that belongs to an extra."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from PIL import Image

import declip
from declip import errors

ROOT = Path(__file__).resolve().parents[2]
MINI = Path(declip.__file__).parent / "assets" / "mini.onnx"
PHOTOS = ROOT / "examples" / "photos"

# As if nothing of any extra were installed.
BLOCK = f"import sys; sys.modules.update(dict.fromkeys({sorted(errors._EXTRA_OF)!r}))\n"


def run(code: str) -> str:
    """Run code in a fresh interpreter without the extras; its stdout."""
    result = subprocess.run([sys.executable, "-c", BLOCK + code], capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_the_embedded_model_localizes() -> None:
    photo = min(PHOTOS.iterdir())
    code = (
        "import declip\n"
        f"result = declip.load(threads=2)({str(photo)!r})\n"
        "assert result.scores.dtype == 'float32' and 0 <= result.scores.min() and result.scores.max() <= 1\n"
        "assert sys.modules['torch'] is None\n"
        "print(*result.scores.shape, result.model, result.verdict)\n"
    )
    height, width, model, *verdict = run(code).split()
    assert (int(height), int(width)) == declip.images.read.read_photo(photo).size
    assert model == "mini"
    assert " ".join(verdict) in ("manipulated", "inconclusive", "nothing found")


def test_the_embedded_model_is_calibrated(tmp_path: Path) -> None:
    for level in range(20):
        Image.effect_noise((80, 80), 10 + level).convert("RGB").save(tmp_path / f"{level}.png")
    code = (
        "import declip\n"
        "from pathlib import Path\n"
        "from declip.calibration import calibrate\n"
        f"folder = Path({str(tmp_path)!r})\n"
        "photos = sorted(folder.iterdir())\n"
        "outcome = calibrate('mini', photos, folder / 'mine.onnx', rates=(0.05,))\n"
        "result = declip.load(folder / 'mine.onnx')(photos[0])\n"
        "assert sys.modules['torch'] is None\n"
        "print(result.model, outcome.calibration.photos[0], result.false_alarm_rate, result.verdict)\n"
    )
    model, photos, rate, *verdict = run(code).split()
    assert (model, photos, rate) == ("mine", "20", "0.05")
    assert " ".join(verdict) in ("manipulated", "nothing found")


def test_what_needs_an_extra_says_the_pip_line() -> None:
    code = (
        "import declip\n"
        f"checkpoint = {str(ROOT / 'tests/data/tiny.safetensors')!r}\n"
        "for ask in (lambda: declip.training, lambda: declip.load(checkpoint), lambda: declip.synthesis):\n"
        "    try:\n"
        "        ask()\n"
        "    except declip.MissingExtraError as error:\n"
        "        print(error)\n"
    )
    extras = [line.rpartition("pip install ")[2] for line in run(code).splitlines()]
    assert extras == ["'declip[torch]'", "'declip[torch]'", "'declip[synthesis]'"]


def test_weights_that_need_torch_are_not_fetched_without_it() -> None:
    code = (
        "import declip, urllib.request\n"
        "urllib.request.urlopen = lambda *a, **k: sys.exit('it was asked for')\n"
        "for name in ('vit-l14-conv20-ldm', 'fusion-conv20-ldm'):\n"
        "    try:\n"
        "        declip.load(name)\n"
        "    except declip.MissingExtraError as error:\n"
        "        print(error)\n"
    )
    assert run(code).count("pip install 'declip[torch]'") == 2


def test_importing_declip_imports_next_to_nothing() -> None:
    code = "import declip; print([name for name in ('numpy', 'scipy', 'PIL', 'onnxruntime') if name in sys.modules])"
    assert run(code) == "[]\n"
