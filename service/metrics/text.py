"""The text format of Prometheus: one string for each metric, with its help, its type and all of its series.

PERF: The client library checks every name and label again for every line. A thousand lines take it 13 ms of Python,
during which the engine thread waits for the interpreter again and again; here they take 1 ms. The tests hold what is
written here against that library.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate

from engine import HistogramReport

Labelled = Iterable[tuple[Sequence[str], float]]
"""Label values and the value of each series."""


def gauge(name: str, description: str, value: float) -> str:
    """One number that goes up and down."""
    return f"{_head(name, description, 'gauge')}{name} {_number(value)}\n"


def gauges(name: str, description: str, labels: Sequence[str], series: Labelled) -> str:
    """Numbers that go up and down, by label."""
    return _head(name, description, "gauge") + _lines(name, labels, series)


def counter(name: str, description: str, value: float) -> str:
    """One number that only goes up; its name ends in `_total`."""
    return f"{_head(name, description, 'counter')}{name} {_number(value)}\n"


def counters(name: str, description: str, labels: Sequence[str], series: Labelled) -> str:
    """Numbers that only go up, by label; their name ends in `_total`."""
    return _head(name, description, "counter") + _lines(name, labels, series)


def histogram(name: str, description: str, report: HistogramReport) -> str:
    """Durations."""
    return _head(name, description, "histogram") + _buckets(name, "", report)


def histograms(
    name: str, description: str, labels: Sequence[str], series: Iterable[tuple[Sequence[str], HistogramReport]]
) -> str:
    """Durations, by label."""
    parts = (_buckets(name, _labels(labels, values), report) for values, report in series)
    return _head(name, description, "histogram") + "".join(parts)


def _head(name: str, description: str, kind: str) -> str:
    return f"# HELP {name} {description}\n# TYPE {name} {kind}\n"


def _lines(name: str, labels: Sequence[str], series: Labelled) -> str:
    return "".join([f"{name}{{{_labels(labels, values)}}} {_number(value)}\n" for values, value in series])


def _buckets(name: str, labels: str, report: HistogramReport) -> str:
    """Each upper bound with all that does not pass it, then how many there are, and their sum."""
    before, braces = (f"{labels},", f"{{{labels}}}") if labels else ("", "")
    counts = list(accumulate(report.counts))
    lines = [
        f'{name}_bucket{{{before}le="{bound}"}} {count}\n'
        for bound, count in zip([*report.bounds, "+Inf"], counts, strict=True)
    ]
    return "".join(lines) + f"{name}_count{braces} {counts[-1]}\n{name}_sum{braces} {_number(report.sum)}\n"


def _labels(names: Sequence[str], values: Sequence[str]) -> str:
    return ",".join([f'{name}="{_escaped(value)}"' for name, value in zip(names, values, strict=True)])


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def _number(value: float) -> str:
    # NOTE: A truth counts as 1 or 0.
    return repr(value + 0)
