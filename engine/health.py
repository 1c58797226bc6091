"""What the monitor tells: which checks pass, and which loops show signs of life. Frozen and pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

Affects = Literal["liveness", "readiness"]
"""`liveness`: a restart cures what fails, and nothing is served until then. `readiness`: a restart would not help."""

PERIODIC_JOBS: Final = ("leases", "reservations", "pins", "workers", "jobs", "write_back")
"""What the engine thread does every second, in this order."""

ThreadState = Literal["running", "restarting", "failed", "ended"]
"""`restarting`: it has met a defect, and is begun again after a while. `failed`: given up. `ended`: by itself."""


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
    """One thread, or one job that the engine thread does every second."""

    name: str
    beat_age_seconds: float
    """How long ago it last showed that it is alive; 0 while it waits for something to do."""
    restarts: int
    """How often it was begun again after a defect."""
    exceptions: int = 0
    """Defects that it has met."""
    state: ThreadState = "running"
    problem: str | None = None
    """Kind of the newest defect; None if there was none."""


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
