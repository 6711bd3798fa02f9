"""An exported network cut in two where it measures features against their means."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from declip.engines.onnx_engine import OnnxEngine
from declip.errors import SpecError

pytest.importorskip("cv2", reason="the tool's pictures need declip[synthesis]")
ROOT = Path(__file__).resolve().parents[2]
MINI = ROOT / "src" / "declip" / "assets" / "mini.onnx"


@pytest.fixture(scope="module")
def tool() -> Iterator[Any]:
    sys.path.insert(0, str(ROOT / "tools"))
    yield importlib.import_module("photo_statistics")
    sys.path.remove(str(ROOT / "tools"))


@pytest.fixture(scope="module")
def statistics(tool: Any) -> Any:
    return tool.PhotoStatistics(MINI)


def _tiles(count: int) -> dict[str, np.ndarray]:
    return {"image": np.random.default_rng(0).uniform(-1, 1, (count, 3, 320, 320)).astype(np.float32)}


def test_with_its_own_means_a_tile_gives_what_the_whole_network_gives(statistics: Any) -> None:
    inputs = _tiles(2)
    assert np.abs(statistics.logits(inputs) - OnnxEngine(MINI).logits(inputs)).max() < 1e-4


def test_means_are_those_of_the_five_maps(statistics: Any) -> None:
    means = statistics.means(_tiles(2))
    assert [mean.shape for mean in means] == [(2, 30), (2, 172), (2, 24), (2, 40), (2, 112)]


def test_given_means_are_used(statistics: Any) -> None:
    inputs = _tiles(2)
    means = statistics.means(inputs)
    first = statistics.logits(inputs, [mean[0] for mean in means])
    own = statistics.logits(inputs)
    assert np.abs(first[0] - own[0]).max() < 1e-4
    assert np.abs(first[1] - own[1]).max() > 1e-3


def test_the_second_half_does_not_measure(tool: Any) -> None:
    _, second = tool.split(onnx.load(MINI))
    assert len(second.graph.input) == 6
    assert not {value.name for value in second.graph.input} & {
        name for node in second.graph.node for name in node.output
    }


def test_a_network_without_means_is_refused(tool: Any) -> None:
    node = helper.make_node("Relu", ["image"], ["logits"])
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("image", "logits")]
    with pytest.raises(SpecError, match="not of the kind dilated"):
        tool.split(helper.make_model(helper.make_graph([node], "g", values[:1], values[1:])))
