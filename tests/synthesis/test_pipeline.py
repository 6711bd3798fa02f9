"""The data set: pairs through one save path, the same bytes from the same seed, runs that resume."""

from __future__ import annotations

import json
import logging
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, JpegImagePlugin
from skimage import data

from declip.datasets import parse_line, read_manifest
from declip.errors import DatasetError, WeightsError
from declip.images.mapfiles import read_mask
from declip.images.read import read_photo
from declip.results import Sample
from declip.synthesis import ALL_GENERATORS, forge, forging, pipeline, synthesize
from declip.synthesis.inpainters import INPAINTERS

GENERATORS = ("telea", "splice-hard", "copy-move", "noise")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("photos")
    Image.fromarray(data.chelsea()[40:200, 80:300]).save(folder / "cat.png")
    Image.fromarray(data.astronaut()[:200, 100:280]).save(folder / "astronaut.jpg", quality=92)
    Image.fromarray(data.coffee()[100:180, 200:290]).save(folder / "small.png")  # 80 × 90
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def made(photos: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _synthesize(photos, tmp_path_factory.mktemp("made"))


def _synthesize(photos: list[Path], out: Path, **changes: Any) -> Path:
    settings: dict[str, Any] = {"generators": GENERATORS, "seed": 7, "size": 112, "per_photo": 8}
    return synthesize(photos, out, **{**settings, **changes})


def _files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def _records(manifest: Path) -> list[tuple[Sample, dict[str, Any]]]:
    lines = manifest.read_text(encoding="utf-8").splitlines()
    return [parse_line(line, manifest.parent, "test") for line in lines]


def _cat() -> NDArray[np.uint8]:
    return np.ascontiguousarray(data.chelsea()[60:188, 100:260])


def test_a_pair_for_every_turn(made: Path, photos: list[Path]) -> None:
    samples = read_manifest(made)
    assert made.name == "samples.jsonl" and len(samples) == 2 * 8 * len(photos)
    fakes, reals = samples[::2], samples[1::2]
    assert [sample.source for sample in fakes] == list(GENERATORS) * 6
    assert {sample.source for sample in reals} == {"real"}
    assert {sample.label for sample in fakes} == {"fake"} and {sample.label for sample in reals} == {"real"}
    assert [fake.group for fake in fakes] == [real.group for real in reals]
    assert {sample.group for sample in samples} == {"cat", "astronaut", "small"}
    assert {sample.split for sample in samples} == {"train"}
    assert all(sample.image.is_file() for sample in samples)
    assert all(real.mask is None for real in reals)
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


def test_twins_share_the_save_path(made: Path) -> None:
    qualities = set()
    records = _records(made)
    for (fake, made_of), (real, twin_of) in zip(records[::2], records[1::2], strict=True):
        assert made_of["saved"] == twin_of["saved"]
        assert {key: made_of[key] for key in ("photo", "seed", "crop", "scale")} == {
            key: twin_of[key] for key in ("photo", "seed", "crop", "scale")
        }
        assert made_of.get("before") == twin_of.get("before")
        assert fake.image.suffix == real.image.suffix == (".png" if made_of["saved"]["format"] == "png" else ".jpg")
        if fake.image.suffix == ".jpg":
            with Image.open(fake.image) as one, Image.open(real.image) as other:
                assert one.quantization == other.quantization  # type: ignore[attr-defined]
                chroma = {"4:4:4": 0, "4:2:0": 2}[made_of["saved"]["chroma"]]
                assert JpegImagePlugin.get_sampling(one) == JpegImagePlugin.get_sampling(other) == chroma
            qualities.add(made_of["saved"]["quality"])
    assert len(qualities) > 4 and min(qualities) >= 60 and max(qualities) <= 95


def test_provenance_leads_back_to_the_photo(made: Path, photos: list[Path]) -> None:
    by_name = {path.name: read_photo(path).pixels for path in photos}
    compared = 0
    for sample, provenance in _records(made):
        if sample.label == "fake":
            assert provenance["generator"] == sample.source
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


def test_large_photos_are_sometimes_downscaled(photos: list[Path]) -> None:
    whole = read_photo(photos[1]).pixels
    rng = np.random.default_rng(0)
    crops = [pipeline._crop(whole, 64, rng) for _ in range(200)]
    scales = [taken["scale"] for _, taken in crops]
    assert 20 <= sum(scale < 1 for scale in scales) <= 60
    assert min(scales) >= 0.4 and all(crop.shape == (64, 64, 3) for crop, _ in crops)


def test_the_seed_decides_the_bytes(made: Path, photos: list[Path], tmp_path: Path) -> None:
    _synthesize(photos, tmp_path / "same")
    assert _files(tmp_path / "same") == _files(made.parent)
    other = _synthesize(photos, tmp_path / "other", seed=8)
    assert other.read_bytes() != made.read_bytes()


@pytest.mark.slow
def test_workers_change_nothing(made: Path, photos: list[Path], tmp_path: Path) -> None:
    _synthesize(photos, tmp_path / "two", workers=2)
    assert _files(tmp_path / "two") == _files(made.parent)


def test_an_interrupted_run_resumes(
    made: Path, photos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[int] = []
    make = pipeline._Maker.make

    def stop_at_nine(maker: pipeline._Maker, index: int, cache: dict[Path, NDArray[np.uint8]]) -> list[str]:
        tried.append(index)
        if index == 9 and 8 in tried:
            raise KeyboardInterrupt
        return make(maker, index, cache)

    monkeypatch.setattr(pipeline._Maker, "make", stop_at_nine)
    with pytest.raises(KeyboardInterrupt):
        _synthesize(photos, tmp_path)
    assert not (tmp_path / "samples.jsonl").exists()
    # As after a power cut: half a line, half a picture, and a picture that is gone.
    with (tmp_path / "samples.jsonl.part").open("a") as stream:
        stream.write('{"image": "images/0000')
    (tmp_path / "images" / "000009-splice-hard.png.tmp").write_bytes(b"half")
    next((tmp_path / "images").glob("000003-noise.*")).unlink()
    tried.clear()
    _synthesize(photos, tmp_path)
    assert tried == [3, *range(9, 24)]
    files = _files(tmp_path)
    files.pop("images/000009-splice-hard.png.tmp", None)
    assert files == _files(made.parent)
    tried.clear()
    _synthesize(photos, tmp_path)
    assert tried == []
    assert (tmp_path / "samples.jsonl").read_bytes() == made.read_bytes()


def test_a_bad_photo_is_left_out(photos: list[Path], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    bad = tmp_path / "bad.png"
    bad.write_text("no picture")
    with caplog.at_level(logging.WARNING):
        manifest = _synthesize([photos[0], bad], tmp_path / "out", generators=["telea", "noise"], per_photo=2)
    assert {sample.group for sample in read_manifest(manifest)} == {photos[0].stem}
    assert len(read_manifest(manifest)) == 4
    assert "sample 2 is left out: ImageError" in caplog.text and "2 of 4 samples were left out" in caplog.text


def test_nothing_invisible_gets_a_mask(tmp_path: Path) -> None:
    """A blurred flat picture is the same picture."""
    Image.fromarray(np.full((96, 96, 3), 90, dtype=np.uint8)).save(tmp_path / "flat.png")
    with pytest.raises(DatasetError, match=r"not one of 1 samples.*only 0% of the masked pixels changed visibly"):
        synthesize([tmp_path / "flat.png"], tmp_path / "out", generators=["blur"], seed=0)


def test_other_settings_are_refused(made: Path, photos: list[Path]) -> None:
    before = _files(made.parent)
    with pytest.raises(DatasetError, match=r"other settings \(seed, size\)"):
        _synthesize(photos, made.parent, seed=8, size=96)
    assert _files(made.parent) == before


def test_a_foreign_data_set_is_refused(photos: list[Path], tmp_path: Path) -> None:
    (tmp_path / "samples.jsonl").write_text("")
    with pytest.raises(DatasetError, match="was not synthesized"):
        _synthesize(photos, tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"generators": ["telea", "inpaint"]}, "unknown generators inpaint; expected some of telea"),
        ({"generators": []}, "no generators"),
        ({"masks": ["hands"]}, "masks are hands; expected some of random, object, grabcut, face"),
        ({"masks": []}, "masks are none"),
        ({"seed": -1}, "seed is -1"),
        ({"size": 16}, "size is 16; expected at least 32"),
        ({"per_photo": 0}, "per_photo is 0"),
        ({"workers": 0}, "workers is 0"),
        ({"jpeg_share": 1.5}, "jpeg_share is 1.5"),
        ({"jpeg_quality": (90, 60)}, "lowest <= highest"),
        ({"generators": ["regenerate-local"]}, "need an autoencoder"),
        ({"fully_regenerated": True}, "need an autoencoder"),
        ({"jpeg_share": 0.6, "webp_share": 0.6}, r"webp_share 0\.6; expected at most 1 together"),
        ({"resize_share": -0.1}, "resize_share is -0.1"),
        ({"social_share": 2}, "social_share is 2"),
        ({"social_side": 8}, "social_side is 8; expected at least 32"),
        ({"noise_share": 1.1}, r"noise_share is 1\.1"),
        ({"screenshot_share": -1}, "screenshot_share is -1"),
        ({"resize_range": (1.5, 0.5)}, "0 < lowest <= highest"),
        ({"before_share": 2}, "before_share is 2"),
        ({"donor_share": -0.5}, r"donor_share is -0\.5"),
        ({"layout": "coco"}, "layout is coco; expected manifest or dolos"),
        ({"models": {"telea": "x.pt"}}, "weights for telea; the generators that take some are lama"),
        ({"steps": 0}, "steps is 0"),
    ],
)
def test_wrong_settings_are_named(changes: dict[str, Any], message: str, photos: list[Path], tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=message):
        _synthesize(photos, tmp_path / "out", **changes)
    assert not (tmp_path / "out").exists()


