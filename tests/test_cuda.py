"""On a GPU: the same logits and scores as on the CPU, and a training that learns and resumes. Skipped without one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from declip import training
from declip.localize.localizer import load
from declip.models import checkpoint
from declip.nn.backbones import exact
from declip.nn.model import build_network
from declip.spec import BackboneSpec, DecoderSpec, ModelSpec
from declip.training.state import State
from tests.tiny import RESNET, VIT, randomise, save_tiny, tiled_spec, tiny_net, tiny_spec
from tests.training.test_training import config_of, make_samples, rows_of

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

STATISTICS = tuple(
    BackboneSpec(name=name, layer=0)
    for name in ("pixels", "residual-statistics", "block-statistics", "quantization-statistics")
)
HALF = (0.5, 0.5, 0.5)
SPECS = {
    "conv-4": tiny_spec(),
    "conv-20": tiny_spec(decoder=DecoderSpec(kind="conv-20", widths=(8, 8, 8, 8))),
    "linear": tiny_spec(decoder=DecoderSpec(kind="linear")),
    "attention": tiny_spec(decoder=DecoderSpec(kind="attention", causal=True)),
    "fusion": tiny_spec(BackboneSpec(name=VIT, layer=1), BackboneSpec(name=RESNET, layer=2)),
    "statistics": tiled_spec(),
    "stem": ModelSpec(
        backbones=STATISTICS,
        decoder=DecoderSpec(kind="dilated", widths=(8, 16, 16), stem=(4, 8, 8)),
        input_size=64,
        output_size=16,
        mean=HALF,
        std=HALF,
        mode="tiled",
        overlap=16,
    ),
}
RIVALS = {
    "patch-forensics": ModelSpec(
        architecture="patch-forensics",
        backbones=(BackboneSpec(name="legacy_xception", layer=2),),
        input_size=299,
        output_size=37,
        mean=HALF,
        std=HALF,
    ),
    "pscc-net": ModelSpec(architecture="pscc-net", input_size=64, output_size=64),
    "cat-net": ModelSpec(
        architecture="cat-net", width=8, input_size=128, output_size=32, mean=HALF, std=HALF, mode="tiled"
    ),
}


@pytest.mark.parametrize("name", SPECS)
def test_logits_are_those_of_the_cpu(name: str) -> None:
    spec = SPECS[name]
    net = tiny_net(spec).eval()
    torch.manual_seed(1)
    images = torch.randn(3, 3, spec.input_size, spec.input_size)
    with torch.inference_mode(), exact():
        expected = net(images)
        found = net.cuda()(images.cuda()).cpu()
    assert float((found - expected).abs().max()) < 1e-3 * float(expected.std())


@pytest.mark.parametrize("name", RIVALS)
def test_rivals_give_the_logits_of_the_cpu(name: str) -> None:
    spec = RIVALS[name]
    torch.manual_seed(0)
    net = build_network(spec, load_weights=False).eval()
    if name != "pscc-net":  # whose attention then is so sharp that rounding decides it
        randomise(net)
    torch.manual_seed(1)
    inputs = {"image": torch.randn(2, 3, spec.input_size, spec.input_size)}
    if name == "cat-net":
        inputs["coefficients"] = torch.randint(-30, 31, (2, spec.input_size, spec.input_size)).float()
        inputs["table"] = torch.randint(1, 40, (2, 8, 8)).float()
    with torch.inference_mode(), exact():
        expected = net(**inputs)
        found = net.cuda()(**{key: value.cuda() for key, value in inputs.items()}).cpu()
    assert float((found - expected).abs().max()) < 1e-2 * float(expected.std())


@pytest.mark.parametrize("name", ["conv-4", "statistics", "stem"])
def test_scores_of_a_photo_are_those_of_the_cpu(name: str, tmp_path: Path) -> None:
    path = save_tiny(tmp_path / "model.safetensors", SPECS[name])
    pixels = np.random.default_rng(0).integers(0, 256, (150, 200, 3), dtype=np.uint8)
    on_cpu, on_gpu = (load(path, device=device)(pixels) for device in ("cpu", "cuda"))
    assert float(np.abs(on_cpu.scores - on_gpu.scores).max()) < 1e-4
    assert on_gpu.score == pytest.approx(on_cpu.score, abs=1e-4)
    # None takes the GPU where there is one.
    assert np.array_equal(load(path)(pixels).scores, on_gpu.scores)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("views", [0, 1])
def test_training_learns_and_resumes(precision: str, views: int, tmp_path: Path) -> None:
    train, valid = make_samples(tmp_path / "train", 16, seed=1), make_samples(tmp_path / "valid", 6, seed=2)
    parts = {"train": train, "valid": valid, "out": tmp_path / "run", "cache": tmp_path / "features"}
    config = config_of(precision=precision, views=views, ema=0.5, epochs=12)
    run = training.train(config, **parts)
    rows = rows_of(tmp_path / "run")
    assert rows[-1]["loss"] < 0.6 * rows[0]["loss"] and run.iou > 0.7
    again = training.train(config, **parts, resume=True)
    assert again == run
    net, _ = checkpoint.load(run.best)  # on a machine without a GPU, too
    assert all(tensor.device.type == "cpu" for tensor in net.state_dict().values())


def test_a_stopped_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train, valid = make_samples(tmp_path / "train", 16, seed=1), make_samples(tmp_path / "valid", 6, seed=2)
    straight = training.train(config_of(), train=train, valid=valid, out=tmp_path / "straight")
    saved = State.save

    def stop(self: State, path: Path) -> None:
        saved(self, path)
        if self.epoch == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(State, "save", stop)
    with pytest.raises(KeyboardInterrupt):
        training.train(config_of(), train=train, valid=valid, out=tmp_path / "stopped")
    monkeypatch.undo()
    resumed = training.train(config_of(), train=train, valid=valid, out=tmp_path / "stopped", resume=True)
    # A GPU adds in another order each time: the same to rounding, not to the bit.
    assert resumed.iou == pytest.approx(straight.iou, abs=0.05)
    assert [row["epoch"] for row in rows_of(tmp_path / "stopped")] == list(range(1, 9))
