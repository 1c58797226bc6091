"""Counts and times of what a tier does."""

from __future__ import annotations

import threading
from collections import Counter
from typing import Final, Literal, get_args

from engine.histogram import Histogram
from engine.meters import TIER_BOUNDS
from engine.status import TierOutcome

OUTCOMES: Final[tuple[TierOutcome, ...]] = get_args(TierOutcome)

Direction = Literal["load", "save"]


class Metering:
    """May be used from any thread."""

    def __init__(self) -> None:
        self.lock: Final = threading.Lock()
        """Held while anything is counted, and to be held while it is read."""
        self.outcomes: dict[Direction, Counter[TierOutcome]] = {
            direction: Counter(dict.fromkeys(OUTCOMES, 0)) for direction in ("load", "save")
        }
        self.bytes: dict[Direction, int] = {"load": 0, "save": 0}
        self.seconds = {name: Histogram(TIER_BOUNDS) for name in ("load", "save", "find")}
        self.found_objects = 0
        self.absent_objects = 0
        self.retries = 0
        self.version = 0
        """Grows whenever something is counted."""

    def moved(self, direction: Direction, size: int, seconds: float) -> None:
        """An object of so many bytes was loaded or saved."""
        with self.lock:
            self.bytes[direction] += size
            self.seconds[direction].observe(seconds)
            self.version += 1

    def ended(self, direction: Direction, outcome: TierOutcome) -> None:
        """A load or save has ended."""
        with self.lock:
            self.outcomes[direction][outcome] += 1
            self.version += 1

    def looked(self, found: int, absent: int, seconds: float) -> None:
        """So many objects were asked for at once."""
        with self.lock:
            self.found_objects += found
            self.absent_objects += absent
            self.seconds["find"].observe(seconds)
            self.version += 1

    def retried(self) -> None:
        with self.lock:
            self.retries += 1
            self.version += 1
