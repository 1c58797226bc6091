"""The recorder: writes what lookups ask for to files, as long as it is told to and the disk takes it."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Final

from engine.background import Background
from engine.errors import EngineTimeoutError, RecordingError
from engine.feed import Feed
from engine.recording.files import TraceFiles
from engine.recording.lines import KEY_BYTES, TraceLines
from engine.recording.report import RecordingReport
from engine.settings import RecordingSettings
from engine.supervision import Supervisor
from engine.traffic import Prompt

logger = logging.getLogger(__name__)

_SHARE: Final = 0.25
"""Part of the time that it takes at most: hashing keeps the interpreter from the engine thread."""
_PART_SECONDS: Final = 0.001
_IDLE_SECONDS: Final = 0.1
_SWITCH_SECONDS: Final = 10.0


@dataclass(slots=True)
class _Recording:
    """One under way."""

    lines: TraceLines
    files: TraceFiles
    dropped_before: int
    """What the feed had dropped when it began."""


class Recorder:
    """The thread `recorder`. The methods may be called from any thread."""

    def __init__(
        self,
        feed: Feed[Prompt],
        settings: RecordingSettings,
        chunk_size: int,
        clock: Callable[[], float],
        supervisor: Supervisor | None = None,
    ) -> None:
        self._feed = feed
        self._settings = settings
        self._chunk_size = chunk_size
        self._clock = clock
        self._switches: SimpleQueue[tuple[bool, Future[None]]] = SimpleQueue()
        self._recording: _Recording | None = None
        """Of the thread."""
        self.thread: Final = Background("recorder", self._work, self._end, supervisor=supervisor)
        self.report = RecordingReport(False, settings.folder)
        """The newest one. Replaced as a whole, by the thread."""

    def switch(self, enabled: bool) -> None:
        """Begins a recording, or ends the one under way with what was looked up before; returns when that is done.

        Raises RecordingError, with nothing begun, or EngineTimeoutError, after which it may still be done.
        """
        done = Future[None]()
        self._switches.put((enabled, done))
        self.thread.wake()
        try:
            done.result(_SWITCH_SECONDS)
        except TimeoutError:
            raise EngineTimeoutError(f"the recorder did not answer within {_SWITCH_SECONDS:g} seconds") from None

    def _work(self) -> float:
        began = self._clock()
        self._take_switches()
        is_idle = self._record_until(began + _PART_SECONDS)
        worked = self._clock() - began
        return max(_IDLE_SECONDS if is_idle else 0.0, worked / _SHARE)

    def _take_switches(self) -> None:
        while True:
            try:
                enabled, done = self._switches.get_nowait()
            except Empty:
                return
            try:
                if enabled and self._recording is None:
                    self._begin()
                elif not enabled:
                    self._end()
            except RecordingError as error:
                self.report = replace(self.report, problem=str(error))
                done.set_exception(error)
            except BaseException as error:
                done.set_exception(RecordingError(f"a defect: {type(error).__name__}"))
                raise
            else:
                done.set_result(None)

    def _begin(self) -> None:
        """Raises RecordingError."""
        folder, settings = self._settings.folder, self._settings
        if folder is None:
            raise RecordingError("no folder is configured for recordings: set recording.folder, which needs a restart")
        try:
            files = TraceFiles(Path(folder), datetime.now(UTC), settings.max_file_size, settings.max_files)
        except OSError as error:
            raise RecordingError(f"recordings cannot be written to {folder}: {error.strerror}") from None
        lines = TraceLines(os.urandom(KEY_BYTES), self._chunk_size, self._clock())
        self._recording = _Recording(lines, files, self._feed.dropped_items)
        self.report = RecordingReport(True, folder, files.path.name)
        self._feed.is_open = True

    def _end(self) -> None:
        """Writes what is left, and closes the file."""
        self._feed.is_open = False
        self._record_until(self._clock() + _SWITCH_SECONDS / 2)
        self._stop(None)

    def _record_until(self, end: float) -> bool:
        """Records until a time; returns True if there is nothing left to record."""
        recording = self._recording
        while (prompt := self._feed.take()) is not None:
            if recording is None:
                continue
            if not self._write(recording, prompt):
                return True
            if self._clock() >= end:
                return False
        return True

    def _write(self, recording: _Recording, prompt: Prompt) -> bool:
        """False if that has ended the recording."""
        line, files, report = recording.lines.line(prompt), recording.files, self.report
        lost = line is None or len(line) > files.max_file_size
        try:
            if line is not None and not lost:
                files.write(line)
                report = replace(report, lines=report.lines + 1, bytes=report.bytes + len(line))
        except OSError as error:
            self._stop(f"{files.path} could not be written: {error.strerror}")
            return False
        recording.dropped_before -= lost
        dropped = self._feed.dropped_items - recording.dropped_before
        self.report = replace(report, file=files.path.name, dropped=dropped)
        return True

    def _stop(self, problem: str | None) -> None:
        self._feed.is_open = False
        recording, self._recording = self._recording, None
        if recording is None:
            return
        recording.files.close()
        self.report = replace(self.report, is_enabled=False, file=None, problem=problem)
        if problem is not None:
            logger.error("the recording has ended: %s", problem)
