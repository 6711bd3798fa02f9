"""Run lengths and columns."""

from __future__ import annotations

import io

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from declip.batch.rows import Row, decode_mask, encode_mask, schema, to_parquet
from declip.errors import DeclipError
from declip.regions import MaskRule
from declip.results import Localization


def row(mask: np.ndarray) -> Row:
    return {"image": "a.jpg", "height": mask.shape[0], "width": mask.shape[1], "mask": encode_mask(mask)}


def test_runs_go_down_the_columns_and_begin_with_zeros() -> None:
    mask = np.array([[0, 1, 1], [0, 0, 1]], dtype=bool)  # columns: 00, 10, 11
    assert encode_mask(mask).tolist() == [2, 1, 1, 2]
    assert encode_mask(~mask).tolist() == [0, 2, 1, 1, 2]
    assert encode_mask(np.zeros((2, 3), bool)).tolist() == [6]
    assert encode_mask(np.ones((2, 3), bool)).tolist() == [0, 6]


@settings(deadline=None)
@given(arrays.arrays(bool, arrays.array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.booleans()))
def test_what_was_encoded_is_decoded(mask: np.ndarray) -> None:
    counts = encode_mask(mask)
    assert counts.dtype == np.uint32 and counts.sum() == mask.size and (counts[1:] > 0).all()
    decoded = decode_mask(row(mask))
    assert decoded.dtype == bool and np.array_equal(decoded, mask)


def test_counts_that_do_not_fit_and_rows_without_a_mask_are_refused() -> None:
    good = row(np.eye(3, dtype=bool))
    with pytest.raises(DeclipError, match="add up to 9; expected 4 × 3"):
        decode_mask({**good, "height": 4})
    for nothing in (None, float("nan"), []):
        with pytest.raises(DeclipError, match=r"a\.jpg has no mask"):
            decode_mask({**good, "mask": nothing})


def test_a_result_keeps_its_keys_and_values_in_parquet() -> None:
    scores = np.zeros((40, 30), np.float32)
    scores[3:20, 5:25] = 0.9
    result = Localization(
        name="a.jpg", scores=scores, rule=MaskRule(threshold=0.5), image_score=0.25, model="m", sha256="ab", seconds=0.5
    )
    given = {**result.to_dict(), "bytes": 7, "content": "cd", "mask": encode_mask(result.mask)}
    failed = {"image": "b.jpg", "model": "m", "sha256": "ab", "seconds": 0.1, "error": "b.jpg: bad", "kind": "corrupt"}
    data = to_parquet([given, failed])
    assert set(result.to_dict()) < set(schema().names)
    rows = pq.read_table(io.BytesIO(data)).to_pylist()
    (region,) = given["regions"]
    assert rows[0] == {
        **given,
        "mask": given["mask"].tolist(),
        "regions": [{**region, "bbox": list(region["bbox"]), "parts": []}],
        "error": None,
        "kind": None,
    }
    assert rows[1] == {**dict.fromkeys(schema().names), **failed}
    frame = pd.read_parquet(io.BytesIO(data))
    assert np.array_equal(decode_mask(frame.iloc[0]), result.mask)
    with pytest.raises(DeclipError, match=r"b\.jpg has no mask"):
        decode_mask(frame.iloc[1])
