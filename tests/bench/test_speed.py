"""The bench of speed: the official way computes the same, figures are counted rightly, the page says what was found."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

import declip

torch = pytest.importorskip("torch", reason="the bench needs declip[torch]")

ROOT = Path(__file__).resolve().parents[2]
BENCH = ROOT / "bench"


@pytest.fixture(scope="module")
def bench() -> Iterator[Any]:
    """Imports a script of bench/ by its name."""
    sys.path.insert(0, str(BENCH))
    try:
        yield importlib.import_module
    finally:
        sys.path.remove(str(BENCH))


@pytest.fixture
def acceptance(bench: Any) -> ModuleType:
    module: ModuleType = bench("acceptance")
    return module


def fine() -> dict[str, Any]:
    """Results in which all that is asked for is met, each just so."""
    row = {
        "name": "ViT-L/14, conv-20",
        "batch": 4,
        "against_official": {"official": 1.0, "exact": 1.4, "fast": 2.5},
        "share_of_fp32_peak": {"official": 0.6, "exact": 0.8, "fast": 1.7},
        "agreement": {
            "exact_logits_relative": 1e-4,
            "fast_mean_score_difference": 0.01,
            "fast_decisions_alike": 0.99,
        },
    }
    return {
        "environment": {"flags": ["amx_bf16"]},
        "networks": [row | {"batch": 1, "against_official": {}}, row],
        "mini": {
            "rows": [
                {"what": "tile", "batch": 1, "fast_against_exact": 1.0},
                {"what": "tile", "batch": 8, "fast_against_exact": 1.5},
            ]
        },
        "streams": {
            "rows": [
                {"photo": "256 px", "share_of_network": {"median": 0.95}},
                {"photo": "0.5 MP", "share_of_network": {"median": 0.9}},
                {"photo": "256 px", "share_of_network": {"median": 0.97}},
            ]
        },
        "mini_fast_iou": 0.391,
        "mini_exact_iou": 0.4,
        "steady": {
            "photos": 2000,
            "growth": 1.2,
            "rate_first": 10.0,
            "rate_last": 9.5,
            "gflops_first": 100.0,
            "gflops_last": 100.0,
        },
    }


def test_the_page_is_what_the_script_makes_of_the_results(bench: Any) -> None:
    found = json.loads((BENCH / "results.json").read_text(encoding="utf-8"))
    assert {"official_s", "exact_s", "fast_s"} <= found.keys()
    page = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    assert page == bench("speed_page").page(found), "run python bench/speed_page.py"


def test_what_is_just_so_is_enough(acceptance: ModuleType) -> None:
    assert [good for _, _, good in acceptance.checks(fine())] == [True] * 12


@pytest.mark.parametrize(
    ("place", "value", "number"),
    [
        (("networks", 1, "share_of_fp32_peak", "official"), 0.59, 0),
        (("networks", 1, "against_official", "exact"), 1.39, 1),
        (("networks", 1, "agreement", "exact_logits_relative"), 1.1e-4, 2),
        (("networks", 1, "share_of_fp32_peak", "exact"), 0.79, 3),
        (("networks", 1, "against_official", "fast"), 2.49, 4),
        (("networks", 1, "agreement", "fast_mean_score_difference"), 0.011, 5),
        (("networks", 1, "agreement", "fast_decisions_alike"), 0.989, 6),
        (("mini", "rows", 1, "fast_against_exact"), 1.49, 7),
        (("mini_fast_iou",), 0.389, 8),
        (("streams", "rows", 2, "share_of_network", "median"), 0.949, 9),
        (("steady", "growth"), 1.21, 10),
        (("steady", "rate_last"), 8.9, 11),
        (("steady", "rate_last"), 11.1, 11),
        (("steady", "gflops_last"), 110.0, 11),
    ],
)
def test_what_falls_short_is_noticed(acceptance: ModuleType, place: tuple[Any, ...], value: float, number: int) -> None:
    found: Any = fine()
    inner = found
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    assert [at for at, (_, _, good) in enumerate(acceptance.checks(found)) if good is False] == [number]


def test_a_stream_is_compared_with_the_network_turn_by_turn(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A turn in which the machine is three times as slow changes no share."""
    speed = bench("speed")
    monkeypatch.setattr(
        speed, "interleaved", lambda contenders, repeats: {"network": [0.9, 2.7, 0.9], "map": [1.0, 3.0, 0.9]}
    )
    localizer = declip.load()
    photos = sorted(speed.PHOTOS.iterdir())[:3]
    found = speed.stream(localizer, photos, 3, batch=2)
    assert found["share_of_network"] == {"min": 0.9, "median": 0.9, "max": 1.0}
    assert found["photos_per_second"]["map"] == {"min": 1.0, "median": 3.0, "max": pytest.approx(3.333, abs=1e-3)}
    assert (found["photos"], found["batch"], found["turns"]) == (3, 2, 3)


def test_a_section_of_another_machine_says_so(bench: Any) -> None:
    page = bench("speed_page")
    rows = [
        {
            "model": "m",
            "precision": "exact",
            "photo": "256 px",
            "photos": 16,
            "batch": 4,
            "turns": 5,
            "photos_per_second": {"map": {"median": 9.5}, "network": {"median": 10.0}},
            "share_of_network": {"min": 0.9, "median": 0.953, "max": 1.01},
        }
    ]
    found = {"environment": {"cpu": "one"}, "sections": {"streams": {"cpu": "two"}}}
    found |= {"streams": {"rows": rows, "fast_skipped": None}}
    assert "| m | exact | 256 px | 9.5 | 10 | 95.3 % (90 % – 101 %) | 5 of 16 |" in page.told(found, "streams")
    assert page.told(found, "streams").endswith("\n\nMeasured on another machine (two).")
    found["environment"] = {"cpu": "two"}
    assert "another machine" not in page.told(found, "streams")


