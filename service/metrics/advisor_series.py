"""What the advisor estimates, and what the recorder writes, as metrics."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import Metric

from engine import FACTORS, AdvisorReport, RecordingReport, policy_names
from service.metrics.families import counter, gauge, gauges


def advisor_series(report: AdvisorReport | None) -> Iterator[Metric]:
    """The estimates; None stands for an engine that is not there."""
    ratios = {(name, factor): 0.0 for name in policy_names() for factor in FACTORS}
    ratios |= {(each.policy, each.factor): each.hit_ratio for each in report.estimates} if report else {}
    yield gauges(
        "kvkeep_advisor_hit_ratio",
        "Estimated part of the chunks asked for that L1 would have, by policy and by size in present sizes.",
        ["policy", "factor"],
        [([name, f"{factor:g}"], ratio) for (name, factor), ratio in ratios.items()],
    )
    yield counter(
        "kvkeep_advisor_references_total",
        "Chunks that lookups asked for since the advisor began; it begins anew when the size of L1 changes.",
        report.references if report else 0,
    )
    yield counter(
        "kvkeep_advisor_dropped_references_total",
        "Object keys that the advisor had no time to look at.",
        report.dropped_references if report else 0,
    )
    yield gauge(
        "kvkeep_advisor_sampled_references",
        "References in the advisor's sample; from 10,000 on its estimates are good to two points.",
        report.sampled_references if report else 0,
    )


def recording_series(report: RecordingReport | None) -> Iterator[Metric]:
    """The recording under way, or the last one."""
    yield gauge("kvkeep_recording", "1 while the traffic is recorded.", bool(report and report.is_enabled))
    yield gauge("kvkeep_recording_lines", "Lookups in the newest recording.", report.lines if report else 0)
    yield gauge("kvkeep_recording_dropped", "Lookups that are missing in it.", report.dropped if report else 0)
