"""Cells: computed once, named by what decides them, safe to interrupt."""

from __future__ import annotations

import dataclasses
import logging
import math
import shutil
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from PIL import Image
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from declip import evaluate, training
from declip.clues import ErrorLevel, NoiseLevel
from declip.errors import DatasetError, ImageError
from declip.images.dose import perturb
from declip.images.mapfiles import write_mask
from declip.images.read import read_photo
from declip.localize.localizer import load
from declip.nn.backbones import Backbone
from declip.reproduce.cells import Maps, Measurement, Training, Untrained, Workbench, _Perturbed
from declip.reproduce.lab import Lab
from declip.reproduce.setup import Setup
from declip.reproduce.sources import Sources
from declip.results import Sample
from declip.spec import BackboneSpec, DecoderSpec
from declip.training import TrainConfig
from tests.reproduce.making import FakeTraining, make_photos
from tests.tiny import RESIDUALS, tiny_spec

pytestmark = pytest.mark.usefixtures("one_torch_thread")

CONFIG = TrainConfig(model=tiny_spec(RESIDUALS, decoder=DecoderSpec(kind="linear"), output_size=16))


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeTraining:
    stub = FakeTraining()
    monkeypatch.setattr(training, "train", stub)
    return stub


@pytest.fixture
def samples(tmp_path: Path) -> tuple[Sample, ...]:
    mask = np.zeros((64, 64), bool)
    mask[8:40, 8:40] = True
    found = []
    for path in make_photos(tmp_path / "data", 3):
        write_mask(path.with_suffix(".mask.png"), mask)
        found.append(Sample(image=path, mask=path.with_suffix(".mask.png"), label="fake", group=path.stem))
    return tuple(found)


def cells_of(samples: tuple[Sample, ...], config: TrainConfig = CONFIG) -> tuple[Training, Measurement, Maps]:
    learnt = Training(name="a", config=config, train=samples[:2], valid=samples[:1])
    return (
        learnt,
        Measurement(training=learnt, name="b", samples=samples),
        Maps(training=learnt, name="b", samples=samples[:1]),
    )


