"""Networks that are told the whole photo's means: exported ones opened up, and the same numbers from every engine."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import subprocess
import sys
from pathlib import Path
from typing import TypeAlias

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper

from declip.engines import Engine, open_engine
from declip.errors import SpecError, WeightsError
from declip.models import checkpoint, export, photo_mean
from declip.models.resolve import embedded_path
from declip.models.respec import with_spec
from declip.spec import Calibration, DecoderSpec, ModelSpec
from tests.tiny import save_tiny, tiled_spec

pytestmark = pytest.mark.usefixtures("one_torch_thread")

Pair: TypeAlias = tuple[Path, Path]  # the same model as .safetensors and .onnx
CHANNELS = 62  # of the tiny model's two maps: 30 residual statistics and 32 of its backbone


def tiles(count: int, side: int = 64) -> dict[str, NDArray[np.float32]]:
    """Each of another brightness and contrast, so that means differ."""
    rng = np.random.default_rng(count)
    noise = rng.standard_normal((count, 3, side, side), dtype=np.float32)
    level = np.arange(count, dtype=np.float32)[:, None, None, None]
    return {"image": noise * (0.1 + level / 4) + level / 3}


@pytest.fixture(scope="module")
def measured(tiny_model: Pair, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """The tiny model, measured against the whole photo."""
    folder = tmp_path_factory.mktemp("photo")
    spec = tiled_spec(statistics="photo")
    first, second = (with_spec(path, spec, folder / path.name) for path in tiny_model)
    return first, second


def with_state(engine: Engine, inputs: dict[str, NDArray[np.float32]]) -> NDArray[np.float32]:
    rows = {name: np.repeat(value, len(inputs["image"]), axis=0) for name, value in engine.state(inputs).items()}
    return engine.logits(inputs | rows)


def test_a_file_opened_up_has_one_input_and_one_output_more(measured: Pair) -> None:
    model = onnx.load(str(measured[1]))
    onnx.checker.check_model(model)
    assert [value.name for value in model.graph.input] == ["image", "photo_mean"]
    assert [value.name for value in model.graph.output] == ["logits", "tile_mean"]
    before = len(model.SerializeToString())
    photo_mean.open_up(model, "tiny.onnx")
    assert len(model.SerializeToString()) == before


@pytest.mark.parametrize("position", [0, 1], ids=["torch", "onnx"])
def test_without_a_photo_nothing_changes_to_the_bit(tiny_model: Pair, measured: Pair, position: int) -> None:
    old, new = open_engine(tiny_model[position]), open_engine(measured[position])
    for count in (1, 3):
        assert np.array_equal(old.logits(tiles(count)), new.logits(tiles(count)))
    assert old.state(tiles(2)) == {}


def test_the_embedded_model_can_be_opened_up_and_does_not_grow(tmp_path: Path) -> None:
    path = embedded_path()
    old = open_engine(path, threads=1)
    spec = dataclasses.replace(old.spec, statistics="photo", calibration=None)
    new = open_engine(with_spec(path, spec, tmp_path / "photo.onnx"), threads=1)
    assert (tmp_path / "photo.onnx").stat().st_size < path.stat().st_size + 4000
    inputs = tiles(2, 320)
    assert np.array_equal(old.logits(inputs), new.logits(inputs))
    assert new.state(inputs)["photo_mean"].shape == (1, 30 + 172 + 24 + 40 + 112)


def test_the_state_is_the_mean_of_the_tiles_means(measured: Pair) -> None:
    net, _ = checkpoint.load(measured[0])
    inputs = tiles(4)
    with torch.inference_mode():
        means = net.means(torch.from_numpy(inputs["image"])).numpy()  # type: ignore[operator]
    assert means.shape == (4, CHANNELS) and float(means.std(axis=0).max()) > 0.1
    for path in measured:
        (name, state), *others = open_engine(path).state(inputs).items()
        assert (name, others, state.dtype) == ("photo_mean", [], np.float32)
        np.testing.assert_allclose(state, means.mean(axis=0, keepdims=True), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("precision", ["exact", "fast"])
def test_every_engine_computes_the_same_against_the_photo(measured: Pair, precision: str) -> None:
    if precision == "fast":
        pytest.importorskip("openvino")
    by_torch, by_onnx = open_engine(measured[0]), open_engine(measured[1], precision=precision)  # type: ignore[arg-type]
    if by_onnx.precision == "fast":
        pytest.skip("this processor has bf16")
    for count in (2, 5):
        ours, theirs = with_state(by_torch, tiles(count)), with_state(by_onnx, tiles(count))
        assert float(np.abs(ours - theirs).max()) <= 1e-4
        alone = by_onnx.logits(tiles(count))
        assert float(np.abs(theirs - alone).max()) > 0.05  # it is another map
        assert float(np.abs(alone - by_torch.logits(tiles(count))).max()) <= 1e-4


def test_given_its_own_means_a_tile_is_what_it_was(measured: Pair) -> None:
    for path in measured:
        engine = open_engine(path)
        assert np.array_equal(with_state(engine, tiles(1)), engine.logits(tiles(1)))


def test_rows_may_be_of_different_photos(measured: Pair) -> None:
    for path in measured:
        engine = open_engine(path)
        inputs = tiles(4)
        states = [engine.state({"image": inputs["image"][i : i + 2]})["photo_mean"] for i in (0, 2)]
        together = engine.logits(inputs | {"photo_mean": np.repeat(np.concatenate(states), 2, axis=0)})
        for i, state in enumerate(states):
            rows = {"image": inputs["image"][2 * i : 2 * i + 2], "photo_mean": np.repeat(state, 2, axis=0)}
            assert float(np.abs(engine.logits(rows) - together[2 * i : 2 * i + 2]).max()) <= 1e-5


@pytest.mark.slow
def test_an_export_is_opened_up_and_checked(tmp_path: Path) -> None:
    source = save_tiny(tmp_path / "tiny.safetensors", tiled_spec(statistics="photo"))
    engine = open_engine(export.to_onnx(source, tmp_path / "tiny.onnx"))
    assert engine.spec.statistics == "photo"
    expected = with_state(open_engine(source), tiles(3))
    assert float(np.abs(with_state(engine, tiles(3)) - expected).max()) <= 1e-4


@pytest.mark.parametrize("position", [0, 1], ids=["torch", "onnx"])
def test_an_engine_that_measures_travels_as_its_file(measured: Pair, position: int) -> None:
    engine = open_engine(measured[position], threads=1, device="cpu")
    for other in (pickle.loads(pickle.dumps(engine)), copy.deepcopy(engine)):
        assert np.array_equal(with_state(other, tiles(3)), with_state(engine, tiles(3)))


FORK = """
import os, sys
import numpy as np
from declip.localize.localizer import load
localizer = load(sys.argv[1], threads=2)
pixels = np.random.default_rng(0).integers(0, 256, (200, 150, 3), dtype=np.uint8)
expected = localizer(pixels).scores
child = os.fork()
if child == 0:
    os._exit(0 if np.array_equal(localizer(pixels).scores, expected) else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_fork_measures_as_its_parent_does(measured: Pair) -> None:
    command = [sys.executable, "-W", "ignore", "-c", FORK, str(measured[1])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert (done.stdout.split(), done.returncode) == (["0"], 0), done.stderr


@pytest.mark.parametrize("position", [0, 1], ids=["torch", "onnx"])
def test_a_calibration_of_other_statistics_is_not_kept(tiny_model: Pair, tmp_path: Path, position: int) -> None:
    calibration = Calibration(untouched=((0.1, 0.2), (), ()), photos=(2, 0, 0), mode="tiled")
    spec = dataclasses.replace(tiled_spec(), calibration=calibration)
    path = with_spec(tiny_model[position], spec, tmp_path / f"old{tiny_model[position].suffix}")
    out = tmp_path / f"new{path.suffix}"
    with pytest.raises(SpecError, match="measured with statistics of the tile, and does not hold for those of the ph"):
        with_spec(path, dataclasses.replace(spec, statistics="photo"), out)
    assert not out.exists()
    with_spec(path, dataclasses.replace(spec, statistics="photo", calibration=None), out)
    assert open_engine(out).spec.statistics == "photo"


def test_a_file_that_cannot_measure_is_refused(tiny_model: Pair, tmp_path: Path) -> None:
    model = onnx.load(str(tiny_model[1]))
    for entry in model.metadata_props:
        if entry.key == "declip":
            entry.value = tiled_spec(statistics="photo").to_json()
    path = tmp_path / "claims.onnx"
    onnx.save_model(model, str(path))
    with pytest.raises(WeightsError, match=r"its network has no input 'photo_mean'; make it anew"):
        open_engine(path)
    pytest.importorskip("openvino")
    with pytest.raises(WeightsError, match=r"its network has no input 'photo_mean'; make it anew"):
        open_engine(path, precision="fast")


def test_a_network_without_means_is_refused() -> None:
    node = helper.make_node("Relu", ["image"], ["logits"])
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("image", "logits")]
    model = helper.make_model(helper.make_graph([node], "g", values[:1], values[1:]))
    with pytest.raises(WeightsError, match="not of the kind dilated"):
        photo_mean.open_up(model, "relu.onnx")


def test_descriptions_without_the_field_are_of_tiles() -> None:
    spec = tiled_spec()
    old = spec.to_json().replace('"statistics": "tile", ', "")
    assert "statistics" not in old.replace("residual-statistics", "")
    assert ModelSpec.from_json(old) == spec
    with pytest.raises(SpecError, match="statistics is 'picture'; expected one of 'tile', 'photo'"):
        tiled_spec(statistics="picture")
    with pytest.raises(SpecError, match="need a decoder of the kind dilated"):
        dataclasses.replace(tiled_spec(), decoder=DecoderSpec(kind="linear"), statistics="photo")
