"""The demo, from its photos to its sheet."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from declip.images.mapfiles import read_mask
from declip.images.read import read_photo
from declip.results import Sample
from declip.spec import BackboneSpec, DecoderSpec, ModelSpec

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
PHOTOS = sorted((EXAMPLES / "photos").iterdir())


@pytest.fixture(scope="module")
def bright(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that flags what is bright: the mean of 4 × 4 px, made without torch."""
    spec = ModelSpec(
        backbones=(BackboneSpec(name="residual-statistics", layer=0),),
        decoder=DecoderSpec(kind="dilated", widths=(8, 8)),
        input_size=256,
        output_size=64,
        mode="tiled",
        overlap=64,
        image_score="top",
    )
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["image", "kernel"], ["mean"], strides=[4, 4]),
            helper.make_node("Squeeze", ["mean", "axis"], ["logits"]),
        ],
        "bright",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, 256, 256])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 64, 64])],
        [
            numpy_helper.from_array(np.full((1, 3, 4, 4), 1 / 48, np.float32), "kernel"),
            numpy_helper.from_array(np.array([1]), "axis"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    helper.set_model_props(model, {"declip": spec.to_json()})
    path = tmp_path_factory.mktemp("bright") / "bright.onnx"
    onnx.save(model, path)
    return path


def test_every_mask_fits_its_photo_and_is_no_more_than_a_part_of_it() -> None:
    masks = {path.stem: path for path in (EXAMPLES / "masks").iterdir()}
    untouched = [path.stem for path in PHOTOS if path.stem not in masks]
    assert len(masks) >= 4 and len(untouched) == 2 and all(name.endswith("-untouched") for name in untouched)
    assert len({stem.partition("-")[2] for stem in masks}) == len(masks)  # each of another kind
    for photo in PHOTOS:
        if photo.stem in masks:
            mask = read_mask(Sample(image=photo, mask=masks.pop(photo.stem), label="fake"))
            assert mask.shape == read_photo(photo).size
            assert 0.005 < mask.mean() < 0.3
    assert not masks


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> object:
    """Run the demo in this process; return what it exits with."""
    monkeypatch.setattr(sys, "argv", ["demo.py", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(EXAMPLES / "demo.py"), run_name="__main__")
    return stopped.value.code


def test_the_demo_runs_over_earlier_maps_and_draws_its_sheet(
    bright: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, sheet_file = tmp_path / "out", tmp_path / "docs" / "sheet.png"
    out.mkdir()
    earlier = out / f"{PHOTOS[0].name}.mask.png"
    earlier.write_bytes(b"of an earlier run")
    assert run(monkeypatch, "--model", bright, "--out", out, "--sheet", sheet_file) == 0
    assert earlier.read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert all(photo.name in printed for photo in PHOTOS)
    assert len(list(out.iterdir())) == 3 * len(PHOTOS)
    sheet = np.asarray(Image.open(sheet_file).convert("RGB"))
    assert sheet.shape[1] > 1200 and (sheet[0, 0] == 255).all()
    assert sheet_file.stat().st_size < 400_000


def test_without_a_model_the_demo_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = run(monkeypatch, "--model", "none.onnx", "--out", tmp_path / "out")
    assert isinstance(said, str) and said.startswith("demo: ") and "none.onnx" in said
