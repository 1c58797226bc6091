"""What the recorder tells: frozen, and complete without it. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RecordingReport:
    """One moment of the recorder; the counts are those of the recording under way, or else of the last one."""

    is_enabled: bool
    folder: str | None
    file: str | None = None
    """The file being written; None if none is."""
    lines: int = 0
    bytes: int = 0
    dropped: int = 0
    """Lookups that are not in it: they came faster than they could be written, or were too long for a file."""
    problem: str | None = None
    """Why the recording could not begin, or has ended by itself."""
