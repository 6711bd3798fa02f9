"""The cache of frozen features: what it keeps, and when it is written anew."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from declip import features
from declip.types import BackboneSpec, DecoderSpec
from tests.tiny import RESIDUALS, RESNET, VIT, tiny_net, tiny_spec

pytestmark = pytest.mark.usefixtures("one_torch_thread")

KEY: dict[str, Any] = {"model": "tiny", "seed": 0}


class Noise:
    """Crops from their number; counts how often one is asked for."""

    def __init__(self, count: int, fail_at: int | None = None) -> None:
        self.count = count
        self.fail_at = fail_at
        self.asked = 0

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if index == self.fail_at:
            raise KeyboardInterrupt
        self.asked += 1
        generator = torch.Generator().manual_seed(index)
        return torch.randn(3, 64, 64, generator=generator), torch.rand(16, 16, generator=generator)


@pytest.mark.parametrize("count", [1, 5, 8])
def test_features_and_targets_come_back_in_half_precision(count: int, tmp_path: Path) -> None:
    net = tiny_net(tiny_spec(RESIDUALS, BackboneSpec(name=RESNET, layer=1)))
    crops = Noise(count)
    cached = features.cache(net, crops, tmp_path / "cache", KEY, batch_size=4)
    assert len(cached) == crops.asked == count
    indices = np.arange(count)[::-1]
    found, targets = cached.batch(indices)
    with torch.inference_mode():
        expected = net.features(torch.stack([crops[int(i)][0] for i in indices]))
    assert found.cls is None
    assert [m.shape for m in found.maps] == [(count, 30, 16, 16), (count, 32, 16, 16)]
    for ours, theirs in zip(found.maps, expected.maps, strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=1e-3)  # fp16: 11 bits
    torch.testing.assert_close(targets, torch.stack([crops[int(i)][1] for i in indices]), atol=3e-4, rtol=0)
    assert np.load(tmp_path / "cache" / "map0.npy", mmap_mode="r").dtype == np.float16


def test_a_decoder_reads_the_cache_as_it_reads_the_backbones(tmp_path: Path) -> None:
    """With the class token, which attention needs."""
    net = tiny_net(tiny_spec(BackboneSpec(name=VIT, layer=1), decoder=DecoderSpec(kind="attention")))
    crops = Noise(3)
    found, _ = features.cache(net, crops, tmp_path, KEY).batch(np.arange(3))
    assert found.cls is not None
    assert found.cls.shape == (3, 1, 64)
    with torch.inference_mode():
        logits = net(torch.stack([crops[i][0] for i in range(3)]))
        torch.testing.assert_close(net.decode(found), logits, atol=2e-3 * float(logits.std()), rtol=0)


def test_the_same_key_opens_and_another_writes_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    net = tiny_net(tiny_spec(RESIDUALS))
    first, again, other = Noise(3), Noise(3), Noise(4)
    features.cache(net, first, tmp_path, KEY)
    # 3 crops of 30 maps of 16 × 16 and a target of 16 × 16, two bytes each: said before it is written.
    assert "frozen features of 3 crops: 0.00 GB in" in capsys.readouterr().err.replace("\n", " ")
    assert len(features.cache(net, again, tmp_path, dict(reversed(KEY.items())))) == 3
    assert (first.asked, again.asked) == (3, 0)
    assert capsys.readouterr().err == ""
    assert len(features.cache(net, other, tmp_path, {**KEY, "seed": 1})) == 4
    assert other.asked == 4


def test_an_interrupted_cache_is_not_taken_for_a_whole_one(tmp_path: Path) -> None:
    net = tiny_net(tiny_spec(RESIDUALS))
    with pytest.raises(KeyboardInterrupt):
        features.cache(net, Noise(6, fail_at=5), tmp_path, KEY, batch_size=2)
    whole = Noise(6)
    cached = features.cache(net, whole, tmp_path, KEY, batch_size=2)
    assert whole.asked == 6
    assert float(cached.batch(np.array([5]))[1].std()) > 0.1
    # Nor is an older whole one of the same key, once its rewriting has begun for another.
    with pytest.raises(KeyboardInterrupt):
        features.cache(net, Noise(6, fail_at=0), tmp_path, {**KEY, "seed": 1})
    assert not (tmp_path / "key.json").exists()
