"""Public functions refuse one thing for several, whose letters or rows they would take, and what is of another type."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import declip
from declip import calibration, clues, datasets, evaluation, images, report, serve, synthesis
from declip.datasets import audit
from declip.errors import DeclipError, ImageError
from declip.images.dose import augment
from declip.localize import folder


def mapped(one: Any) -> Iterator[Any]:
    return declip.load().map(one)


CALLS: dict[str, Callable[[Any], Any]] = {
    "map([…])": lambda one: next(mapped(one)),
    "evaluate(predictor, […])": lambda one: evaluation.evaluate(declip.load(), one),
    "photos=[…]": lambda one: calibration.measure(declip.load(), one),
    "samples=[…]": lambda one: calibration.measure(declip.load(), [Path("a.jpg")] * 20, samples=one),
    "find_pictures([…])": folder.find_pictures,
    "check([…])": audit.check,
    "write_manifest(path, […])": lambda one: datasets.write_manifest("samples.jsonl", one),
    "synthesize([…], …)": lambda one: synthesis.synthesize(one, synthesis.Recipe(), "out"),
    "generators=[…]": lambda one: synthesis.Recipe(generators=one),
    "masks=[…]": lambda one: synthesis.Recipe(masks=one),
    "augment(pixels, […], rng)": lambda one: augment(np.zeros((9, 9, 3), np.uint8), one, np.random.default_rng(0)),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("one", ["photo.jpg", Path("photo.jpg")])
def test_one_thing_is_refused(call: str, one: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ImageError) as caught:
        CALLS[call](one)
    assert caught.value.kind == "input" and str(caught.value).endswith(f"give a list: {call}")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", clues.BASELINES.values())
def test_the_training_free_maps_refuse_it_too(kind: Any) -> None:
    with pytest.raises(ImageError, match="give a list"):
        next(kind().map("photo.jpg"))


def test_one_tensor_and_one_open_file_are_one_thing() -> None:
    torch = pytest.importorskip("torch")
    stack = torch.zeros((2, 70, 70, 3), dtype=torch.uint8)
    for one in (stack[0], stack[0].permute(2, 0, 1), io.BytesIO(b"a file")):
        with pytest.raises(ImageError, match=r"give a list: map\(\[…\]\)"):
            next(mapped(one))
    assert len(list(mapped(stack))) == 2


PIXELS = np.zeros((9, 9, 3), np.uint8)
NO_TYPE: dict[str, Callable[[], Any]] = {
    "got 'mini'; expected Predictor: declip.load": lambda: evaluation.evaluate("mini", []),  # type: ignore[arg-type]
    "got 'a.jpg'; expected Sample: declip.Sample": lambda: evaluation.evaluate(declip.load(), ["a.jpg"]),  # type: ignore[list-item]
    "got 'b.jpg'; expected Sample: declip.Sample": lambda: datasets.write_manifest("x", ["b.jpg"]),  # type: ignore[list-item]
    "got 'm.png'; expected Sample: declip.Sample": lambda: images.read_mask("m.png"),  # type: ignore[arg-type]
    "got 'mini'; expected Localizer: declip.load": lambda: serve.create_app("mini"),  # type: ignore[arg-type]
    "got None; expected Localizer: declip.load": lambda: serve.create_app(None),  # type: ignore[arg-type]
    "got <PosixPath>; expected Localizer": lambda: calibration.measure(Path("a"), []),  # type: ignore[arg-type]
    "got 'mini'; expected Localizer: declip": lambda: report.examine(PIXELS, "mini", date=None),  # type: ignore[arg-type]
    "got 'mini'; expected Engine: declip.load": lambda: declip.Localizer("mini"),  # type: ignore[arg-type]
    "got None; expected Localization: what a localizer": lambda: declip.overlay(PIXELS, None),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("message", NO_TYPE)
def test_another_type_is_refused_by_name(message: str) -> None:
    with pytest.raises(DeclipError, match=message):
        NO_TYPE[message]()
