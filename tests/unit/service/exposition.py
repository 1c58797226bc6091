"""Reading an exposition strictly: as the client library does, and by the rules of OpenMetrics."""

from __future__ import annotations

import re
from collections import Counter

from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from engine import StatusReport
from service import assets, metrics
from service.configuration import ReloadReport
from service.document import Document
from service.http_metrics import HttpMetrics

DOCUMENT = Document.load(assets.openapi_path())
RELOAD = ReloadReport(1.0, "start", "applied", "read at the start")

Key = tuple[str, tuple[tuple[str, str], ...]]
"""A series: its name and its labels, sorted."""


def http_metrics() -> HttpMetrics:
    """Those of an API that nobody has asked anything yet."""
    made = HttpMetrics()
    made.expect(DOCUMENT)
    return made


def exposition(report: StatusReport | None, http: HttpMetrics | None = None, **more: object) -> str:
    """The text as the API gives it."""
    sources = metrics.Sources(report, (http or http_metrics()).report(), RELOAD, **more)  # type: ignore[arg-type]
    return metrics.exposition(sources).decode()


def families(text: str) -> dict[str, Metric]:
    """By name; refuses what the strict parser refuses, which knows a counter by its name without `_total`."""
    strict = re.sub(r"^(# (?:HELP|TYPE) \w+)_total (?=.*)", r"\1 ", text, flags=re.MULTILINE) + "# EOF\n"
    list(openmetrics.text_string_to_metric_families(strict))
    found = list(text_string_to_metric_families(text))
    repeated = [name for name, count in Counter(family.name for family in found).items() if count > 1]
    assert not repeated, f"more than one family is called {repeated}"
    return {family.name: family for family in found}


def samples(text: str) -> dict[Key, float]:
    """Values by series; refuses a series that is there twice."""
    found = [sample for family in families(text).values() for sample in family.samples]
    series = {(sample.name, tuple(sorted(sample.labels.items()))): sample.value for sample in found}
    assert len(series) == len(found), "a series is there twice"
    return series


def value(text: str, name: str, **labels: str) -> float:
    """The value of one series."""
    return samples(text)[name, tuple(sorted(labels.items()))]
