"""What operators ask of the engine while it runs. Each is carried out on the engine thread, between two requests."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ClearAll:
    """Make everything in L1 invisible at once. Answered with a `Cleared`."""


@dataclass(frozen=True, slots=True)
class Drain:
    """Begin nothing new, since the server is about to stop: lookups find nothing, and stores are skipped as done.

    What lookups have promised before is still retrieved. Answered with None.
    """


Command = ClearAll | Drain
