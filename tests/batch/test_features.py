"""Frozen features by several workers: what a training then finds, to the bit."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from declip import batch, datasets, training
from declip.batch import features
from declip.errors import DatasetError, SpecError
from declip.nn.model import build
from declip.results import Sample
from declip.spec import BackboneSpec
from declip.training import TrainConfig
from declip.training.features import CachedViews
from declip.training.views import Views
from tests.tiny import RESNET, VIT
from tests.training.test_training import make_samples

pytestmark = pytest.mark.usefixtures("one_torch_thread")

RECIPE = """
seed = 3
epochs = 1
batch_size = 8
reals = 0.5

[model]
input_size = 64
output_size = 32
decoder = {kind = "conv-4", widths = [8, 8, 8, 8]}
backbones = [{name = "test_vit", layer = 1}, {name = "test_resnet", layer = 2}]
"""


def written(folder: Path, pairs: int) -> tuple[Path, Path]:
    """(manifest, recipe): a third of the pairs of a manipulated and an untouched picture are for validation."""
    samples = make_samples(folder / "pictures", pairs, seed=0)
    split = [dataclasses.replace(s, split="valid" if int(s.group) % 3 == 0 else "train") for s in samples]
    datasets.write_manifest(folder / "samples.jsonl", split)
    (folder / "recipe.toml").write_text(RECIPE)
    return folder / "samples.jsonl", folder / "recipe.toml"


def by_split(manifest: Path) -> dict[str, list[Sample]]:
    samples = datasets.read_manifest(manifest)
    return {split: [s for s in samples if s.split == split] for split in ("train", "valid")}


def filled_here(manifest: Path, config: TrainConfig, folder: Path) -> None:
    """As `training.train` does it, in one process."""
    torch.manual_seed(config.seed)
    net = build(config.model).to(memory_format=torch.channels_last)
    for name, views in training.parts_of(config, **by_split(manifest)).items():
        data = CachedViews(net, config.model, views, folder, count=config.kept_of(name))
        data.fill(data.missing())


def entries(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.safetensors")}


class Here:
    """Ray and its actors as calls in this process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.parts: list[int] = []
        ray = SimpleNamespace(put=lambda value: value, get=lambda value: value)
        monkeypatch.setitem(sys.modules, "ray", ray)
        monkeypatch.setattr(features, "need_extra", lambda address: None)
        monkeypatch.setattr(features, "started", self.started)
        monkeypatch.setattr(features, "computed", self.computed)

    def started(self, *arguments: Any) -> Any:
        import contextlib

        return contextlib.nullcontext(SimpleNamespace(workers=2, threads=1, device=None))

    def computed(self, worker: Any, arguments: Any, options: Any, todo: Any, pool: Any, *, deaths: int) -> Any:
        assert deaths == 3  # a part that always kills its worker is not begun for ever
        self.parts.append(len(todo))
        actor = worker(*arguments, **options)
        for number in todo:
            row = actor({"part": np.array([number])})
            assert row.pop("failure") == [""]
            yield {name: int(column[0]) for name, column in row.items()}


def test_the_cache_is_that_of_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest, recipe = written(tmp_path, 27)
    config = batch.recipe_for((), recipe)
    here = Here(monkeypatch)
    monkeypatch.chdir(tmp_path)
    done = batch.fill_cache(["samples.jsonl"], "cache", config=config)
    assert (done.views, done.before) == (27 + 9, 0)  # 18 manipulated and 9 untouched ones, and 9 of validation
    assert here.parts == [2 + 1]
    filled_here(manifest, config, tmp_path / "apart")
    ours, theirs = entries(tmp_path / "cache"), entries(tmp_path / "apart")
    assert len(ours) == 36 * 3 and ours == theirs
    again = batch.fill_cache([manifest], tmp_path / "cache", config=config)
    assert (again.views, again.before, here.parts) == (36, 36, [3])
    # A damaged file is of one part alone.
    next((tmp_path / "cache").glob("test_vit-*/*/*.safetensors")).unlink()
    healed = batch.fill_cache([manifest], tmp_path / "cache", config=config)
    assert (healed.views - healed.before, here.parts) == (1, [3, 1])
    assert entries(tmp_path / "cache").keys() == theirs.keys()


def test_augmented_views_are_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest, recipe = written(tmp_path, 9)
    config = batch.recipe_for((), recipe, ['augment=["flip", "jpeg"]', "views=3", 'model.mode="tiled"'])
    Here(monkeypatch)
    done = batch.fill_cache([manifest], tmp_path / "cache", config=config)
    assert done.views == 9 * 3 + 3
    torch.manual_seed(config.seed)
    net = build(config.model)
    views = training.parts_of(config, **by_split(manifest))["train"]
    assert CachedViews(net, config.model, views, tmp_path / "cache", count=3).missing() == []
    assert len(CachedViews(net, config.model, views, tmp_path / "cache", count=4).missing()) == 9


