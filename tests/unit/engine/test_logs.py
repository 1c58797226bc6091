"""No client can fill the disk with warnings."""

from __future__ import annotations

import logging

import pytest

from engine.logs import WarningBudget
from tests.unit.engine.support import FakeClock


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def warn(clock: FakeClock, caplog: pytest.LogCaptureFixture) -> WarningBudget:
    caplog.set_level(logging.WARNING, "engine.test")
    return WarningBudget(logging.getLogger("engine.test"), clock)


def test_twenty_warnings_in_ten_seconds_are_logged(warn: WarningBudget, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(25):
        warn(f"warning {number}")
    assert caplog.messages == [f"warning {number}" for number in range(20)]


def test_then_it_says_how_many_were_left_out(
    warn: WarningBudget, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(25):
        warn("early")
    clock.now += 10.5
    warn("late")
    assert caplog.messages[20:] == ["5 more warnings were left out", "late"]


def test_nothing_is_said_where_nothing_was_left_out(
    warn: WarningBudget, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(3):
        for number in range(20):
            warn(f"warning {number}")
        clock.now += 10.5
    assert len(caplog.messages) == 60


def test_a_client_cannot_smuggle_formats_into_the_log(warn: WarningBudget, caplog: pytest.LogCaptureFixture) -> None:
    warn("100 %s %d")
    assert caplog.messages == ["100 %s %d"]
