"""The tiers of L2 as the API shows them. Pure; the field names are the contract."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from engine import L2Report, ScrubReport, TierReport


def tier_body(report: L2Report) -> dict[str, Any]:
    """One tier, in the status and by itself."""
    tier = report.tier
    loads, saves = dict(tier.loads), dict(tier.saves)
    return {
        "name": report.name,
        "type": report.type,
        "is_healthy": report.is_healthy,
        "state": tier.state,
        "problem": tier.problem,
        "is_paused": report.is_paused,
        "is_required": report.is_required,
        "store_policy": report.store_policy,
        "capacity_bytes": report.capacity_bytes,
        "used_bytes": tier.used_bytes,
        "used_objects": tier.used_objects,
        "waiting_loads": tier.waiting_loads,
        "waiting_saves": tier.waiting_saves,
        "loaded_objects": report.loaded_objects,
        "loaded_bytes": tier.loaded_bytes,
        "saved_objects": saves.get("done", 0),
        "saved_bytes": tier.saved_bytes,
        "loads": loads,
        "saves": saves,
        "dropped_saves": report.dropped_saves,
        "unsaved_evictions": report.unsaved_evictions,
        "found_objects": tier.found_objects,
        "absent_objects": tier.absent_objects,
        "retries": tier.retries,
        "work": tier.work,
        "work_done": tier.work_done,
        "scrub": _scrub_body(tier.scrub),
    }


def _scrub_body(scrub: ScrubReport) -> dict[str, Any]:
    return {
        "is_running": scrub.is_running,
        "held_by": scrub.held_by,
        "begun_age_seconds": scrub.begun_age_seconds,
        "ended_age_seconds": scrub.ended_age_seconds,
        "passes": scrub.passes,
        "objects": scrub.latest.objects,
        "bytes": scrub.latest.bytes,
        "damaged": scrub.latest.damaged,
        "skipped": scrub.latest.skipped,
    }


def stored_in(tiers: Iterable[TierReport]) -> dict[str, int | None]:
    """Objects and bytes of these tiers in sum, counted in each tier that has them; None where one does not tell."""
    used = [(tier.used_objects, tier.used_bytes) for tier in tiers]
    return {"objects": _sum(objects for objects, _ in used), "bytes": _sum(size for _, size in used)}


def _sum(numbers: Iterable[int | None]) -> int | None:
    total = 0
    for number in numbers:
        if number is None:
            return None
        total += number
    return total
