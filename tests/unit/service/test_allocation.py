"""What the log, the probes and systemd are told while L1 is allocated."""

from __future__ import annotations

import pytest

from engine import GIB
from service.allocation import Allocation, StartProgress, StoppedError

STEP = GIB // 4


class Watched:
    """The allocation of an L1, a piece at a time, on a clock of its own."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.now = 100.0
        self.is_stopping = False
        self.told: list[Allocation] = []
        self.notified: list[str] = []
        self.progress = StartProgress(
            size, lambda: self.is_stopping, self.told.append, self.notified.append, lambda: self.now
        )

    def run(self, seconds_each: float, until: int | None = None) -> None:
        for done in range(STEP, (until or self.size) + 1, STEP):
            self.progress(done)
            self.now += seconds_each


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


@pytest.fixture(autouse=True)
def _info(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")


def test_a_long_one_has_a_line_every_few_seconds_and_one_at_its_end(caplog: pytest.LogCaptureFixture) -> None:
    watched = Watched(100 * GIB)
    watched.run(0.25)
    found = lines(caplog)
    assert len(found) == 20
    assert found[0] == "L1: 5 % allocated, 5.2 of 100.0 GiB, 1.0 GiB/s, 1 min 35 s left"
    assert found[10] == "L1: 55 % allocated, 55.2 of 100.0 GiB, 1.0 GiB/s, 45 s left"
    assert found[-1] == "L1: 100 % allocated, 100.0 of 100.0 GiB, 1.0 GiB/s, 0 s left"


def test_a_short_one_has_a_line_at_its_end_only(caplog: pytest.LogCaptureFixture) -> None:
    Watched(GIB).run(0.5)
    assert lines(caplog) == ["L1: 100 % allocated, 1.0 of 1.0 GiB, 0.5 GiB/s, 0 s left"]


def test_one_of_a_single_piece_has_no_speed(caplog: pytest.LogCaptureFixture) -> None:
    watched = Watched(STEP)
    watched.run(1.0)
    assert lines(caplog) == ["L1: 100 % allocated, 0.2 of 0.2 GiB"]
    assert watched.told == [Allocation(1.0)]


def test_systemd_is_told_on_the_way_only(caplog: pytest.LogCaptureFixture) -> None:
    watched = Watched(10 * GIB)
    watched.run(1.0)
    assert watched.notified == lines(caplog)[:-1]
    assert len(watched.notified) == 7


def test_probes_are_told_every_piece() -> None:
    watched = Watched(2 * GIB)
    watched.run(0.5, until=GIB)
    assert watched.told == [
        Allocation(0.125),
        Allocation(0.25, STEP / 0.5, 3.0),
        Allocation(0.375, STEP / 0.5, 2.5),
        Allocation(0.5, STEP / 0.5, 2.0),
    ]


def test_a_clock_that_stands_still_is_no_speed() -> None:
    watched = Watched(GIB)
    watched.run(0.0)
    assert watched.told[-1] == Allocation(1.0)


def test_a_stop_ends_it() -> None:
    watched = Watched(GIB)
    watched.is_stopping = True
    with pytest.raises(StoppedError):
        watched.progress(STEP)
    assert watched.told == []
