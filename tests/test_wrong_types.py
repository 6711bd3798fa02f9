"""What is of another type than a function takes is a DeclipError that names what came."""

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

import declip
from declip import files, provenance, report, serve, synthesis
from declip.calibration import calibrate
from declip.errors import DeclipError
from declip.testing import FakeEngine

CALLS = {
    "load": (lambda _: declip.load(3), "got <int>; expected a name of"),
    "pixels": (lambda _: declip.Localizer(FakeEngine(), max_pixels="5"), "max_pixels is '5'"),
    "service": (lambda _: serve.create_app(declip.Localizer(FakeEngine()), 5), "got <int>; expected Limits"),
    "hosts": (lambda _: serve.create_app(declip.Localizer(FakeEngine()), hosts="a.org"), "expected a list of names"),
    "token": (lambda _: serve.create_app(declip.Localizer(FakeEngine()), token=5), "got <int>; expected str"),
    "limits": (lambda _: serve.Limits(pixels="5"), "the limit pixels is '5'"),
    "provenance": (lambda _: provenance.read("x.jpg"), "got 'x.jpg'; expected Photo"),
    "calibrate": (lambda out: calibrate(declip.Localizer(FakeEngine()), [], out), "got <Localizer>"),
    "synthesize": (lambda out: synthesis.synthesize(["a.jpg"], "fresh", out), "got 'fresh'; expected Recipe"),
    "address": (lambda out: files.write_atomic(Path("s3://bucket/a.png"), b""), "s3://… is an address"),
}


@pytest.mark.parametrize("name", CALLS)
def test_another_type_is_named(name, tmp_path):
    call, message = CALLS[name]
    with pytest.raises(DeclipError, match=message):
        call(tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_the_result_of_a_report_is_one():
    photo = np.zeros((64, 64, 3), np.uint8)
    with pytest.raises(DeclipError, match="expected Localization"):
        report.examine(photo, declip.Localizer(FakeEngine()), date=datetime.now(UTC), result="x")
