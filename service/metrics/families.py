"""The kinds of metrics, each made of a report's numbers. Names, types and the text are the client library's."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from engine import HistogramReport

Labelled = Iterable[tuple[Sequence[str], float]]
"""Label values and the value of each series."""


def gauge(name: str, description: str, value: float) -> Metric:
    """One number that goes up and down."""
    return GaugeMetricFamily(name, description, value=value)


def gauges(name: str, description: str, labels: Sequence[str], series: Labelled) -> Metric:
    """Numbers that go up and down, by label."""
    family = GaugeMetricFamily(name, description, labels=labels)
    for values, value in series:
        family.add_metric(values, value)
    return family


def counter(name: str, description: str, value: float) -> Metric:
    """One number that only goes up; its name ends in `_total`."""
    return CounterMetricFamily(name, description, value=value)


def counters(name: str, description: str, labels: Sequence[str], series: Labelled) -> Metric:
    """Numbers that only go up, by label; their name ends in `_total`."""
    family = CounterMetricFamily(name, description, labels=labels)
    for values, value in series:
        family.add_metric(values, value)
    return family


def histogram(name: str, description: str, report: HistogramReport) -> Metric:
    """Durations."""
    return HistogramMetricFamily(name, description, buckets=_buckets(report), sum_value=report.sum)


def histograms(
    name: str, description: str, labels: Sequence[str], series: Iterable[tuple[Sequence[str], HistogramReport]]
) -> Metric:
    """Durations, by label."""
    family = HistogramMetricFamily(name, description, labels=labels)
    for values, report in series:
        family.add_metric(values, buckets=_buckets(report), sum_value=report.sum)
    return family


def _buckets(report: HistogramReport) -> list[tuple[str, float]]:
    """Each upper bound with all that does not pass it."""
    bounds = [*map(str, report.bounds), "+Inf"]
    return [(bound, float(count)) for bound, count in zip(bounds, accumulate(report.counts), strict=True)]
