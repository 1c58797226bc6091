"""The settings in force, and the one way to change them while the process runs."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

from service.access import exposures
from service.appliers import Applier, ApplyError, apply_all
from service.changes import Change, behind, differences
from service.file_state import FileState, file_state
from service.problems import ConfigError, Problem, SettingPath, dotted
from service.schema import Schema
from service.settings import Override, Setting, Settings, load_settings

Trigger = Literal["start", "request", "signal", "watch"]
Outcome = Literal["applied", "unchanged", "restart_needed", "invalid", "failed"]

log = logging.getLogger("kvkeep")


@dataclass(frozen=True, slots=True)
class ConfigSource:
    """Where the settings come from: read at the start, and again at each reload."""

    schema: Schema
    file: str | None
    overrides: tuple[Override, ...]
    environ: Mapping[str, str]

    def load(self) -> Settings:
        """The settings as they are given now. Raises ConfigError with everything that is wrong."""
        return load_settings(self.schema, self.file, self.overrides, self.environ)


@dataclass(frozen=True, slots=True)
class ReloadReport:
    """How the newest reading of the configuration ended; the one at the start counts."""

    at: float
    """Seconds since the epoch."""
    trigger: Trigger
    outcome: Outcome
    message: str

    @property
    def is_success(self) -> bool:
        """Whether what the file says is in force."""
        return self.outcome in ("applied", "unchanged")


@dataclass(frozen=True, slots=True)
class InForce:
    """One moment of the configuration."""

    settings: Settings
    report: ReloadReport
    pending: tuple[Change, ...] = ()
    """What the last reload would have changed, had it not needed a restart."""


@dataclass(frozen=True, slots=True)
class Reloaded:
    """What a reload did, or would do."""

    is_applied: bool
    changes: tuple[Change, ...]


class ReloadRefusedError(Exception):
    """Nothing was changed. One of those below, or ConfigError for a file that is wrong."""


class NoFileError(ReloadRefusedError):
    """The process was started without a file."""


class NotReadyError(ReloadRefusedError):
    """There is no running engine to change."""


class BusyError(ReloadRefusedError):
    """Another reload is under way."""


class RestartNeededError(ReloadRefusedError):
    """At least one change needs a restart; carries all changes."""

    def __init__(self, changes: Sequence[Change]) -> None:
        reasons = (f"{dotted(each.path)} {each.reason}" for each in changes if not each.is_live)
        super().__init__(f"nothing was changed, since a restart is needed: {'; '.join(reasons)}")
        self.changes = tuple(changes)


class Configuration:
    """Holds the settings in force and reloads them.

    Guarantees: reading takes no lock, and shows one moment; a reload changes all that differs or nothing; one reload
    runs at a time, on its caller's thread.
    """

    def __init__(
        self,
        source: ConfigSource,
        settings: Settings,
        seen: FileState | None = None,
        appliers: Sequence[Applier] = (),
        is_ready: Callable[[], bool] = lambda: False,
    ) -> None:
        """`seen` is the file's state when the settings were read, `is_ready` whether there is an engine to change."""
        self.schema: Final = source.schema
        self.file: Final = source.file
        self.seen = seen
        """The state of the file at the newest reading."""
        self._source = source
        self._appliers = appliers
        self._is_ready = is_ready
        self._one_at_a_time = threading.Lock()
        self._in_force = InForce(settings, ReloadReport(time.time(), "start", "applied", "read at the start"))

    @property
    def in_force(self) -> InForce:
        """The settings as they are now, and how they came to be."""
        return self._in_force

    def reload(self, trigger: Trigger, *, dry_run: bool = False, wait: bool = False) -> Reloaded:
        """Reads the file again and applies what differs, or with `dry_run` only says what that is.

        Raises ReloadRefusedError, ConfigError or ApplyError; then nothing was changed. `wait` waits for another reload
        to end, in place of BusyError.
        """
        if self.file is None:
            raise NoFileError("the server was started without --config: there is no file to read again")
        if not self._one_at_a_time.acquire(blocking=wait):
            raise BusyError("another reload is under way")
        try:
            if not self._is_ready():
                raise NotReadyError("engine not initialized")
            return self._differences(self._source.load()) if dry_run else self._reload(trigger)
        finally:
            self._one_at_a_time.release()

    def _reload(self, trigger: Trigger) -> Reloaded:
        # NOTE: Looked at before it is read: what changes in between is then seen as a change by the next look.
        self.seen = file_state(self.file)
        try:
            new = self._source.load()
            found = self._differences(new)
            self._apply(new, found.changes)
        except ConfigError as error:
            self._refuse(trigger, "invalid", "; ".join(described(each) for each in error.problems))
            raise
        except RestartNeededError as error:
            self._refuse(trigger, "restart_needed", str(error), pending=error.changes)
            raise
        except ApplyError as error:
            self._refuse(trigger, "failed", str(error), settings=_stuck(self._in_force.settings, new, error.stuck))
            raise
        self._accept(trigger, new, found.changes)
        return Reloaded(True, found.changes)

    def _differences(self, new: Settings) -> Reloaded:
        old = self._in_force.settings
        listed = differences(self.schema, old.listing, new.listing, self._restart_reason(new))
        hidden = (
            behind(applier.prefix)
            for applier in self._appliers
            if applier.differs(old, new) and not any(applier.covers(each.path) for each in listed)
        )
        return Reloaded(False, (*listed, *hidden))

    def _restart_reason(self, new: Settings) -> Callable[[SettingPath], str | None]:
        def reason(path: SettingPath) -> str | None:
            reasons = (applier.needs_restart(new) for applier in self._appliers if applier.covers(path))
            return next((each for each in reasons if each), None)

        return reason

    def _apply(self, new: Settings, changes: tuple[Change, ...]) -> None:
        if not all(each.is_live for each in changes):
            raise RestartNeededError(changes)
        concerned = [each for each in self._appliers if any(each.covers(change.path) for change in changes)]
        apply_all(concerned, self._in_force.settings, new)

    def _accept(self, trigger: Trigger, new: Settings, changes: tuple[Change, ...]) -> None:
        message = "; ".join(map(str, changes)) or "nothing differs"
        report = ReloadReport(time.time(), trigger, "applied" if changes else "unchanged", message)
        self._in_force = InForce(new, report)
        log.info("configuration reloaded (%s): %s", trigger, message)
        if changes:
            for warning in (*new.warnings, *exposures(new.http.policy, new.http.host, new.engine.host)):
                log.warning("%s", warning)

    def _refuse(
        self,
        trigger: Trigger,
        outcome: Outcome,
        message: str,
        *,
        pending: tuple[Change, ...] = (),
        settings: Settings | None = None,
    ) -> None:
        report = ReloadReport(time.time(), trigger, outcome, message)
        self._in_force = InForce(settings or self._in_force.settings, report, pending)
        log.warning("configuration not reloaded (%s): %s", trigger, message)


def described(problem: Problem) -> str:
    """A problem without the value, which may be a secret."""
    return ": ".join(part for part in (problem.place, dotted(problem.path), problem.message) if part)


def _stuck(old: Settings, new: Settings, prefixes: Sequence[SettingPath]) -> Settings:
    """The old settings, with the new ones shown where those could not be taken back."""

    def is_stuck(setting: Setting) -> bool:
        return any(setting.path[: len(prefix)] == prefix for prefix in prefixes)

    listing = [each for each in old.listing if not is_stuck(each)] + [each for each in new.listing if is_stuck(each)]
    return replace(old, listing=tuple(listing))
