"""The cache of frozen features: what it keeps, what it shares, and what it computes again."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from declip.errors import DatasetError, SpecError
from declip.results import Sample
from declip.spec import BackboneSpec, DecoderSpec, ModelSpec
from declip.training import features
from declip.training.features import CachedViews
from declip.training.store import TensorStore
from declip.training.views import Views
from tests.tiny import RESIDUALS, RESNET, VIT, tiny_net, tiny_spec
from tests.training.test_views import make_noise

pytestmark = pytest.mark.usefixtures("one_torch_thread")


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    return make_noise(tmp_path, 5, (70, 90))


def cached(spec: ModelSpec, samples: list[Sample], folder: Path, **options: Any) -> CachedViews:
    return CachedViews(tiny_net(spec), spec, Views(samples, spec), folder, **options)


def filled(spec: ModelSpec, samples: list[Sample], folder: Path, **options: Any) -> CachedViews:
    data = cached(spec, samples, folder, **options)
    data.fill(data.missing(), batch_size=2)
    return data


def entries(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.safetensors"))


@pytest.mark.parametrize(("precision", "tolerance"), [("fp16", 1e-3), ("fp32", 0.0)])
def test_features_and_targets_come_back(
    precision: Any, tolerance: float, samples: list[Sample], tmp_path: Path
) -> None:
    spec = tiny_spec(RESIDUALS, BackboneSpec(name=RESNET, layer=1), output_size=16)
    net, views = tiny_net(spec), Views(samples, spec)
    data = CachedViews(net, spec, views, tmp_path / "cache", precision=precision)
    assert len(data) == len(data.missing()) == 5
    data.fill(data.missing(), batch_size=5)
    assert data.missing() == []
    order = [3, 0, 4]
    found, targets = data.batch(order)
    loaded = [views.load(i) for i in range(5)]
    with torch.inference_mode():
        expected = net.features(torch.from_numpy(np.stack([inputs["image"] for inputs, _ in loaded])))
    assert found.cls is None
    assert [m.shape for m in found.maps] == [(3, 30, 16, 16), (3, 32, 16, 16)]
    for ours, theirs in zip(found.maps, expected.maps, strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, theirs[order], atol=1e-5 if precision == "fp32" else 2e-4, rtol=tolerance)
    torch.testing.assert_close(targets, torch.from_numpy(np.stack([loaded[i][1] for i in order])), atol=3e-4, rtol=0)
    sizes = {path.parts[-3].split("-")[0]: path.stat().st_size for path in entries(tmp_path / "cache")}
    width = {"fp16": 2, "fp32": 4}[precision]
    assert sizes["residual"] == pytest.approx(30 * 256 * width, abs=300)
    assert data.bytes_per_item() == (30 + 32) * 256 * width + 2 * 256
    (about,) = (json.loads(p.read_text()) for p in (tmp_path / "cache").glob("test_resnet-1-*/about.json"))
    assert (about["name"], about["layer"], about["precision"]) == (RESNET, 1, precision)


def test_a_decoder_reads_the_cache_as_it_reads_the_backbones(samples: list[Sample], tmp_path: Path) -> None:
    """With the class token, which attention needs."""
    spec = tiny_spec(decoder=DecoderSpec(kind="attention"))
    data = filled(spec, samples, tmp_path / "cache")
    found, _ = data.batch(range(5))
    assert found.cls is not None
    assert found.cls.shape == (5, 1, 64)
    with torch.inference_mode():
        logits = data.net(torch.from_numpy(np.stack([data.views.load(i)[0]["image"] for i in range(5)])))
        torch.testing.assert_close(data.net.decode(found), logits, atol=3e-3 * float(logits.std()), rtol=0)


def test_runs_share_what_is_the_same_and_nothing_else(samples: list[Sample], tmp_path: Path, capsys: Any) -> None:
    folder = tmp_path / "cache"
    spec = tiny_spec(BackboneSpec(name=RESNET, layer=1))
    filled(spec, samples[:3], folder)
    said = capsys.readouterr().err
    assert f"3 of 3 to compute, 0.00 GB in {folder}" in said
    # Another decoder, another size of the list, the same backbone: two are new.
    linear = dataclasses.replace(spec, decoder=DecoderSpec(kind="linear"))
    assert cached(linear, samples, folder).missing() == [3, 4]
    # Another size of the map of logits: the features stay, the targets are new.
    before = len(entries(folder))
    filled(dataclasses.replace(spec, output_size=32), samples[:3], folder)
    assert len(entries(folder)) == before + 3
    for other in (
        tiny_spec(BackboneSpec(name=RESNET, layer=2)),
        tiny_spec(BackboneSpec(name=RESNET, layer=1), std=(0.3, 0.3, 0.3)),
        tiny_spec(BackboneSpec(name=RESNET, layer=1), input_size=128),
    ):
        assert len(cached(other, samples, folder).missing()) == 5
    torch.manual_seed(1)
    reseeded = CachedViews(tiny_net(spec, seed=1), spec, Views(samples, spec), folder)
    assert len(reseeded.missing()) == 5  # other weights under the same name
    assert len(cached(spec, samples, folder, precision="fp32").missing()) == 5
    # A picture that was replaced is another one, whatever its name and time.
    samples[0].image.write_bytes(samples[4].image.read_bytes())
    assert cached(spec, samples[:3], folder).missing() == [0]


def test_several_layers_at_once_are_those_of_each_alone(samples: list[Sample], tmp_path: Path) -> None:
    """So that a sweep over layers runs the backbone once."""
    both = tiny_spec(BackboneSpec(name=RESNET, layer=1), BackboneSpec(name=RESNET, layer=3))
    filled(both, samples, tmp_path / "cache")
    alone = tiny_spec(BackboneSpec(name=RESNET, layer=1))
    data = cached(alone, samples, tmp_path / "cache")
    assert data.missing() == []
    assert features.describe_layers(data.net, alone) == features.describe_layers(tiny_net(both), both)[:1]
    # Of a Transformer's layer the class token is kept, too: a decoder on it alone may want it.
    two = tiny_spec(BackboneSpec(name=VIT, layer=1), BackboneSpec(name=VIT, layer=3), RESIDUALS)
    filled(two, samples, tmp_path / "cache")
    for layer in (1, 3):
        spec = tiny_spec(BackboneSpec(name=VIT, layer=layer), decoder=DecoderSpec(kind="attention"))
        one = cached(spec, samples, tmp_path / "cache")
        assert one.missing() == []
        apart = filled(spec, samples, tmp_path / "apart")
        for ours, theirs in zip(one.batch([4, 0]), apart.batch([4, 0]), strict=True):
            torch.testing.assert_close(ours, theirs, atol=2e-3, rtol=2e-3)


def damage(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    match how:
        case "truncated":
            content = content[: len(content) // 2]
        case "empty":
            content = bytearray()
        case "a bit":
            content[-7] ^= 0x10
        case "foreign":
            content = bytearray(b"not a tensor at all, but long enough to look like one" * 4)
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("how", ["truncated", "empty", "a bit", "foreign"])
@pytest.mark.parametrize("which", ["test_resnet", "targets"])
def test_a_damaged_entry_is_computed_again(
    which: str, how: str, samples: list[Sample], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spec = tiny_spec(BackboneSpec(name=RESNET, layer=1))
    data = filled(spec, samples, tmp_path / "cache")
    before = data.batch(range(5))
    victim = next(p for p in entries(tmp_path / "cache") if p.parts[-3].startswith(which))
    whole = victim.read_bytes()
    damage(victim, how)
    after = cached(spec, samples, tmp_path / "cache").batch(range(5))
    assert "is damaged and computed anew" in caplog.text
    torch.testing.assert_close(after[0].maps[0], before[0].maps[0], atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(after[1], before[1], atol=0, rtol=0)
    assert len(victim.read_bytes()) == len(whole)
    caplog.clear()
    data.batch(range(5))
    assert caplog.text == ""


def test_what_is_interrupted_goes_on(samples: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = tiny_spec(BackboneSpec(name=RESNET, layer=1))
    data = cached(spec, samples, tmp_path / "cache")
    load, loaded = Views.load, []

    def counted(self: Views, position: int, view: int = 0) -> Any:
        if len(loaded) == 3:
            raise KeyboardInterrupt
        loaded.append(position)
        return load(self, position, view)

    with monkeypatch.context() as patched:
        patched.setattr(Views, "load", counted)
        with pytest.raises(KeyboardInterrupt):
            data.fill(data.missing(), batch_size=1)
    assert cached(spec, samples, tmp_path / "cache").missing() == [3, 4]


WRITER = """
import sys, torch
from pathlib import Path
from declip.training.store import TensorStore
shelf = TensorStore(Path(sys.argv[1]), {})
for turn in range(200):
    for key in ("aa1", "aa2"):
        shelf.write(key, {"map": torch.full((64, 16, 16), float(int(key[-1])), dtype=torch.float16)})
