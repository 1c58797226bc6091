"""`ScrubPlan`: when a pass begins, how fast it goes, and where it goes on."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.l2.scrub_plan import (
    ATTEMPTS,
    FIRST_PASS_SECONDS,
    FIRST_WAIT,
    HELD_REST,
    LONGEST_REST,
    LONGEST_WAIT,
    ScrubPlan,
)
from engine.settings import MIB, ScrubSettings

NOW = 5000.0
ON = ScrubSettings(enabled=True, every_hours=24, rate=MIB)
OFF = replace(ON, enabled=False)
DAY = 24 * 3600.0


def running(*, asked: bool = False) -> ScrubPlan:
    plan = ScrubPlan()
    plan.begin(NOW, asked=asked)
    return plan


class TestBeginning:
    def test_without_being_switched_on_no_pass_is_ever_due(self) -> None:
        plan = ScrubPlan()
        assert not plan.is_due(NOW, OFF)
        assert not plan.is_due(NOW + 1e9, OFF)
        assert plan.rest(NOW + 1e9, OFF, is_held=False) == LONGEST_REST

    def test_the_first_pass_comes_a_while_after_the_start(self) -> None:
        plan = ScrubPlan()
        assert not plan.is_due(NOW, ON)
        assert not plan.is_due(NOW + FIRST_PASS_SECONDS - 1, ON)
        assert plan.rest(NOW + FIRST_PASS_SECONDS - 1, ON, is_held=False) == 1
        assert plan.is_due(NOW + FIRST_PASS_SECONDS, ON)

    def test_frequent_passes_begin_with_an_interval(self) -> None:
        plan, often = ScrubPlan(), replace(ON, every_hours=0.01)
        assert not plan.is_due(NOW, often)
        assert plan.is_due(NOW + 36, often)

    def test_the_next_one_comes_an_interval_after_the_end_of_the_last(self) -> None:
        plan = running()
        plan.ended(NOW + 100)
        assert not plan.is_due(NOW + 100, ON)
        assert not plan.is_due(NOW + 99 + DAY, ON)
        assert plan.is_due(NOW + 100 + DAY, ON)

    def test_while_one_runs_none_is_due(self) -> None:
        plan = running()
        assert not plan.is_due(NOW + 9 * DAY, ON)
        assert plan.is_running

    def test_one_that_is_switched_off_is_given_up(self) -> None:
        plan = running()
        assert not plan.is_due(NOW, OFF)
        assert not plan.is_running
        assert plan.rest(NOW, OFF, is_held=False) > 0
        assert plan.ended_at is None

    def test_one_that_was_asked_for_goes_on_whatever_is_configured(self) -> None:
        plan = running(asked=True)
        plan.is_due(NOW, OFF)
        assert plan.is_running

    def test_switched_on_again_it_begins_a_while_later_and_not_before_it_is_due(self) -> None:
        plan = running()
        plan.ended(NOW)
        plan.is_due(NOW + 1, OFF)
        assert not plan.is_due(NOW + 2 * DAY, ON)
        assert plan.is_due(NOW + 2 * DAY + FIRST_PASS_SECONDS, ON)

    def test_a_shorter_interval_holds_at_once(self) -> None:
        plan = running()
        plan.is_due(NOW, ON)
        plan.ended(NOW)
        assert not plan.is_due(NOW + 3600, ON)
        assert plan.is_due(NOW + 3600, replace(ON, every_hours=1))


class TestPace:
    def test_what_was_read_is_rested_for(self) -> None:
        plan = running()
        assert plan.rest(NOW, ON, is_held=False) == 0
        plan.read(NOW, MIB, ON)
        assert plan.rest(NOW + 0.25, ON, is_held=False) == 0.75
        assert plan.rest(NOW + 1, ON, is_held=False) == 0

    def test_a_rest_is_never_longer_than_the_time_to_the_next_look_at_the_settings(self) -> None:
        plan = running()
        plan.read(NOW, 100 * MIB, ON)
        assert plan.rest(NOW, ON, is_held=False) == LONGEST_REST
        assert plan.rest(NOW + 1, replace(ON, rate=100 * MIB), is_held=False) == 0

    def test_what_was_not_read_while_it_was_held_up_is_not_made_up_for(self) -> None:
        plan = running()
        plan.read(NOW, MIB, ON)
        plan.read(NOW + 1000, MIB, ON)
        assert plan.rest(NOW + 1000, ON, is_held=False) == 1

    def test_it_looks_several_times_a_second_whether_it_is_held_up_still(self) -> None:
        assert running().rest(NOW, ON, is_held=True) == HELD_REST

    @given(st.lists(st.integers(0, 8 * MIB), min_size=1, max_size=40), st.integers(MIB, 1 << 30))
    def test_the_rate_is_kept_whatever_the_sizes_are(self, sizes: list[int], rate: int) -> None:
        plan, settings, now, total = running(), replace(ON, rate=rate), NOW, 0
        for size in sizes:
            while rest := plan.rest(now, settings, is_held=False):
                now += rest
            # All before the newest has been rested for, up to what is saved up.
            assert total / rate - 0.005 <= now - NOW + 1e-6
            plan.read(now, size, settings)
            total += size


class TestInterruptions:
    def test_after_a_scan_broke_off_the_next_one_goes_on_where_it_was(self) -> None:
        plan = running()
        for _ in range(3):
            assert plan.told()
            plan.done()
        assert plan.told()
        plan.scan_failed(NOW)
        assert [plan.told() for _ in range(5)] == [False, False, False, True, True]

    def test_a_new_pass_begins_at_the_beginning(self) -> None:
        plan = running()
        plan.told()
        plan.done()
        plan.begin(NOW, asked=False)
        assert plan.told()

    def test_an_object_is_tried_a_few_times_and_then_passed_over(self) -> None:
        plan = running()
        plan.told()
        assert [plan.failed(NOW) for _ in range(ATTEMPTS)] == [True] * (ATTEMPTS - 1) + [False]
        plan.scan_failed(NOW)
        assert not plan.told()
        assert plan.told()
        assert plan.failed(NOW)

    def test_the_rests_after_failures_grow_and_have_a_bound(self) -> None:
        plan, now, waits = running(), NOW, []
        for _ in range(2000):
            plan.failed(now)
            began = now
            while rest := plan.rest(now, ON, is_held=False):
                now += rest
            waits.append(now - began)
        assert waits[:3] == pytest.approx([FIRST_WAIT, 2 * FIRST_WAIT, 4 * FIRST_WAIT])
        assert waits[-1] == pytest.approx(LONGEST_WAIT)

    def test_a_success_makes_them_short_again(self) -> None:
        plan = running()
        for _ in range(5):
            plan.failed(NOW)
        plan.done()
        plan.scan_failed(NOW)
        assert plan.rest(NOW, ON, is_held=False) == FIRST_WAIT
