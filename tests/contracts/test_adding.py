"""What CONTRIBUTING says of adding things is true: each is added here for real, in a few lines."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import declip
from declip.results import ResultRow
from tests.fakes import fake_engine

PHOTO = Path(__file__).resolve().parents[2] / "examples" / "photos" / "coffee-untouched.jpg"


def test_add_a_backbone() -> None:
    """A network of one's own that timm knows by its name is a backbone, as its own networks are."""
    timm = pytest.importorskip("timm")
    from declip.nn.model import build

    @timm.models.register_model
    def my_small_resnet(pretrained: bool = False, **kwargs: Any) -> Any:
        shape = {"block": timm.models.resnet.BasicBlock, "layers": (1, 1, 1, 1), "channels": (8, 8, 16, 16)}
        return timm.models.build_model_with_cfg(
            timm.models.resnet.ResNet, "my_small_resnet", pretrained, **shape, **kwargs
        )

    spec = declip.ModelSpec(
        backbones=(declip.BackboneSpec(name="my_small_resnet", layer=2),),
        decoder=declip.DecoderSpec(kind="linear"),
        input_size=64,
        output_size=64,
    )
    import torch

    assert build(spec).eval()(torch.zeros(2, 3, 64, 64)).shape == (2, 64, 64)


def test_add_a_generator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("cv2")
    from declip import datasets
    from declip.synthesis import Recipe, editing, generators, synthesize

    def invert(pixels: Any, mask: Any, rng: Any, donor: Any) -> tuple[Any, Any]:
        return np.where(mask[..., None], 255 - pixels, pixels), mask

    row = editing.Generator(family="local-edit", apply=invert)
    monkeypatch.setitem(generators.GENERATORS, "invert", row)
    manifest = synthesize([PHOTO], Recipe(generators=("invert",), size=128), tmp_path / "data")
    assert {sample.source for sample in datasets.read_manifest(manifest) if sample.label == "fake"} == {"invert"}


def test_add_a_column_to_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    """A field of `ResultRow` and its value in `Localization.row`: JSON and Parquet have it from there."""
    pytest.importorskip("pyarrow")
    from declip.batch import rows

    longer = dataclasses.make_dataclass("ResultRow", [("mean", float)], bases=(ResultRow,), kw_only=True, frozen=True)
    plain = declip.Localization.row.fget  # type: ignore[attr-defined]

    def row(self: declip.Localization) -> Any:
        shown = plain(self)
        given = {field.name: getattr(shown, field.name) for field in dataclasses.fields(shown)}
        return longer(mean=float(self.scores.mean()), **given)

    monkeypatch.setattr(declip.Localization, "row", property(row))
    monkeypatch.setattr(rows, "ResultRow", longer)
    found = declip.Localizer(fake_engine())(np.zeros((64, 64, 3), np.uint8)).to_dict()
    assert 0 <= found["mean"] <= 1
    assert rows.schema().field("mean").type == "double"
