"""The tiers of L2 as they are now, for resources whose answers must not be as old as the last report."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

from engine import L2Report, TierError
from service.context import Engine


def present_tiers(engine: Engine) -> list[L2Report]:
    """In the order in which they are asked. Raises EngineStoppedError.

    The status is up to a second old: who has begun a clear must not read that none is under way.
    """
    return [_present(engine, report) for report in engine.status().l2]


def _present(engine: Engine, report: L2Report) -> L2Report:
    # One that was detached since the report is shown as it was.
    with suppress(TierError):
        return replace(report, tier=engine.tier(report.name).report())
    return report