"""


@pytest.mark.slow
def test_readers_never_see_half_an_entry(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Two processes write the same entries again and again; a third reads them."""
    shelf = TensorStore(tmp_path / "shelf", {})
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path / "shelf")]) for _ in range(2)]
    seen = 0
    while any(writer.poll() is None for writer in writers):
        for key in ("aa1", "aa2"):
            found = shelf.read(key)
            if found is not None:
                seen += 1
                assert set(found["map"].unique().tolist()) == {float(key[-1])}
    assert [writer.wait() for writer in writers] == [0, 0]
    assert seen > 50
    assert caplog.text == ""
    assert [path.name for path in (tmp_path / "shelf" / "aa").iterdir()].count(".part") == 0


def test_a_disk_without_room_is_said_before_anything_is_written(
    samples: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = cached(tiny_spec(BackboneSpec(name=RESNET, layer=1)), samples, tmp_path / "cache")
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(features.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(DatasetError, match=r"need 0\.0 GB .* has room for 0\.0 GB; choose another folder"):
        data.fill(data.missing())
    assert entries(tmp_path / "cache") == []


def test_features_beyond_fp16_are_refused(samples: list[Sample], tmp_path: Path) -> None:
    spec = tiny_spec(BackboneSpec(name=RESNET, layer=1))
    net = tiny_net(spec)
    with torch.no_grad():
        for name, value in net.backbones.state_dict().items():
            if name.endswith("running_var"):
                value.fill_(1e-12)
    data = CachedViews(net, spec, Views(samples, spec), tmp_path / "cache")
    with pytest.raises(SpecError, match='features are too large for fp16, or not finite; try features = "fp32"'):
        data.fill(data.missing())
    assert [p for p in entries(tmp_path / "cache") if "targets" not in p.parts] == []
