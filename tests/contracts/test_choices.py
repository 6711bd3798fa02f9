"""What is one of a few words is refused by name where it is another one, in every public function that takes one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from declip import batch, evaluation
from declip.errors import SpecError
from declip.models import official
from declip.reproduce import setup
from declip.results import Sample
from declip.spec import check_choice
from declip.synthesis import steps
from declip.training import views
from tests.tiny import tiny_spec

CALLS: dict[str, Callable[[], Any]] = {
    "label is 'foo'; expected one of 'real', 'fake'": lambda: Sample(image=Path("a.png"), label="foo"),  # type: ignore[arg-type]
    "fake_is is 'foo'; expected one of 'white', 'black'": lambda: evaluation.Maps(".", [], fake_is="foo"),  # type: ignore[arg-type]
    "target is 'foo'; expected one of 'mask', 'image'": lambda: views.Views([], tiny_spec(), target="foo"),  # type: ignore[arg-type]
    "scale is 'foo'; expected one of 'full', 'tiny'": lambda: setup.Setup(scale="foo"),  # type: ignore[arg-type]
    "rival is 'foo'; expected one of 'patch-forensics'": lambda: setup.rival_recipe("foo"),  # type: ignore[arg-type]
    "format is 'foo'; expected one of 'png', 'jpeg', 'webp'": lambda: steps.Encoding(format="foo"),  # type: ignore[arg-type]
    "chroma is 'foo'; expected one of '4:4:4', '4:2:0'": lambda: steps.Encoding(
        format="jpeg",
        quality=90,
        chroma="foo",  # type: ignore[arg-type]
    ),
    "tower is 'foo'; expected one of 'vit', 'rn50', 'fusion'": lambda: official.convert(
        Path("a.pth"),
        Path("b.safetensors"),
        tower="foo",  # type: ignore[arg-type]
    ),
    "fake_class is 2; expected one of 0, 1": lambda: official.convert(
        Path("a.pth"),
        Path("b.safetensors"),
        fake_class=2,  # type: ignore[arg-type]
    ),
    "device is 'gpu'; expected one of 'cpu', 'cuda'": lambda: batch.run(".", "out", device="gpu"),  # type: ignore[arg-type]
    "precision is 'half'; expected one of 'exact', 'fast'": lambda: batch.run(".", "out", precision="half"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("message", CALLS)
def test_another_word_is_refused_and_the_choices_are_named(message: str) -> None:
    if "gpu" in message or "half" in message:
        pytest.importorskip("ray")
    with pytest.raises(SpecError, match=message):
        CALLS[message]()


def test_a_choice_passes() -> None:
    check_choice("tiled", batch.driver.Mode, "mode")
