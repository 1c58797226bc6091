"""What another size or another policy of L1 would do for the traffic that there is."""

from __future__ import annotations

from typing import Any

import falcon

from engine import AdvisorReport, Estimate
from service.context import Context, JsonObject
from service.operations import operation


class Advisor:
    """The advisor's newest report."""

    def __init__(self, context: Context) -> None:
        self._context = context

    @operation("getAdvice", 200, 503)
    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """One sentence, and what it follows from."""
        with self._context.running() as engine:
            resp.media = _body(engine.advice())


def _body(report: AdvisorReport) -> JsonObject:
    policies: dict[str, list[JsonObject]] = {}
    for each in report.estimates:
        policies.setdefault(each.policy, []).append(_estimate(each, report.sampled_references))
    return {
        "advice": report.advice,
        "enabled": report.is_enabled,
        "age_seconds": report.age,
        "eviction_policy": report.policy,
        "l1_bytes": report.l1_size,
        "measured_hit_ratio": report.measured_hit_ratio,
        "references": report.references,
        "dropped_references": report.dropped_references,
        "sample": {
            "rate": report.sample_rate,
            "references": report.sampled_references,
            "chunks": report.sampled_chunks,
        },
        "policies": [{"policy": name, "estimates": found} for name, found in policies.items()],
    }


def _estimate(each: Estimate, references: int) -> JsonObject:
    return {
        "factor": each.factor,
        "bytes": each.size,
        "hit_ratio": each.hit_ratio,
        "has_been_full": each.has_been_full,
        "references": references,
    }


def routes(context: Context) -> list[tuple[str, Any]]:
    """The advisor's route."""
    return [("/api/advisor", Advisor(context))]