def test_no_photos_and_no_donors(photos: list[Path], tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no photos"):
        _synthesize([], tmp_path)
    with pytest.raises(DatasetError, match="two photos or more"):
        _synthesize(photos[:1], tmp_path)


def test_sets_of_generators(photos: list[Path], tmp_path: Path) -> None:
    manifest = _synthesize(photos[:2], tmp_path, generators=["splice", "splice-hard", "copy-move"], per_photo=5)
    fakes = [sample for sample in read_manifest(manifest) if sample.label == "fake"]
    names = ["splice-hard", "splice-feathered", "splice-poisson", "splice-colour", "copy-move"]
    assert [sample.source for sample in fakes] == names * 2
    assert json.loads((tmp_path / "synthesis.json").read_text())["generators"] == names
    learnt = {"splice-object", *forging.SETS["regenerate"], *forging.SETS["zoo"], *forging.SETS["upscale"], *INPAINTERS}
    assert set(forging.SETS["all-classical"]) == set(ALL_GENERATORS) - learnt


@pytest.mark.parametrize("generator", forging.SETS["all-classical"])
def test_forge(generator: str) -> None:
    pixels, donor = _cat(), np.ascontiguousarray(data.astronaut()[:200, 100:280])
    result, mask = forge(pixels, generator, np.random.default_rng(1), donor)
    same, _ = forge(pixels, generator, np.random.default_rng(1), donor)
    assert np.array_equal(result, same)
    assert np.array_equal(result[~mask], pixels[~mask])
    assert (np.abs(result[mask].astype(int) - pixels[mask]).max(axis=1) >= 2).mean() >= 0.5


def test_forge_says_what_it_needs(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(DatasetError, match="needs a donor"):
        forge(_cat(), "splice-hard", rng)
    with pytest.raises(DatasetError, match="unknown generators splices"):
        forge(_cat(), "splices", rng)
    with pytest.raises(DatasetError, match="at least 32 px"):
        forge(np.zeros((20, 90, 3), dtype=np.uint8), "telea", rng)
    pytest.importorskip("torch")
    with pytest.raises(WeightsError, match="is missing"):
        forge(_cat(), "regenerate-global", rng, autoencoder=tmp_path)


def test_regenerations_with_random_weights(photos: list[Path], tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from declip.synthesis import neural

    torch.manual_seed(0)
    model = neural.Autoencoder()
    for part, name in zip((model.encoder, model.decoder), neural.FILES, strict=True):
        torch.save(part.state_dict(), tmp_path / name)
    threads = torch.get_num_threads()
    manifest = synthesize(
        photos[:1], tmp_path / "out", generators=["regenerate"], seed=0, size=64, per_photo=2, autoencoder=tmp_path
    )
    assert torch.get_num_threads() == threads
    (local, _), _, (whole, made_of), _ = _records(manifest)
    assert (local.source, whole.source) == ("regenerate-local", "regenerate-global")
    assert 0 < read_mask(local).mean() < 0.5 and read_mask(whole).all()
    assert (made_of["family"], made_of["mask"]) == ("regeneration", "whole")
    assert len(json.loads((tmp_path / "out" / "synthesis.json").read_text())["autoencoder"][0]) == 64


def test_the_defaults_record_what_they_always_did(made: Path) -> None:
    """A data set of an earlier version can be continued: its settings and the lines of its samples have not changed."""
    settings = json.loads((made.parent / "synthesis.json").read_text())
    first = ["generators", "masks", "seed", "size", "per_photo", "jpeg_share", "jpeg_quality", "split", "photos"]
    assert list(settings) == first
    assert settings["masks"] == ["random", "object"]
    _, made_of = _records(made)[0]
    assert list(made_of)[:4] == ["generator", "family", "mask", "area"] and list(made_of)[-1] == "saved"
    assert not any("after" in provenance for _, provenance in _records(made))


def test_photos_and_donors_are_saved_before(photos: list[Path], tmp_path: Path) -> None:
    manifest = _synthesize(photos[:2], tmp_path, generators=["splice"], before_share=1.0, donor_share=1.0)
    settings = json.loads((tmp_path / "synthesis.json").read_text())
    assert (settings["before_share"], settings["donor_share"]) == (1.0, 1.0)
    fakes = [provenance for sample, provenance in _records(manifest) if sample.label == "fake"]
    assert fakes
    for made_of in fakes:
        for before in (made_of["before"], made_of["donor"]["before"]):
            assert before["format"] == "jpeg" and 70 <= before["quality"] <= 98
        assert made_of["before"] != made_of["donor"]["before"]


def test_after_the_manipulation_twins_share_every_step(photos: list[Path], tmp_path: Path) -> None:
    manifest = _synthesize(
        photos[:2], tmp_path, jpeg_share=0.3, webp_share=0.4, resize_share=0.5, social_share=0.4, social_side=72
    )
    settings = json.loads((tmp_path / "synthesis.json").read_text())
    assert {key: settings[key] for key in ("webp_share", "resize_share", "social_share", "social_side")} == {
        "webp_share": 0.4,
        "resize_share": 0.5,
        "social_share": 0.4,
        "social_side": 72,
    }
    records = _records(manifest)
    formats, smaller, social = set(), 0, 0
    for (fake, made_of), (real, twin_of) in zip(records[::2], records[1::2], strict=True):
        assert made_of["saved"] == twin_of["saved"] and made_of.get("after") == twin_of.get("after")
        one, other, mask = read_photo(fake.image).pixels, read_photo(real.image).pixels, read_mask(fake)
        assert one.shape == other.shape and mask.shape == one.shape[:2]
        assert made_of["area"] == pytest.approx(mask.mean(), abs=1e-5)
        with Image.open(fake.image) as opened:
            assert opened.format == {"png": "PNG", "jpeg": "JPEG", "webp": "WEBP"}[made_of["saved"]["format"]]
        formats.add(made_of["saved"]["format"])
        resized = [step["resized"] for step in made_of.get("after", ()) if "resized" in step]
        if resized:
            smaller += 1
            assert tuple(resized[-1]) == mask.shape
        if any(step.get("format") == "jpeg" for step in made_of.get("after", ())):
            social += 1
            assert max(mask.shape) <= 72 and 70 <= made_of["saved"]["quality"] <= 85
            assert made_of["saved"]["chroma"] == "4:2:0"
        # Where the mask is, the pictures still differ most.
        difference = np.abs(one.astype(int) - other).max(axis=2)
        assert difference[mask].mean() > difference[~mask].mean()
    assert formats == {"png", "jpeg", "webp"} and smaller >= 4 and social >= 3


def test_the_layout_of_dolos(photos: list[Path], tmp_path: Path) -> None:
    plain = _synthesize(photos[:2], tmp_path / "plain", per_photo=4)
    manifest = _synthesize(photos[:2], tmp_path / "dolos", per_photo=4, layout="dolos", split="valid")
    assert json.loads((tmp_path / "dolos" / "synthesis.json").read_text())["layout"] == "dolos"
    samples = read_manifest(manifest)
    fakes, reals = samples[::2], samples[1::2]
    root = tmp_path / "dolos"
    assert [fake.image.relative_to(root).as_posix() for fake in fakes[3:5]] == [
        "fake/noise/images/valid/000000-3.png",
        "fake/telea/images/valid/000001-0.png",
    ]
    assert reals[4].image == root / "real" / "valid" / "000001-0.png"
    assert [fake.mask for fake in fakes[4:5]] == [root / "fake" / "telea" / "masks" / "valid" / "000001-0.png"]
    assert not (root / "images").exists() and not (root / "masks").exists()
    for fake, real, before in zip(fakes, reals, read_manifest(plain)[::2], strict=True):
        assert fake.fake_is == "black" and fake.mask is not None and before.mask is not None
        # The same pictures as in the other layout, JPEG and all, and the inverse of its masks.
        assert np.array_equal(read_photo(fake.image).pixels, read_photo(before.image).pixels)
        assert np.array_equal(read_mask(fake), read_mask(before))
        assert np.array_equal(255 - np.asarray(Image.open(fake.mask)), np.asarray(Image.open(before.mask)))
        with Image.open(fake.image) as one, Image.open(real.image) as other:
            assert one.format == other.format == "PNG"
    saved = [made_of["saved"] for _, made_of in _records(manifest)]
    assert saved == [{"format": "png"}] * 16
    assert any("after" in made_of for _, made_of in _records(manifest))
    before_files = _files(root)
    assert _files(_synthesize(photos[:2], root, per_photo=4, layout="dolos", split="valid").parent) == before_files


def test_faces(tmp_path: Path) -> None:
    face, none = tmp_path / "face.png", tmp_path / "none.png"
    Image.fromarray(data.astronaut()).save(face)
    Image.fromarray(data.coffee()).save(none)
    manifest = synthesize([face], tmp_path / "a", generators=["noise"], masks=["face"], seed=0, size=128, per_photo=6)
    for fake, made_of in _records(manifest)[::2]:
        assert made_of["mask"] == "face" and 0.005 < read_mask(fake).mean() < 0.5
        x0, y0, x1, y1 = made_of["crop"]
        assert x0 < 200 and x1 > 250 and y0 < 90 and y1 > 140  # the face is in the crop
        assert made_of["scale"] <= 0.74 and max(read_mask(fake).shape) == 128
    with pytest.raises(DatasetError, match="no face was found; ask for another kind of mask"):
        synthesize([none], tmp_path / "b", generators=["noise"], masks=["face"], seed=0, size=128)
    manifest = synthesize([none], tmp_path / "c", generators=["noise"], masks=["face", "random"], seed=0, size=128)
    assert _records(manifest)[0][1]["mask"] == "random"


def test_fully_regenerated(photos: list[Path], tmp_path: Path) -> None:
    """The whole picture has passed the autoencoder; the mask is still that of what was painted."""
    torch = pytest.importorskip("torch")
    from declip.synthesis import neural

    torch.manual_seed(0)
    model = neural.Autoencoder()
    for part, name in zip((model.encoder, model.decoder), neural.FILES, strict=True):
        torch.save(part.state_dict(), tmp_path / name)
    pixels = _cat()
    plain, mask = forge(pixels, "telea", np.random.default_rng(2))
    whole, same = forge(pixels, "telea", np.random.default_rng(2), autoencoder=tmp_path, fully_regenerated=True)
    assert np.array_equal(mask, same)
    assert np.array_equal(whole, neural.load(tmp_path).regenerate(plain))
    assert (whole[~mask] != pixels[~mask]).any(axis=1).mean() > 0.9
    settings: dict[str, Any] = {"generators": ["telea"], "seed": 0, "size": 64, "jpeg_share": 0.0}
    out = synthesize(photos[:1], tmp_path / "out", autoencoder=tmp_path, fully_regenerated=True, **settings)
    (fake, made_of), (_, twin_of) = _records(out)
    assert made_of["fully_regenerated"] and "fully_regenerated" not in twin_of
    assert 0 < read_mask(fake).mean() < 0.5
    recorded = json.loads((tmp_path / "out" / "synthesis.json").read_text())
    assert recorded["fully_regenerated"] and len(recorded["autoencoder"]) == 2
    with pytest.raises(DatasetError, match="other settings"):
        synthesize(photos[:1], tmp_path / "out", **settings)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="kills by signal")
def test_a_killed_process_resumes(made: Path, photos: list[Path], tmp_path: Path) -> None:
    code = (
        "from declip.synthesis import synthesize\n"
        f"synthesize({[str(path) for path in photos]!r}, {str(tmp_path)!r}, "
        f"generators={list(GENERATORS)!r}, seed=7, size=112, per_photo=8)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    part = tmp_path / "samples.jsonl.part"
    while process.poll() is None and not (part.exists() and part.read_bytes().count(b"\n") >= 8):
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "samples.jsonl").exists()
    _synthesize(photos, tmp_path)
    for half in tmp_path.rglob("*.tmp"):
        half.unlink()
    assert _files(tmp_path) == _files(made.parent)


def test_classical_work_needs_no_torch(photos: list[Path], tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from declip.errors import MissingExtraError\n"
        "from declip.synthesis import synthesize\n"
        f"photos = {[str(path) for path in photos]!r}\n"
        f"print(synthesize(photos, {str(tmp_path / 'a')!r}, generators=['telea'], seed=0, size=64))\n"
        "try:\n"
        f"    synthesize(photos, {str(tmp_path / 'b')!r}, generators=['regenerate'], seed=0, autoencoder='.')\n"
        "except MissingExtraError as error:\n"
        "    print(error)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    path, message = result.stdout.splitlines()
    assert len(read_manifest(path)) == 6
    assert message.endswith("pip install 'declip[torch]'")
