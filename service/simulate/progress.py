"""How far a long run is, on a terminal."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from typing import TextIO

_PATIENCE = 1.0
"""Seconds without a bar: who waits no longer than that needs none."""
_INTERVAL = 0.1
"""Seconds between two drawings."""
_WIDTH = 24
"""Characters of the bar itself."""


class Progress:
    """One line with what is being done, how far all of it is, and how long it will still take.

    Nothing is written if the stream is no terminal.
    """

    def __init__(self, stream: TextIO, total: int, clock: Callable[[], float] = time.monotonic) -> None:
        """`total`: the steps of all work together. `clock` tells seconds."""
        self._stream = stream if stream.isatty() else None
        self._total = total
        self._clock = clock
        self._label = ""
        self._done = 0
        self._began = clock()
        self._draw_at = self._began + _PATIENCE
        self._is_drawn = False

    def begin(self, label: str) -> None:
        """Says what the next steps are for."""
        self._label = label

    def advance(self, steps: int) -> None:
        """So much more is done."""
        self._done += steps
        if self._stream is not None:
            now = self._clock()
            if now >= self._draw_at:
                self._draw_at = now + _INTERVAL
                self._draw(self._stream, now - self._began)

    def close(self) -> None:
        """Leaves the line empty, so that something else can be written there; the next step may draw it again."""
        if self._is_drawn and self._stream is not None:
            self._stream.write("\r\x1b[K")
            self._stream.flush()
            self._is_drawn = False

    def _draw(self, stream: TextIO, elapsed: float) -> None:
        part = self._done / self._total
        left = elapsed * (1 - part) / part if part else 0.0
        line = f"{_bar(part)} {100 * part:3.0f} %  {_duration(left)} left  {self._label}"
        stream.write(f"\r{line[: shutil.get_terminal_size().columns - 1]}\x1b[K")
        stream.flush()
        self._is_drawn = True


def _bar(part: float) -> str:
    full = round(_WIDTH * part)
    return f"[{'#' * full}{'.' * (_WIDTH - full)}]"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02} min" if minutes else f"{rest:2} s"
