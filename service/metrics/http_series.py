"""What the HTTP API counts of itself, as metrics."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import Metric

from service.http_metrics import HttpReport
from service.metrics.families import counters, gauge, histograms


def http_series(report: HttpReport) -> Iterator[Metric]:
    """Requests by operation."""
    yield counters(
        "kvkeep_http_requests_total",
        "HTTP requests answered, by operation and status.",
        ["operation", "status"],
        (([operation, str(status)], count) for (operation, status), count in report.requests.items()),
    )
    yield histograms(
        "kvkeep_http_request_duration_seconds",
        "Time that an HTTP request took, by operation.",
        ["operation"],
        (([operation], seconds) for operation, seconds in report.seconds.items()),
    )
    yield gauge(
        "kvkeep_http_requests_in_flight",
        "HTTP requests under way when these numbers were taken, the one that asked for them among them.",
        report.in_flight,
    )
