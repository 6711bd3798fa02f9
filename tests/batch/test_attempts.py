"""What workers died of."""

from __future__ import annotations

from declip.batch.attempts import Attempts


def test_a_first_attempt_knows_nothing() -> None:
    attempts = Attempts()
    assert attempts.begin(3) == (0, [], [])
    assert attempts.begin(4) == (0, [], [])
    assert attempts.begin(3) == (1, [], [])


def test_what_was_touched_at_a_death_is_computed_alone_and_then_left_out() -> None:
    attempts = Attempts()
    attempts.begin(0)
    attempts.begin(0)
    attempts.touch(0, [5])
    attempts.touch(0, [4, 5, 6])
    assert attempts.begin(0) == (2, [4, 5, 6], [])
    attempts.touch(0, [4])
    attempts.touch(0, [])
    attempts.touch(0, [5])
    assert attempts.begin(0) == (3, [4, 6], [5])
    attempts.touch(0, [9])
    attempts.touch(0, [])
    assert attempts.begin(0) == (4, [4, 6], [5])
    assert attempts.begin(1) == (0, [], [])


def test_starts_are_counted_until_a_worker_is_ready() -> None:
    attempts = Attempts()
    assert [attempts.start() for _ in range(4)] == [1, 2, 3, 4]
    attempts.ready()
    assert attempts.start() == 1
