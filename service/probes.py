"""What a probe answers, from the phase of the process and the engine's checks. Pure."""

from __future__ import annotations

from typing import Any

from engine import CheckReport, MonitorReport
from service.lifecycle import State
from service.loop_view import loop_bodies

Problems = tuple[str, ...]
"""What is wrong, each with the name of its check or phase; empty if a probe passes."""


def live(state: State, report: MonitorReport) -> Problems:
    """Fails for what a restart cures. A start takes as long as it takes, and who stops needs no restart."""
    match state.phase:
        case "failed":
            return (f"failed: {state.failure}",)
        case "running":
            return tuple(str(check) for check in report.failing(liveness_only=True))
    return ()


def ready(state: State, report: MonitorReport) -> Problems:
    """Fails whenever requests should go elsewhere."""
    if state.phase == "running":
        return tuple(str(check) for check in report.failing(liveness_only=False))
    return (f"{state.phase}: {state.failure or state.reason}",)


def details(state: State, report: MonitorReport) -> dict[str, Any]:
    """What `verbose` adds to an answer: the phase, every check, and every loop."""
    return {
        "phase": state.phase,
        "failure": state.failure,
        "l1_allocated_ratio": state.l1.ratio,
        "l1_bytes_per_second": state.l1.bytes_per_second,
        "l1_seconds_left": state.l1.seconds_left,
        "checks": [_check(check) for check in report.checks],
        "loops": loop_bodies(report.loops),
    }


def _check(check: CheckReport) -> dict[str, Any]:
    return {
        "name": check.name,
        "status": "ok" if check.ok else "failing",
        "affects": check.affects,
        "detail": check.detail,
        "latency_seconds": check.latency_seconds,
        "age_seconds": check.age_seconds,
    }
