"""Shares of memory and of places."""

from __future__ import annotations

import contextlib

import pytest

from declip.errors import SpecError
from declip.serve.limits import Budget, Claim, Gate, Limits
from declip.serve.problems import ProblemError


def test_limits_are_positive() -> None:
    for name in ("files", "seconds", "queue"):
        with pytest.raises(SpecError, match=name):
            Limits(**{name: 0})
    with pytest.raises(SpecError, match="nan"):
        Limits(seconds=float("nan"))


def test_what_is_refused_is_not_taken() -> None:
    budget = Budget(100)
    with contextlib.closing(Claim(budget)) as one, contextlib.closing(Claim(budget)) as two:
        one.take(60)
        with pytest.raises(ProblemError) as caught:
            two.take(41)
        assert (caught.value.status, caught.value.headers) == (503, {"Retry-After": "5"})
        two.take(40)
        assert budget.taken == 100
    assert budget.taken == 0
    one.take(30)  # by a thread that was late
    assert budget.taken == 0


def test_places_are_given_back_and_forgotten() -> None:
    gate = Gate(Limits(requests=3, client_requests=2))
    with contextlib.ExitStack() as stack:
        stack.enter_context(gate.enter("a"))
        stack.enter_context(gate.enter("a"))
        with pytest.raises(ProblemError) as caught, gate.enter("a"):
            pass
        assert caught.value.status == 429
        stack.enter_context(gate.enter("b"))
        with pytest.raises(ProblemError) as caught, gate.enter("c"):
            pass
        assert caught.value.status == 503
        assert gate.inside == 3
    assert gate.inside == 0
    assert not gate._clients
