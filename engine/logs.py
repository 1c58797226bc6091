"""Warnings that a client can cause, so that no client can fill the disk with them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

_LINES: Final = 20
_SECONDS: Final = 10.0
_LONGEST: Final = 1000
"""Characters of one warning: it may quote what a client has sent."""


class WarningBudget:
    """Logs at most 20 warnings in 10 seconds, and then how many were left out. Belongs to one thread.

    A long warning is cut.
    """

    def __init__(self, logger: logging.Logger, clock: Callable[[], float], level: int = logging.WARNING) -> None:
        self._logger = logger
        self._level = level
        self._clock = clock
        self._since = clock()
        self._lines = 0

    def __call__(self, text: str, *, exc_info: bool = False) -> None:
        """`exc_info`: add the exception that is being handled."""
        now = self._clock()
        if now - self._since > _SECONDS:
            if self._lines > _LINES:
                self._logger.warning("%d more warnings were left out", self._lines - _LINES)
            self._since, self._lines = now, 0
        self._lines += 1
        if self._lines <= _LINES:
            shown = text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
            self._logger.log(self._level, "%s", shown, exc_info=exc_info)
