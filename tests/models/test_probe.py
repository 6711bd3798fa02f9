"""The probe tells a fast engine that is near from one that is not."""

from __future__ import annotations

import numpy as np
import pytest

from declip.errors import SpecError
from declip.models import probe
from declip.spec import BackboneSpec, DecoderSpec, ModelSpec

SPEC = ModelSpec(
    backbones=(BackboneSpec(name="resnet18", layer=1),),
    decoder=DecoderSpec(kind="linear"),
    input_size=96,
    output_size=64,
)
LOGITS = np.random.default_rng(0).normal(0, 2, (1, 64, 64)).astype(np.float32)


def test_the_picture_is_the_same_everywhere() -> None:
    picture = probe.picture(SPEC)
    assert picture.shape == (1, 3, 96, 96)
    assert picture.dtype == np.float32
    grey = (picture[0] * np.array(SPEC.std).reshape(3, 1, 1) + np.array(SPEC.mean).reshape(3, 1, 1)) * 255
    assert [round(float(value)) for value in grey[:, 7, 40]] == [227, 179, 83]
    disc, corner = grey[0, 40:56, 40:56], grey[0, :16, :16]
    assert np.abs(np.diff(disc)).mean() > 2 * np.abs(np.diff(corner)).mean()


def test_an_answer_travels_as_text() -> None:
    kept = probe.unpack(probe.pack(LOGITS))
    np.testing.assert_array_equal(kept, LOGITS[0, ::2, ::2].ravel())
    assert len(probe.pack(LOGITS)) < 6000


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda logits: logits, None),
        (lambda logits: logits * 1.02, None),
        (lambda logits: logits + 0.3, r"scores differ from the exact ones by 0\.0[2-9]"),
        (lambda logits: -logits, "logits by 2.00 of their deviation"),
        (lambda logits: logits * np.float32(np.nan), "nan"),
    ],
)
def test_what_is_near_passes_and_what_is_not_does_not(change: object, said: str | None) -> None:
    expected = probe.unpack(probe.pack(LOGITS))
    assert callable(change)
    if said is None:
        probe.check(SPEC, expected, change(LOGITS), what="it")
        return
    with pytest.raises(SpecError, match=said) as caught:
        probe.check(SPEC, expected, change(LOGITS), what="this engine")
    assert str(caught.value).startswith("this engine computes something else here")
    assert str(caught.value).endswith("use precision 'exact'")


def test_a_wrong_logit_is_seen_where_scores_are_saturated() -> None:
    far = LOGITS - 40
    with pytest.raises(SpecError, match="deviation"):
        probe.check(SPEC, probe.unpack(probe.pack(far)), np.full_like(far, -40), what="it")
