"""What the monitor tells: which checks pass, and which loops show signs of life. Frozen and pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Affects = Literal["liveness", "readiness"]
"""`liveness`: a restart cures what fails, and nothing is served until then. `readiness`: a restart would not help."""


@dataclass(frozen=True, slots=True)
class CheckReport:
    """One check as it stands now."""

    name: str
    ok: bool
    detail: str | None
    """Why it fails; None while it passes."""
    latency_seconds: float | None
    """How long its newest answer took; None where nothing is asked, only looked at, or nothing was answered yet."""
    age_seconds: float | None
    """How long ago the newest sign of life was given; None if there was none yet."""
    affects: Affects

    def __str__(self) -> str:
        return f"{self.name}: {self.detail or 'ok'}"


@dataclass(frozen=True, slots=True)
class LoopReport:
    """One of the engine's own threads."""

    name: str
    beat_age_seconds: float
    restarts: int
    """How often it went on after a defect; a thread that cannot go on ends, and its check says so."""


@dataclass(frozen=True, slots=True)
class MonitorReport:
    """Every check and every loop."""

    checks: tuple[CheckReport, ...]
    loops: tuple[LoopReport, ...]

    def failing(self, *, liveness_only: bool) -> tuple[CheckReport, ...]:
        """The checks that fail. A liveness check affects readiness too, a readiness check nothing else."""
        return tuple(
            check for check in self.checks if not check.ok and (check.affects == "liveness" or not liveness_only)
        )
