"""The catalogue: complete, consistent, and its numbers those of the paper."""

from __future__ import annotations

import re

import pytest

from declip.errors import WeightsError
from declip.models.catalog import MODELS, find

OFFICIAL = [card for card in MODELS if card.urls]
RIVALS = [card for card in MODELS if card.by_hand]
DOLOS = ("ldm", "repaint", "lama", "pluralistic")


def test_nine_official_checkpoints_and_the_embedded_model() -> None:
    assert len(OFFICIAL) == 9
    assert [card.name for card in MODELS if not card.urls and not card.by_hand] == ["mini"]
    assert len({card.name for card in MODELS}) == len({card.file for card in MODELS}) == 13


def test_the_rivals_are_got_by_hand_from_the_pages_of_their_authors() -> None:
    assert {card.name: card.by_hand.removeprefix("https://github.com/") for card in RIVALS} == {
        "pscc-net-official": "proteus1991/PSCC-Net",
        "cat-net-official": "mjkwon2021/CAT-Net",
        "patch-forensics-official": "chail/patch-forensics",
    }
    assert all(card.file == f"{card.name}.safetensors" and card.sha256 is None for card in RIVALS)
    terms = find("cat-net-official").license
    assert all(word in terms for word in ("code Apache-2.0", "weights CC BY 4.0"))
    assert "research" not in terms
    assert find("pscc-net-official").license == "MIT"


@pytest.mark.parametrize("card", OFFICIAL, ids=lambda card: card.name)
def test_an_official_card_points_at_its_own_checkpoint(card) -> None:
    (url,) = card.urls
    data = card.name.rpartition("-")[2]
    assert url.startswith("https://storage.googleapis.com/bitdefender_ml_artifacts/declip/backbone_VIT")
    assert re.search(rf"_conv-20_{data}(-p2-9k)?\.pth$", url)
    assert card.file == f"{card.name}.pth"
    assert card.license == "CC BY-NC-SA 4.0"
    assert card.sha256 is None
    assert card.spec.decoder.kind == "conv-20"
    layers = [(backbone.name, backbone.weights, backbone.layer) for backbone in card.spec.backbones]
    vit, rn50 = ("vit_large_patch14_clip_quickgelu_224", "openai", 20), ("resnet50_clip_gap", "openai", 3)
    assert layers == ([vit, rn50] if card.name.startswith("fusion") else [vit])
    assert ("%2BRN50" in url) == card.name.startswith("fusion")
    assert (card.spec.input_size, card.spec.output_size, card.spec.mode) == (224, 256, "whole")


def test_the_numbers_give_the_averages_of_the_paper() -> None:
    iou = {
        (train, test): dict(find(f"fusion-conv20-{train}").numbers)[f"dolos-{test} iou"]
        for train in DOLOS
        for test in DOLOS
    }
    in_domain = [value for (train, test), value in iou.items() if train == test]
    out_of_domain = [value for (train, test), value in iou.items() if train != test]
    assert sum(in_domain) / 4 == pytest.approx(0.7385, abs=5e-4)
    assert sum(out_of_domain) / 12 == pytest.approx(0.3472, abs=5e-4)
    assert min(iou, key=iou.__getitem__) == ("pluralistic", "ldm")


def test_every_number_is_a_share() -> None:
    assert all(0 < value < 1 for card in MODELS for _, value in card.numbers)


def test_sizes_are_decoder_plus_optimizer_state() -> None:
    def parameters(channels: int) -> int:
        widths = (512, 256, 128, 64)
        total = 64 * 25 + 1
        for width in widths:
            total += channels * width * 25 + 4 * width * width * 25 + 5 * 3 * width  # biases, gammas, betas
            channels = width
        return total

    assert find("vit-l14-conv20-lama").size_bytes == pytest.approx(12 * parameters(1024), rel=2e-3)
    assert find("fusion-conv20-lama").size_bytes == pytest.approx(12 * parameters(2048), rel=2e-3)


def test_an_unknown_name_is_answered_with_near_ones() -> None:
    assert find("mini").file == "mini.onnx"
    with pytest.raises(WeightsError, match="did you mean fusion-conv20-lama"):
        find("fusion-conv-20-lama")
    with pytest.raises(WeightsError, match="`declip models` lists the names") as caught:
        find("xyz")
    assert "did you mean" not in str(caught.value)