def test_what_was_not_measured_is_no_pass(acceptance: ModuleType) -> None:
    assert {good for _, _, good in acceptance.checks({"environment": {"flags": ["amx_bf16"]}})} == {None}


def test_the_official_way_computes_the_same(bench: Any) -> None:
    """On a small ViT of CLIP's kind, read at its third block of four, and a decoder of four convolutions."""
    from timm.layers import QuickGELU
    from timm.models.vision_transformer import VisionTransformer

    from declip.nn.decoders import build_decoder
    from declip.nn.maps import Features, FeatureShape
    from declip.spec import DecoderSpec
    from tests.tiny import NARROW, randomise

    official_way = bench("official_way")
    model = VisionTransformer(
        img_size=64,
        patch_size=16,
        embed_dim=32,
        depth=4,
        num_heads=2,
        num_classes=0,
        pre_norm=True,
        act_layer=QuickGELU,
        norm_layer=torch.nn.LayerNorm,
    ).eval()
    decoder = build_decoder(
        DecoderSpec(kind="conv-4", widths=NARROW), FeatureShape(channels=(32,), grids=(4,), has_cls=True), 64
    ).eval()
    randomise(model, 1)
    randomise(decoder, 2)
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        maps = model.forward_intermediates(images, indices=[2], intermediates_only=True)
        wanted = decoder(Features(tuple(maps)))
        tower = official_way.OfficialViT(SimpleNamespace(model=model, layers=[2]))
        found = official_way.OfficialWay([tower], decoder)(images)
    assert found.shape == (2, 64, 64)
    assert float((found - wanted).abs().max() / wanted.std()) < 1e-5


def test_turns_are_interleaved_and_the_first_is_not_counted(bench: Any) -> None:
    order: list[str] = []
    seconds = bench("machine").interleaved({name: lambda name=name: order.append(name) for name in "ab"}, 2)
    assert "".join(order) == "ababab"
    assert {name: len(values) for name, values in seconds.items()} == {"a": 2, "b": 2}
    assert bench("machine").spread([3, 1, 2]) == {"min": 1, "median": 2, "max": 3}


def test_a_peak_is_the_fastest_shape_of_each_turn(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = bench("machine")
    monkeypatch.setattr(machine, "PEAK_FLOP", {torch.float32: 6e10, torch.bfloat16: 3e11})
    seconds = {name: [10.0, 10.0, 10.0] for name in machine.peak_contenders(machine.PEAK_FLOP)}
    name = machine._peak_name(torch.float32, (2048, 2048, 2048))
    seconds[name] = [0.5, 0.25, 0.5]
    found = machine.peaks(seconds)
    flop = 2 * 2048**3 * machine._count(torch.float32, (2048, 2048, 2048)) / 1e9
    assert found["float32"]["gflops"] == {
        "min": round(2 * flop, 1),
        "median": round(2 * flop, 1),
        "max": round(4 * flop, 1),
    }
    assert found["bfloat16"]["gflops"]["min"] == found["bfloat16"]["gflops"]["max"]


def test_shares_and_ratios_of_a_row(bench: Any) -> None:
    machine = bench("machine")
    seconds = {name: [1.0] for name in machine.peak_contenders()} | {"official": [2.0, 4.0, 6.0], "exact": [2.0] * 3}
    built = SimpleNamespace(official_gmac=100.0, gmac=80.0)
    row = bench("speed").network_row("a", 2, built, seconds)
    assert row["ways"]["official"] == {"min": 1.0, "median": 2.0, "max": 3.0}
    assert row["against_official"] == {"official": 1.0, "exact": 2.0}
    assert row["gflops"] == {"official": 100.0, "exact": 160.0}
    peak = machine.peaks(seconds)["float32"]["gflops"]["median"]
    assert row["share_of_fp32_peak"]["exact"] == round(160 / peak, 3)


def test_how_far_apart_scores_are(bench: Any) -> None:
    exact = np.array([[0.0, 0.0, 10.0, -10.0]], np.float32)
    fast = np.array([[-0.1, 0.1, 10.0, -10.0]], np.float32)
    found = bench("speed").difference(exact, fast)
    assert found["fast_decisions_alike"] == 0.75
    assert found["fast_mean_score_difference"] == pytest.approx((1 / (1 + np.exp(-0.1)) - 0.5) / 2, rel=1e-4)


def test_a_photo_of_12_megapixels(bench: Any, tmp_path: Path) -> None:
    from declip.images.read import read_photo

    assert read_photo(bench("speed").large_photo(tmp_path)).size == (3000, 4000)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_quick_run(bench: Any, acceptance: ModuleType, tmp_path: Path) -> None:
    """That all rows come about; how fast anything is, is not judged."""
    out = tmp_path / "results.json"
    command = [sys.executable, str(BENCH / "speed.py"), "--quick", "--only", "networks", "mini", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert out.exists(), done.stderr
    found = json.loads(out.read_text(encoding="utf-8"))
    (row,) = found["networks"]
    assert found["official_s"] == row["ways"]["official"]["median"] > 0
    assert found["exact_s"] == row["ways"]["exact"]["median"] > 0
    assert row["gmac"]["official"] == pytest.approx(121.4, abs=0.1)
    assert row["gmac"]["exact"] == pytest.approx(111.3, abs=0.1)
    assert row["agreement"]["exact_logits_relative"] <= acceptance.MOST_LOGITS
    assert [entry["what"] for entry in found["mini"]["rows"]] == ["tile"]
    assert bench("speed_page").page(found).count("\n## ") == 9
