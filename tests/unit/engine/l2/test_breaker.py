"""The breaker: a storage that fails is left alone, tried from time to time, and used again when it answers."""

from __future__ import annotations

import pytest

from engine.l2.breaker import FAILURES, FIRST_WAIT, LONGEST_WAIT, Breaker


def failing(times: int, now: float = 0.0, jitter: float = 0.0) -> Breaker:
    breaker = Breaker()
    for _ in range(times):
        assert breaker.begin(now)
        breaker.failed(now, jitter)
    return breaker


def test_a_few_failures_are_no_reason() -> None:
    breaker = failing(FAILURES - 1)
    assert not breaker.is_open
    assert breaker.begin(0.0)


def test_a_success_between_failures_makes_the_count_begin_anew() -> None:
    breaker = failing(FAILURES - 1)
    breaker.succeeded()
    for _ in range(FAILURES - 1):
        breaker.failed(0.0, 0.0)
    assert not breaker.is_open


def test_after_several_failures_in_a_row_nothing_is_asked_for_a_while() -> None:
    breaker = failing(FAILURES)
    assert breaker.is_open
    assert breaker.blocks(FIRST_WAIT - 0.01)
    assert not breaker.begin(FIRST_WAIT - 0.01)


def test_then_one_trial_is_made_at_a_time() -> None:
    breaker = failing(FAILURES)
    assert not breaker.blocks(FIRST_WAIT)
    assert breaker.begin(FIRST_WAIT)
    assert breaker.is_open
    assert breaker.blocks(FIRST_WAIT + 100)
    assert not breaker.begin(FIRST_WAIT + 100)


def test_a_trial_that_succeeds_closes_it() -> None:
    breaker = failing(FAILURES)
    breaker.begin(FIRST_WAIT)
    breaker.succeeded()
    assert not breaker.is_open
    assert breaker.begin(FIRST_WAIT)
    assert breaker.begin(FIRST_WAIT)


def test_trials_that_fail_double_the_wait_up_to_the_longest() -> None:
    breaker, now, wait = failing(FAILURES), 0.0, FIRST_WAIT
    for _ in range(10):
        now += wait
        assert not breaker.begin(now - 0.01)
        assert breaker.begin(now)
        breaker.failed(now, 0.0)
        wait = min(2 * wait, LONGEST_WAIT)
    assert wait == LONGEST_WAIT


def test_after_it_has_closed_it_begins_with_the_first_wait_again() -> None:
    breaker = failing(FAILURES)
    breaker.begin(1.0)
    breaker.failed(1.0, 0.0)
    breaker.begin(10.0)
    breaker.succeeded()
    for _ in range(FAILURES):
        breaker.failed(20.0, 0.0)
    assert not breaker.begin(20.0 + FIRST_WAIT - 0.01)
    assert breaker.begin(20.0 + FIRST_WAIT)


@pytest.mark.parametrize(("jitter", "part"), [(0.0, 1.0), (0.5, 0.75), (0.999, 0.501)])
def test_jitter_makes_a_wait_up_to_a_half_shorter(jitter: float, part: float) -> None:
    breaker = failing(FAILURES, jitter=jitter)
    assert breaker.blocks(FIRST_WAIT * part * 0.999)
    assert not breaker.blocks(FIRST_WAIT * part * 1.001)


def test_calls_from_before_it_opened_do_not_make_the_wait_longer() -> None:
    breaker = failing(FAILURES)
    for _ in range(20):
        breaker.failed(0.4, 0.0)
    assert breaker.begin(FIRST_WAIT)


def test_a_late_success_of_a_call_from_before_it_opened_closes_it() -> None:
    breaker = failing(FAILURES)
    breaker.succeeded()
    assert not breaker.is_open
