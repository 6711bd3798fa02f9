"""The data set: pairs through one save path, the same bytes from the same seed, runs that resume."""

from __future__ import annotations

import json
import logging
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, JpegImagePlugin
from skimage import data

from declip.datasets import parse_line, read_manifest
from declip.errors import DatasetError
from declip.images.mapfiles import read_mask
from declip.images.read import read_photo
from declip.results import Sample
from declip.synthesis import Recipe, pairs, synthesize
from declip.synthesis.forging import Scene
from declip.synthesis.history import Saving
from declip.synthesis.networks import Networks

GENERATORS = ("telea", "splice-hard", "copy-move", "noise")


@pytest.fixture(scope="module")
def made(photos: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthesize(photos, _recipe(), tmp_path_factory.mktemp("made"))


def _recipe(**changes: Any) -> Recipe:
    settings: dict[str, Any] = {"generators": GENERATORS, "seed": 7, "size": 112, "per_photo": 8}
    return Recipe(**{**settings, **changes})


def _files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def _records(manifest: Path) -> list[tuple[Sample, dict[str, Any]]]:
    lines = manifest.read_text(encoding="utf-8").splitlines()
    return [parse_line(line, manifest.parent, "test") for line in lines]


def test_a_pair_for_every_turn(made: Path, photos: list[Path]) -> None:
    samples = read_manifest(made)
    assert made.name == "samples.jsonl" and len(samples) == 2 * 8 * len(photos)
    fakes, reals = samples[::2], samples[1::2]
    assert [sample.source for sample in fakes] == list(GENERATORS) * 6
    assert {(real.source, real.label, real.mask) for real in reals} == {("real", "real", None)}
    assert {fake.label for fake in fakes} == {"fake"} and {sample.split for sample in samples} == {"train"}
    assert [fake.group for fake in fakes] == [real.group for real in reals]
    assert {sample.group for sample in samples} == {"cat", "astronaut", "small"}
    assert sorted(path.name for path in made.parent.iterdir()) == ["images", "masks", "samples.jsonl", "synthesis.json"]


def test_fakes_differ_from_their_twins_inside_the_mask_only(made: Path) -> None:
    samples = read_manifest(made)
    lossless = 0
    for fake, real in zip(samples[::2], samples[1::2], strict=True):
        one, other, mask = read_photo(fake.image).pixels, read_photo(real.image).pixels, read_mask(fake)
        assert one.shape == other.shape and mask.shape == one.shape[:2] and max(mask.shape) <= 112
        assert 0 < mask.mean() < 0.6
        difference = np.abs(one.astype(int) - other).max(axis=2)
        assert difference[mask].mean() > 2 * difference[~mask].mean()
        if fake.image.suffix == ".png":
            lossless += 1
            assert difference[~mask].max() == 0
            assert (difference[mask] >= 2).mean() >= 0.5
    assert 6 <= lossless <= 18


def test_provenance_leads_back_to_the_photo(made: Path, photos: list[Path]) -> None:
    by_name = {path.name: read_photo(path).pixels for path in photos}
    compared = 0
    records = _records(made)
    for (_, made_of), (_, twin_of) in zip(records[::2], records[1::2], strict=True):
        assert {key: made_of[key] for key in twin_of} == twin_of
    for sample, provenance in records:
        assert "after" not in provenance
        if sample.label == "fake":
            assert list(provenance)[0:2] == ["generator", "family"] and list(provenance)[-1] == "saved"
            assert provenance["generator"] == sample.source and provenance["mask"] in ("random", "object")
            assert provenance["area"] == pytest.approx(read_mask(sample).mean(), abs=1e-5)
            assert ("donor" in provenance) == (sample.source == "splice-hard")
            if "donor" in provenance:
                assert provenance["donor"]["photo"] != provenance["photo"]
            continue
        x0, y0, x1, y1 = provenance["crop"]
        if sample.image.suffix == ".png" and provenance["scale"] == 1 and "before" not in provenance:
            assert np.array_equal(read_photo(sample.image).pixels, by_name[provenance["photo"]][y0:y1, x0:x1])
            compared += 1
        if provenance["photo"] == "small.png":
            assert (x0, y0, x1, y1) == (0, 0, 90, 80)  # smaller than the size: used whole
    assert compared >= 4


def test_large_photos_are_sometimes_downscaled() -> None:
    rng = np.random.default_rng(0)
    frames = [pairs.draw_frame((200, 180), Recipe(size=64), rng) for _ in range(200)]
    scales = [scale for _, scale in frames]
    assert 20 <= sum(scale < 1 for scale in scales) <= 60 and min(scales) >= 0.4
    assert all(round((x1 - x0) * scale) == round((y1 - y0) * scale) == 64 for (x0, y0, x1, y1), scale in frames)
    # Of many sizes and shapes, lying as the photo does or across it.
    lived = Recipe(size=160, smallest_size=80, narrowest=0.5, downscaled=0)
    boxes = [box for box, _ in (pairs.draw_frame((400, 600), lived, rng) for _ in range(200))]
    sides = [(y1 - y0, x1 - x0) for x0, y0, x1, y1 in boxes]
    assert all(80 <= max(side) <= 160 and min(side) >= 0.49 * max(side) for side in sides)
    assert 20 <= sum(height > width for height, width in sides) <= 60


def test_the_seed_decides_the_bytes(made: Path, photos: list[Path], tmp_path: Path) -> None:
    other = synthesize(photos, _recipe(seed=8, per_photo=1), tmp_path)
    assert other.read_text().splitlines()[0] not in made.read_text().replace("[7, ", "[8, ")
    files = _files(tmp_path)
    synthesize(photos, _recipe(seed=8, per_photo=1), tmp_path / "same")
    assert _files(tmp_path / "same") == files


@pytest.mark.slow
def test_workers_change_nothing(made: Path, photos: list[Path], tmp_path: Path) -> None:
    synthesize(photos, _recipe(), tmp_path / "two", workers=2)
    assert _files(tmp_path / "two") == _files(made.parent)


def test_an_interrupted_run_resumes(
    made: Path, photos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[int] = []
    make = pairs.Maker.make

    def stop_at_nine(maker: pairs.Maker, index: int, cache: dict[Path, Scene]) -> list[str]:
        tried.append(index)
        if index == 9 and 8 in tried:
            raise KeyboardInterrupt
        return make(maker, index, cache)

    monkeypatch.setattr(pairs.Maker, "make", stop_at_nine)
    with pytest.raises(KeyboardInterrupt):
        synthesize(photos, _recipe(), tmp_path)
    assert not (tmp_path / "samples.jsonl").exists()
    # As after a power cut: half a line, and a picture that is gone.
    with (tmp_path / "samples.jsonl.part").open("a") as stream:
        stream.write('{"image": "images/0000')
    next((tmp_path / "images").glob("000003-noise.*")).unlink()
    tried.clear()
    synthesize(photos, _recipe(), tmp_path)
    assert tried == [3, *range(9, 24)]
    assert _files(tmp_path) == _files(made.parent)
    tried.clear()
    synthesize(photos, _recipe(), tmp_path)
    assert tried == []
    assert _files(tmp_path) == _files(made.parent)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="kills by signal")
def test_a_killed_process_resumes(made: Path, photos: list[Path], tmp_path: Path) -> None:
    code = (
        "import os, signal\n"
        "from declip.synthesis import Recipe, pairs, synthesize\n"
        "make = pairs.Maker.make\n"
        "def kill(maker, index, cache):\n"
        "    lines = make(maker, index, cache)\n"
        "    return os.kill(os.getpid(), signal.SIGKILL) if index == 5 else lines\n"
        "pairs.Maker.make = kill\n"
        f"recipe = Recipe(generators={GENERATORS!r}, seed=7, size=112, per_photo=8)\n"
        f"synthesize({[str(path) for path in photos]!r}, recipe, {str(tmp_path)!r})\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGKILL
    assert not (tmp_path / "samples.jsonl").exists()
    assert (tmp_path / "samples.jsonl.part").read_text().count("\n") == 10
    synthesize(photos, _recipe(), tmp_path)
    assert _files(tmp_path) == _files(made.parent)


def test_a_bad_photo_is_left_out(photos: list[Path], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    bad = tmp_path / "bad.png"
    bad.write_text("no picture")
    with caplog.at_level(logging.WARNING):
        manifest = synthesize([photos[0], bad], _recipe(generators=["telea"], per_photo=2), tmp_path / "out")
    assert [sample.group for sample in read_manifest(manifest)] == [photos[0].stem] * 4
    assert "sample 2 is left out: ImageError" in caplog.text and "2 of 4 samples were left out" in caplog.text


def test_nothing_invisible_gets_a_mask(tmp_path: Path) -> None:
    """A blurred flat picture is the same picture."""
    Image.fromarray(np.full((96, 96, 3), 90, dtype=np.uint8)).save(tmp_path / "flat.png")
    with pytest.raises(DatasetError, match=r"not one of 1 samples.*only 0% of the masked pixels changed visibly"):
        synthesize([tmp_path / "flat.png"], Recipe(generators=("blur",)), tmp_path / "out")


def test_what_cannot_be_is_refused(made: Path, photos: list[Path], tmp_path: Path) -> None:
    before = _files(made.parent)
    with pytest.raises(DatasetError, match=r"other settings \(seed, size, saving\)"):
        synthesize(photos, _recipe(seed=8, size=96, saving=Saving(webp=0.1)), made.parent)
    assert _files(made.parent) == before
    with pytest.raises(DatasetError, match="no photos"):
        synthesize([], _recipe(), tmp_path / "out")
    with pytest.raises(DatasetError, match="two photos or more"):
        synthesize(photos[:1], _recipe(), tmp_path / "out")
    with pytest.raises(DatasetError, match="workers is 0"):
        synthesize(photos, _recipe(), tmp_path / "out", workers=0)
    for changes in ({"generators": ["regenerate-local"]}, {"networks": Networks(fully_regenerated=True)}):
        with pytest.raises(DatasetError, match="need an autoencoder"):
            synthesize(photos, _recipe(**changes), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "samples.jsonl").write_text("")
    with pytest.raises(DatasetError, match="was not synthesized"):
        synthesize(photos, _recipe(), tmp_path)


def test_photos_and_donors_are_saved_before(photos: list[Path], tmp_path: Path) -> None:
    recipe = _recipe(generators=["splice"], saving=Saving(before=1.0, donor=1.0), per_photo=4)
    for _, made_of in _records(synthesize(photos[:2], recipe, tmp_path))[::2]:
        for (before,) in (made_of["before"], made_of["donor"]["before"]):
            assert before["format"] == "jpeg" and 70 <= before["quality"] <= 98
        assert made_of["before"] != made_of["donor"]["before"]


def test_after_the_manipulation_twins_share_every_step(photos: list[Path], tmp_path: Path) -> None:
    saving = Saving(jpeg=0.3, webp=0.4, resize=0.5, social=0.4, social_side=72)
    records = _records(synthesize(photos[:2], _recipe(saving=saving), tmp_path))
    formats, qualities, smaller, social = set(), set(), 0, 0
    for (fake, made_of), (real, twin_of) in zip(records[::2], records[1::2], strict=True):
        assert made_of["saved"] == twin_of["saved"] and made_of.get("after") == twin_of.get("after")
        one, other, mask = read_photo(fake.image).pixels, read_photo(real.image).pixels, read_mask(fake)
        assert one.shape == other.shape and mask.shape == one.shape[:2]
        assert made_of["area"] == pytest.approx(mask.mean(), abs=1e-5)
        with Image.open(fake.image) as opened, Image.open(real.image) as untouched:
            assert opened.format == untouched.format == made_of["saved"]["format"].upper()
            if opened.format == "JPEG":
                assert opened.quantization == untouched.quantization  # type: ignore[attr-defined]
                chroma = {"4:4:4": 0, "4:2:0": 2}[made_of["saved"]["chroma"]]
                assert JpegImagePlugin.get_sampling(opened) == JpegImagePlugin.get_sampling(untouched) == chroma
                qualities.add(made_of["saved"]["quality"])
        formats.add(made_of["saved"]["format"])
        resized = [step["resized"] for step in made_of.get("after", ()) if "resized" in step]
        smaller += bool(resized)
        assert not resized or tuple(resized[-1]) == mask.shape
        if any(step.get("format") == "jpeg" for step in made_of.get("after", ())):
            social += 1
            assert max(mask.shape) <= 72 and 70 <= made_of["saved"]["quality"] <= 85
            assert made_of["saved"]["chroma"] == "4:2:0"
        # Where the mask is, the pictures still differ most.
        difference = np.abs(one.astype(int) - other).max(axis=2)
        assert difference[mask].mean() > difference[~mask].mean()
    assert formats == {"png", "jpeg", "webp"} and smaller >= 4 and social >= 3
    assert len(qualities) > 4 and min(qualities) >= 60 and max(qualities) <= 95


def test_the_layout_of_dolos(made: Path, photos: list[Path], tmp_path: Path) -> None:
    manifest = synthesize(photos[:1], _recipe(generators=["telea"], layout="dolos", split="valid"), tmp_path / "dolos")
    plain = synthesize(photos[:1], _recipe(generators=["telea"], split="valid"), tmp_path / "plain")
    assert json.loads((tmp_path / "dolos" / "synthesis.json").read_text())["layout"] == "dolos"
    fakes, reals = (read_manifest(manifest)[first::2] for first in (0, 1))
    root = tmp_path / "dolos"
    assert fakes[3].image == root / "fake" / "telea" / "images" / "valid" / "000000-3.png"
    assert fakes[3].mask == root / "fake" / "telea" / "masks" / "valid" / "000000-3.png"
    assert reals[3].image == root / "real" / "valid" / "000000-3.png"
    assert sorted(path.name for path in root.iterdir()) == ["fake", "real", "samples.jsonl", "synthesis.json"]
    for fake, real, before in zip(fakes, reals, read_manifest(plain)[::2], strict=True):
        assert fake.fake_is == "black" and fake.mask is not None and before.mask is not None
        # The same pictures as in the other layout, JPEG and all, and the inverse of its masks.
        assert np.array_equal(read_photo(fake.image).pixels, read_photo(before.image).pixels)
        assert np.array_equal(read_mask(fake), read_mask(before))
        assert np.array_equal(255 - np.asarray(Image.open(fake.mask)), np.asarray(Image.open(before.mask)))
        with Image.open(fake.image) as one, Image.open(real.image) as other:
            assert one.format == other.format == "PNG"
    assert {str(made_of["saved"]) for _, made_of in _records(manifest)} == {"{'format': 'png'}"}
    assert any("after" in made_of for _, made_of in _records(manifest))


def test_faces(tmp_path: Path) -> None:
    face, none = tmp_path / "face.png", tmp_path / "none.png"
    Image.fromarray(data.astronaut()).save(face)
    Image.fromarray(data.coffee()).save(none)
    faces = Recipe(generators=("noise",), masks=("face",), size=128)
    manifest = synthesize([face], replace(faces, per_photo=4), tmp_path / "a")
    for fake, made_of in _records(manifest)[::2]:
        assert made_of["mask"] == "face" and 0.005 < read_mask(fake).mean() < 0.5
        x0, y0, x1, y1 = made_of["crop"]
        assert x0 < 200 and x1 > 250 and y0 < 90 and y1 > 140  # the face is in the crop
        assert made_of["scale"] <= 0.74 and max(read_mask(fake).shape) == 128
    with pytest.raises(DatasetError, match="no face was found; ask for another kind of mask"):
        synthesize([none], faces, tmp_path / "b")
    manifest = synthesize([none], replace(faces, masks=("face", "random")), tmp_path / "c")
    assert _records(manifest)[0][1]["mask"] == "random"


def test_regenerations(photos: list[Path], taef2_folder: Path, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    threads = torch.get_num_threads()
    recipe = Recipe(generators=("regenerate",), size=64, per_photo=2, networks=Networks(autoencoder=taef2_folder))
    (local, _), _, (whole, made_of), _ = _records(synthesize(photos[:1], recipe, tmp_path))
    assert torch.get_num_threads() == threads
    assert (local.source, whole.source) == ("regenerate-local", "regenerate-global")
    assert 0 < read_mask(local).mean() < 0.5 and read_mask(whole).all()
    assert (made_of["family"], made_of["mask"]) == ("regeneration", "whole")
    recorded = json.loads((tmp_path / "synthesis.json").read_text())["networks"]
    assert len(recorded["autoencoder"]) == 64 and str(taef2_folder) not in str(recorded)


def test_classical_work_needs_no_torch(photos: list[Path], tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from declip.errors import MissingExtraError\n"
        "from declip.synthesis import Recipe, synthesize\n"
        f"photos = {[str(path) for path in photos]!r}\n"
        f"print(synthesize(photos, Recipe(generators=['telea'], size=64), {str(tmp_path / 'a')!r}))\n"
        "try:\n"
        f"    recipe = Recipe.read('fresh', ['generators=regenerate', 'networks.autoencoder=.'])\n"
        f"    synthesize(photos, recipe, {str(tmp_path / 'b')!r})\n"
        "except MissingExtraError as error:\n"
        "    print(error)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    path, message = result.stdout.splitlines()
    assert len(read_manifest(path)) == 6
    assert message.endswith("pip install 'declip[torch]'")
