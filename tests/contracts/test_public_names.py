"""The public names of the package; ruff holds docstrings and __all__ of its modules."""

from __future__ import annotations

import pytest

import declip


def test_public_names_can_be_had() -> None:
    for name in declip.__all__:
        assert getattr(declip, name) is not None
        assert name in dir(declip)
    with pytest.raises(AttributeError, match="localise"):
        _ = declip.localise