def test_without_a_recipe_every_sample_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And each layer serves models of its own."""
    manifest, _ = written(tmp_path, 4)
    Here(monkeypatch)
    layers = [BackboneSpec(name=RESNET, layer=1), BackboneSpec(name=RESNET, layer=2)]
    config = batch.recipe_for(layers)
    assert (config.model.input_size, config.model.output_size, config.kept_of("train")) == (224, 256, 1)
    assert batch.fill_cache([manifest], tmp_path / "cache", config=config, every=True).views == 8
    for layer in layers:
        alone = batch.recipe_for([layer])
        torch.manual_seed(alone.seed)
        views = Views(datasets.read_manifest(manifest), alone.model)
        assert CachedViews(build(alone.model), alone.model, views, tmp_path / "cache").missing() == []


def test_what_cannot_be_kept_is_said_before_ray_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest, recipe = written(tmp_path, 4)
    here = Here(monkeypatch)
    with pytest.raises(SpecError, match="which features"):
        batch.recipe_for(())
    with pytest.raises(SpecError, match="which alone can be changed"):
        batch.recipe_for([BackboneSpec(name=VIT, layer=1)], changes=["seed=1"])
    with pytest.raises(SpecError, match="set views = 1 or more"):
        batch.fill_cache([manifest], tmp_path / "c", config=batch.recipe_for((), recipe, ['augment=["flip"]']))
    rival = batch.recipe_for((), Path(__file__).parents[2] / "recipes" / "pscc-net.toml")
    with pytest.raises(SpecError, match="all of pscc-net is learnt"):
        batch.fill_cache([manifest], tmp_path / "c", config=rival)
    config = batch.recipe_for((), recipe)
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(DatasetError, match="the manifests have no samples"):
        batch.fill_cache([tmp_path / "empty.jsonl"], tmp_path / "c", config=config, every=True)
    with pytest.raises(DatasetError, match="in both parts, train and valid"):
        batch.fill_cache([tmp_path / "empty.jsonl"], tmp_path / "c", config=config)
    with pytest.raises(SpecError, match="workers is 0"):
        batch.fill_cache([manifest], tmp_path / "c", config=config, workers=0)
    assert here.parts == []


def test_workers_that_write_elsewhere_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest, recipe = written(tmp_path, 4)
    here = Here(monkeypatch)
    monkeypatch.setattr(features, "computed", lambda *arguments, deaths: iter([{"part": 0, "views": 5}]))
    with pytest.raises(DatasetError, match=r"5 of 5 views were computed, and are not in .*cache"):
        batch.fill_cache([manifest], tmp_path / "cache", config=batch.recipe_for((), recipe))
    assert here.parts == []


def test_parts_hold_what_is_missing(tmp_path: Path) -> None:
    config = batch.recipe_for([BackboneSpec(name=VIT, layer=1)])
    sample = Sample(image=tmp_path / "a.png", label="real")
    lots = [
        features._Lot(Views([sample] * 100, config.model), 2),
        features._Lot(Views([sample] * 5000, config.model), 1),
    ]
    parts = features._cut(lots, [[3, 170], []], 2)
    assert parts == [(0, 0, 16), (0, 64, 80)]  # item 170 is the second view of sample 70
    assert features._cut(lots, [[], range(5000)], 1)[0] == (1, 0, 256)
    assert len(features._cut(lots, [[], range(5000)], 40)) == 313
    assert features._cut(lots, [[], range(5000)], 40)[-1] == (1, 4992, 5000)


def test_the_line_says_what_was_before() -> None:
    assert str(batch.Filled(views=50, before=10, seconds=4.0)) == "50 views, 10 of them before, 4.0 s, 10.0 views/s"
    assert str(batch.Filled(views=5, before=0, seconds=0.0)) == "5 views, 0.0 s, 0.0 views/s"


# --- a whole job ----------------------------------------------------------------------------------------------------

# A worker that dies of the third picture of a part, once.
KILL = """
import os, signal
from declip.training import views

load = views.Views.load

def once(self, position, view=0):
    if position == 3:
        try:
            os.close(os.open({marker!r}, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            pass
        else:
            os.kill(os.getpid(), signal.SIGKILL)
    return load(self, position, view)

views.Views.load = once
"""


@pytest.mark.slow
def test_a_training_computes_nothing_after_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """Two workers, one of which is killed; then an epoch on what they left."""
    manifest, recipe = written(tmp_path, 48)
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(KILL.format(marker=str(tmp_path / "killed")))
    command = ["features", str(manifest), "--recipe", str(recipe), "--out", str(tmp_path / "cache")]
    found = subprocess.run(
        [sys.executable, "-m", "declip", *command, "--workers", "2", "--threads", "1"],
        capture_output=True,
        text=True,
        timeout=500,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path / "site"), *sys.path])},
    )
    assert found.returncode == 0, found.stderr
    assert found.stdout.startswith("64 views, ") and found.stdout.count("\n") == 1
    assert "frozen features: 48 of 48 to compute" in found.stderr
    assert (tmp_path / "killed").exists()
    config = TrainConfig.from_toml(recipe)
    filled_here(manifest, config, tmp_path / "apart")
    ours = entries(tmp_path / "cache")
    assert len(ours) == 64 * 3 and ours == entries(tmp_path / "apart")
    capsys.readouterr()

    def computed(*arguments: Any) -> None:
        raise AssertionError("a feature was computed that should have been there")

    monkeypatch.setattr(CachedViews, "_compute", computed)
    run = training.train(config, **by_split(manifest), out=tmp_path / "run", cache=tmp_path / "cache")
    assert run.best.is_file() and run.epoch == 1
    assert "to compute" not in capsys.readouterr().err
    assert entries(tmp_path / "cache") == ours
