"""Threads and periodic jobs as the API shows them. Pure; the field names are the contract."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from engine import LoopReport


def loop_bodies(loops: Sequence[LoopReport]) -> list[dict[str, Any]]:
    """How each of them does."""
    return [
        {
            "name": loop.name,
            "state": loop.state,
            "beat_age_seconds": loop.beat_age_seconds,
            "exceptions": loop.exceptions,
            "restarts": loop.restarts,
            "problem": loop.problem,
        }
        for loop in loops
    ]
