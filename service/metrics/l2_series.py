"""What the tiers of L2 do, as metrics. A tier that is configured has all of its series before it is there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final

from prometheus_client.core import Metric

from engine import L2Report, L2Settings, empty_tier
from service.metrics.families import counter, counters, gauge, gauges, histograms

Number = Callable[[L2Report], float | None]
"""Of a tier; None if it is not known."""

_TIER: Final = ("tier",)

_GAUGES: Final[tuple[tuple[str, str, Number], ...]] = (
    (
        "kvkeep_l2_up",
        "1 while a tier of L2 works; 0 as long as its storage fails or was not reached yet.",
        lambda each: each.is_healthy,
    ),
    (
        "kvkeep_l2_paused",
        "1 while nothing is asked of a tier of L2, by an operator's wish.",
        lambda each: each.is_paused,
    ),
    (
        "kvkeep_l2_capacity_bytes",
        "Bytes that a tier of L2 may hold, as configured; 0 stands for no limit of its own.",
        lambda each: each.capacity_bytes,
    ),
    (
        "kvkeep_l2_used_bytes",
        "Bytes in a tier of L2, of all servers that share it; 0 where the storage does not tell.",
        lambda each: each.tier.used_bytes,
    ),
    (
        "kvkeep_l2_used_objects",
        "Objects in a tier of L2, of all servers that share it; 0 where the storage does not tell.",
        lambda each: each.tier.used_objects,
    ),
    (
        "kvkeep_l2_scrub_running",
        "1 while all objects of a tier of L2 are being checked.",
        lambda each: each.tier.scrub.is_running,
    ),
)

_COUNTERS: Final[tuple[tuple[str, str, Number], ...]] = (
    ("kvkeep_l2_loaded_bytes_total", "Bytes loaded from a tier of L2.", lambda each: each.tier.loaded_bytes),
    ("kvkeep_l2_saved_bytes_total", "Bytes saved to a tier of L2.", lambda each: each.tier.saved_bytes),
    (
        "kvkeep_l2_found_objects_total",
        "Objects that a tier of L2 was asked for and that it has.",
        lambda each: each.tier.found_objects,
    ),
    (
        "kvkeep_l2_absent_objects_total",
        "Objects that a tier of L2 was asked for and that it does not have.",
        lambda each: each.tier.absent_objects,
    ),
    (
        "kvkeep_l2_dropped_saves_total",
        "Objects not saved to a tier of L2 since too much was waiting.",
        lambda each: each.dropped_saves,
    ),
    (
        "kvkeep_l2_unsaved_evictions_total",
        "Objects that L1 evicted before they were written back to a tier of L2.",
        lambda each: each.unsaved_evictions,
    ),
    (
        "kvkeep_l2_retries_total",
        "Calls that were made again since the storage of a tier of L2 had failed.",
        lambda each: each.tier.retries,
    ),
    (
        "kvkeep_l2_scrubs_total",
        "Times that all objects of a tier of L2 were checked.",
        lambda each: each.tier.scrub.passes,
    ),
    (
        "kvkeep_l2_scrubbed_objects_total",
        "Objects in a tier of L2 that were checked without anybody wanting them.",
        lambda each: each.tier.scrub.total.objects,
    ),
    (
        "kvkeep_l2_scrubbed_bytes_total",
        "Bytes that were read for that.",
        lambda each: each.tier.scrub.total.bytes,
    ),
    (
        "kvkeep_l2_scrub_damaged_objects_total",
        "Of the objects checked, those that are not what was stored.",
        lambda each: each.tier.scrub.total.damaged,
    ),
    (
        "kvkeep_l2_scrub_skipped_objects_total",
        "Objects in a tier of L2 that could not be checked.",
        lambda each: each.tier.scrub.total.skipped,
    ),
)

_SUMS: Final[tuple[tuple[str, str, Number], ...]] = (
    (
        "lmcache_mp_l2_store_completed_objects_chunks_total",
        "Objects saved to L2.",
        lambda each: dict(each.tier.saves)["done"],
    ),
    (
        "lmcache_mp_l2_prefetch_load_completed_chunks_total",
        "Objects loaded from L2.",
        lambda each: dict(each.tier.loads)["done"],
    ),
    (
        "lmcache_mp_l2_prefetch_lookup_objects_chunks_total",
        "Objects that L2 was asked for.",
        lambda each: each.tier.found_objects + each.tier.absent_objects,
    ),
)
"""Those that LMCache has. A tier that is detached takes its part with it."""


def every_tier(reports: Sequence[L2Report], configured: Sequence[L2Settings]) -> list[L2Report]:
    """Those that there are, and those that are configured only."""
    empty = {settings.name: empty_tier(settings) for settings in configured}
    return list((empty | {report.name: report for report in reports}).values())


def l2_series(tiers: Sequence[L2Report]) -> Iterator[Metric]:
    """All of them by tier, none without a tier; and in sum where LMCache has that."""
    if tiers:
        yield from _by_tier(tiers)
    yield gauge("lmcache_mp_l2_usage_bytes", "Bytes occupied in L2.", sum(each.tier.used_bytes or 0 for each in tiers))
    for name, description, number in _SUMS:
        yield counter(name, description, sum(number(each) or 0 for each in tiers))


def _by_tier(tiers: Sequence[L2Report]) -> Iterator[Metric]:
    for name, description, number in _GAUGES:
        yield gauges(name, description, _TIER, [([each.name], number(each) or 0) for each in tiers])
    yield _waiting(tiers)
    yield _outcomes("kvkeep_l2_loads_total", "loaded from", [(each.name, each.tier.loads) for each in tiers])
    yield _outcomes("kvkeep_l2_saves_total", "saved to", [(each.name, each.tier.saves) for each in tiers])
    for name, description, number in _COUNTERS:
        yield counters(name, description, _TIER, [([each.name], number(each) or 0) for each in tiers])
    yield from _times(tiers)


def _waiting(tiers: Sequence[L2Report]) -> Metric:
    return gauges(
        "kvkeep_l2_waiting_objects",
        "Objects that are to be loaded from a tier of L2 or saved to it, those under way among them.",
        ["tier", "direction"],
        [
            ([each.name, direction], waiting)
            for each in tiers
            for direction, waiting in (("load", each.tier.waiting_loads), ("save", each.tier.waiting_saves))
        ],
    )


def _outcomes(name: str, moved: str, tiers: Sequence[tuple[str, Sequence[tuple[str, int]]]]) -> Metric:
    series = [([tier, outcome], count) for tier, counts in tiers for outcome, count in counts]
    description = f"Objects that were to be {moved} a tier of L2, by what became of them."
    return counters(name, description, ["tier", "outcome"], series)


def _times(tiers: Sequence[L2Report]) -> Iterator[Metric]:
    for name, description, report in (
        ("load", "load an object", [each.tier.load_seconds for each in tiers]),
        ("save", "save an object", [each.tier.save_seconds for each in tiers]),
        ("find", "say which objects of a prompt it has", [each.tier.find_seconds for each in tiers]),
    ):
        series = [([each.name], seconds) for each, seconds in zip(tiers, report, strict=True)]
        what = f"Time that the storage of a tier of L2 took to {description}."
        yield histograms(f"kvkeep_l2_{name}_duration_seconds", what, _TIER, series)
