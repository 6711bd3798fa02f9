"""The bench of cached training: what the cache of frozen features saves, with ViT-L/14's shapes."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "bench" / "cached_training.py"
# Measured on two machines: 117 and 277, 3.2 and 2.5. One epoch of each is timed, on a machine that may have other work.
LEAST = {"linear": 20, "conv-4": 1.4}


@pytest.mark.slow
def test_cached_epochs_are_faster(tmp_path: Path) -> None:
    specification = importlib.util.spec_from_file_location("cached_training", SCRIPT)
    assert specification is not None
    assert specification.loader is not None
    bench = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(bench)
    rows = bench.measure(tmp_path, images=4, batch_size=4, repeats=1, decoders=list(LEAST))
    ratios = {row["decoder"]: row["ratio"] for row in rows}
    assert ratios.keys() == LEAST.keys()
    assert {kind: ratio for kind, ratio in ratios.items() if ratio < LEAST[kind]} == {}