def test_one_pass_of_the_backbone_gives_the_features_of_all_layers(
    tmp_path: Path, samples: tuple[Sample, ...], fake: FakeTraining, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    forward = Backbone.layer_pairs

    def counted(self: Backbone, images: Tensor) -> list[tuple[Tensor, Tensor | None]]:
        if not isinstance(images, FakeTensor):  # that of `probe`
            seen.append(len(images))
        return forward(self, images)

    monkeypatch.setattr(Backbone, "layer_pairs", counted)
    bench = Workbench(tmp_path / "out")
    lab = Lab(setup=Setup(), sources=cast(Sources, None), bench=bench)
    backbones = [BackboneSpec(name="test_vit", layer=layer) for layer in (4, 0, 2)]
    models = [tiny_spec(one, decoder=DecoderSpec(kind="attention"), output_size=16) for one in backbones]
    every = [cells_of(samples, TrainConfig(model=model))[0] for model in models]
    lab.fill(every)
    assert sum(seen) == 2  # two pictures, of which one is validated with, three layers of each
    for cell in every:  # the class token of each layer, too, which `attention` needs
        assert training.fill_features(cell.config, train=cell.train, valid=cell.valid, cache=bench.features) == 3
    lab.fill(every)
    assert sum(seen) == 2
    shutil.rmtree(bench.features)
    bench.run(every)
    lab.fill(every)
    lab.fill(every[:1])
    assert sum(seen) == 2 and not bench.features.exists()  # finished trainings need none, one layer has its own


def test_a_cell_is_computed_once(
    tmp_path: Path, samples: tuple[Sample, ...], fake: FakeTraining, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    learnt, test, maps = cells_of(samples)
    bench = Workbench(tmp_path / "out")
    bench.run([test, maps])
    assert fake.calls[0]["train"] == list(samples[:2])
    assert fake.calls[0]["resume"] is True and fake.calls[0]["start"] is None
    assert fake.calls[0]["cache"] == tmp_path / "out/features"
    first = {path: path.stat().st_mtime_ns for path in (tmp_path / "out/cells").rglob("*") if path.is_file()}
    caplog.clear()
    again = cells_of(samples)
    Workbench(tmp_path / "out").run(again[1:])
    assert len(fake.calls) == 1
    assert {path: path.stat().st_mtime_ns for path in first} == first
    done = [record.message for record in caplog.records]
    assert done == [f"{i}/3 {cell.label} … done before" for i, cell in enumerate((learnt, test, maps), start=1)]


def test_a_result_is_what_evaluation_says(tmp_path: Path, samples: tuple[Sample, ...], fake: FakeTraining) -> None:
    learnt, test, maps = cells_of(samples)
    bench = Workbench(tmp_path)
    bench.run([test, maps])
    best = bench.folder(learnt) / "run/best.safetensors"
    direct = evaluate(load(best), samples)
    assert bench.figure(test) == (direct.mean.iou, direct.low.iou, direct.high.iou)
    assert bench.figure(test, "ap")[0] == direct.mean.ap
    assert math.isnan(bench.figure(test, "detection_ap")[0])  # no reals
    assert bench.picture(test, samples[1], "ap") == direct.rows[1].ap
    card = bench.result(test)["protocol"]
    assert card["training set"] == learnt.label and card["perturbation"] == "none"
    (scores,) = bench.maps(maps)
    np.testing.assert_allclose(scores, load(best)(samples[0].image).scores, atol=1e-4)
    assert bench.result(learnt)["validation"] == {"iou": 0.5, "ap": 0.5}
    assert not list(bench.folder(learnt).glob(".*"))


def test_an_unfinished_cell_is_gone_on_with(tmp_path: Path, samples: tuple[Sample, ...], fake: FakeTraining) -> None:
    learnt, test, _ = cells_of(samples)
    bench = Workbench(tmp_path)
    bench.run([test])
    before = bench.result(test)
    for cell in (learnt, test):
        (bench.folder(cell) / "result.json").unlink()  # as after a kill
    bench.run([test])
    assert len(fake.calls) == 2 and fake.calls[1]["resume"] is True
    assert fake.calls[1]["out"] == fake.calls[0]["out"]
    assert bench.result(test)["overall"] == before["overall"]


def test_all_that_decides_is_in_the_digest(tmp_path: Path, samples: tuple[Sample, ...]) -> None:
    learnt, test, maps = cells_of(samples)
    others = [
        *cells_of(samples, dataclasses.replace(CONFIG, seed=1)),
        dataclasses.replace(learnt, train=samples),
        dataclasses.replace(learnt, valid=samples[1:2]),
        dataclasses.replace(learnt, start=learnt),
        dataclasses.replace(test, samples=samples[:2]),
        dataclasses.replace(test, samples=samples[::-1]),
        dataclasses.replace(test, kind="jpeg", level=75),
        dataclasses.replace(test, kind="jpeg", level=90),
    ]
    digests = [cell.digest for cell in (learnt, test, maps, *others)]
    assert len(set(digests)) == len(digests)
    assert [cell.digest for cell in cells_of(samples)] == digests[:3]


def test_the_bytes_count_and_not_where_they_lie(tmp_path: Path, samples: tuple[Sample, ...]) -> None:
    def moved(folder: Path) -> tuple[Sample, ...]:
        shutil.copytree(tmp_path / "data", folder)
        return tuple(
            dataclasses.replace(s, image=folder / s.image.name, mask=folder / s.mask.name) for s in samples if s.mask
        )

    there, elsewhere = moved(tmp_path / "there"), tmp_path / "other"
    assert cells_of(there)[0].digest == cells_of(samples)[0].digest
    changed = moved(elsewhere)
    pixels = np.array(Image.open(changed[0].image))
    pixels[0, 0] ^= 1
    Image.fromarray(pixels).save(changed[0].image)
    assert cells_of(changed)[0].digest != cells_of(samples)[0].digest


def test_trainings_come_before_what_starts_from_them(
    tmp_path: Path, samples: tuple[Sample, ...], fake: FakeTraining
) -> None:
    learnt, test, _ = cells_of(samples)
    adapted = Training(name="c", config=CONFIG, train=samples[2:], valid=samples[2:], start=learnt)
    bench = Workbench(tmp_path)
    bench.run([Measurement(training=adapted, name="b", samples=samples), test])
    assert [len(call["train"]) for call in fake.calls] == [2, 1]
    assert fake.calls[1]["start"] == bench.folder(learnt) / "run/best.safetensors"


def test_a_perturbation_happens_before_the_model(
    tmp_path: Path, samples: tuple[Sample, ...], fake: FakeTraining
) -> None:
    learnt, test, _ = cells_of(samples)
    bench = Workbench(tmp_path)
    bench.run([test])
    localizer = load(bench.folder(learnt) / "run/best.safetensors")
    paths = [sample.image for sample in samples]
    found = list(_Perturbed(localizer, "jpeg", 30).map([*paths, tmp_path / "missing.png"]))
    saved = perturb(read_photo(paths[1]).pixels, "jpeg", 30)
    assert not isinstance(found[1], ImageError)
    np.testing.assert_allclose(found[1].scores, localizer(saved).scores, atol=1e-6)
    assert not np.allclose(found[1].scores, localizer(paths[1]).scores, atol=1e-3)
    assert isinstance(found[3], ImageError) and found[3].kind == "missing"
    noisy = _Perturbed(localizer, "noise", 8)
    forwards, backwards = ([result.score for result in noisy.map(order)] for order in (paths, paths[::-1]))  # type: ignore[union-attr]
    assert forwards == pytest.approx(backwards[::-1], abs=1e-6)


def test_a_map_without_training_is_a_cell_like_any(
    tmp_path: Path, samples: tuple[Sample, ...], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    level, noise = (
        Measurement(training=Untrained(name=name), name="b", samples=samples) for name in ("error-level", "noise-level")
    )
    shown = Maps(training=Untrained(name="error-level"), name="b", samples=samples[:1])
    bench = Workbench(tmp_path)
    bench.run([level, noise, shown])
    assert bench.figure(level, "ap")[0] == evaluate(ErrorLevel(), samples).mean.ap
    assert bench.figure(noise, "ap")[0] == evaluate(NoiseLevel(), samples).mean.ap
    np.testing.assert_allclose(bench.maps(shown)[0], next(ErrorLevel().map([samples[0].image])).scores, atol=1e-4)  # type: ignore[union-attr]
    caplog.clear()
    Workbench(tmp_path).run([level])
    assert [r.message for r in caplog.records] == ["1/1 test b, error-level, not trained … done before"]


def test_a_missing_picture_is_named(samples: tuple[Sample, ...], tmp_path: Path) -> None:
    gone = dataclasses.replace(samples[0], image=tmp_path / "gone.png")
    with pytest.raises(DatasetError, match=r"gone\.png"):
        _ = cells_of((gone,))[0].digest
