"""Histograms: each duration in the bucket of the smallest bound that it does not pass."""

from __future__ import annotations

import pytest

from engine import Histogram, HistogramReport


def counted(*durations: float) -> HistogramReport:
    histogram = Histogram([0.1, 1.0])
    for seconds in durations:
        histogram.observe(seconds)
    return histogram.snapshot()


@pytest.mark.parametrize(
    ("seconds", "counts"),
    [
        (0.0, (1, 0, 0)),
        (0.1, (1, 0, 0)),
        (0.1000001, (0, 1, 0)),
        (1.0, (0, 1, 0)),
        (1.0000001, (0, 0, 1)),
        (1e9, (0, 0, 1)),
    ],
)
def test_a_bound_belongs_to_its_own_bucket(seconds: float, counts: tuple[int, ...]) -> None:
    assert counted(seconds).counts == counts


def test_everything_is_summed_up() -> None:
    assert counted(0.25, 0.5, 4.0) == HistogramReport((0.1, 1.0), (0, 2, 1), 4.75)
    assert counted(0.25, 0.5, 4.0).total == 3
    assert counted().total == 0


def test_a_snapshot_stays_as_it_is() -> None:
    histogram = Histogram([1.0])
    before = histogram.snapshot()
    histogram.observe(0.5)
    assert (before.counts, before.sum) == ((0, 0), 0.0)
    assert histogram.snapshot().counts == (1, 0)


def test_nothing_new_is_no_new_snapshot() -> None:
    histogram = Histogram([1.0])
    histogram.observe(0.5)
    assert histogram.snapshot() is histogram.snapshot()
