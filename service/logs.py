"""The log: where its lines go, how they look, and which are written.

Every line made while a request is served carries the request's id. Lines for people hold no control characters, so
that no text of a client can pass for a line of its own.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final, TextIO

LEVELS: Final = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
ROOT: Final = "root"
LOGGERS: Final = (ROOT, "kvkeep", "engine", "waitress")
"""Whose level can be changed; the root's holds for all that have none of their own."""

current_request: Final[ContextVar[str | None]] = ContextVar("current_request", default=None)
"""The id of the request that this thread serves."""


class Logs:
    """The levels in force, and the handler that writes.

    A logger has a level of its own only while that differs from the root's. Every method may be called from any thread.
    """

    def __init__(self, level: str = "info") -> None:
        """Changes nothing yet: the levels take effect with the first change, or while the log is written."""
        self._level = level
        self._own: dict[str, str] = {}
        self._lock = threading.Lock()

    @property
    def level(self) -> str:
        """The root's level."""
        return self._level

    @property
    def own_levels(self) -> dict[str, str]:
        """The levels of the loggers that differ from the root's."""
        return dict(self._own)

    def change(self, level: str, logger: str = ROOT) -> str:
        """Sets the level of one of LOGGERS and returns the one it had."""
        with self._lock:
            old = self._own.get(logger, self._level)
            own = {**self._own, logger: level}
            self._level = own.pop(ROOT, self._level)
            self._own = {name: each for name, each in own.items() if each != self._level}
            self._apply()
        return old

    @contextmanager
    def written(self, stream: TextIO, style: str) -> Iterator[None]:
        """Writes the log to a stream for the length of a block; `style` is auto, human or json.

        After it everything about logging is as it was before.
        """
        before = {name: _logger(name).level for name in LOGGERS}
        handler = logging.StreamHandler(stream)
        handler.addFilter(_add_request_id)
        handler.setFormatter(_formatter(style, stream.isatty()))
        logging.getLogger().addHandler(handler)
        with self._lock:
            self._apply()
        try:
            yield
        finally:
            logging.getLogger().removeHandler(handler)
            for name, level in before.items():
                _logger(name).setLevel(level)

    def _apply(self) -> None:
        for name in LOGGERS:
            level = self._level if name == ROOT else self._own.get(name)
            _logger(name).setLevel(LEVELS[level] if level else logging.NOTSET)


class HumanFormatter(logging.Formatter):
    """One line for each record. The lines of a traceback are indented, so that none looks like a record."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, and below it where an exception came from."""
        request = getattr(record, "request_id", None)
        place = f" [request {request}]" if request else ""
        line = f"{self.formatTime(record)} {record.levelname} {record.name}: {record.getMessage()}{place}"
        return "\n    ".join(escaped(each) for each in [line, *self._trace(record)])

    def _trace(self, record: logging.LogRecord) -> list[str]:
        trace = self.formatException(record.exc_info) if record.exc_info else ""
        # NOTE: At line feeds only: splitlines() would also take the separators that escaped() is to make visible.
        return [line for line in trace.split("\n") if line]


def escaped(text: str) -> str:
    """A text with what is no printable character made visible: a line feed as `\\n`."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def _logger(name: str) -> logging.Logger:
    return logging.getLogger(None if name == ROOT else name)


def _formatter(style: str, is_terminal: bool) -> logging.Formatter:
    is_human = style == "human" or (style == "auto" and is_terminal)
    return HumanFormatter() if is_human else _json_formatter()


def _json_formatter() -> logging.Formatter:
    # PERF: Imported only where it is used, since a start has less than a second.
    from pythonjsonlogger.json import JsonFormatter

    names = {"asctime": "timestamp", "levelname": "level", "name": "logger", "exc_info": "exception"}
    formatter = JsonFormatter(["asctime", "levelname", "name", "message"], rename_fields=names)
    formatter.converter = time.gmtime
    formatter.default_time_format = "%Y-%m-%dT%H:%M:%S"
    formatter.default_msec_format = "%s.%03dZ"
    return formatter


def _add_request_id(record: logging.LogRecord) -> bool:
    """Runs in the thread that logs. A line outside of requests has no id at all."""
    request = current_request.get()
    if request is not None:
        record.request_id = request
    return True
