"""What a setting that changes live does to the running process, and how several change together or not at all."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from engine import EngineError
from service.problems import ConfigError, SettingPath, dotted
from service.schema import Schema, marked
from service.settings import Settings

Value = TypeVar("Value")

log = logging.getLogger("kvkeep")


@dataclass(frozen=True, slots=True)
class Step:
    """One change that is ready to be made."""

    apply: Callable[[], object]
    """Makes the change, or raises and leaves everything as it was."""
    undo: Callable[[], object]
    """Takes back what `apply` did."""


def _can_change(new: Settings) -> str | None:
    return None


def _all_is_listed(old: Settings, new: Settings) -> bool:
    return False


@dataclass(frozen=True, slots=True)
class Applier:
    """Changes everything live that stands under one path."""

    prefix: SettingPath
    stage: Callable[[Settings, Settings], Step]
    """The change from the settings in force to new ones; changes nothing yet. Raises ConfigError if they are wrong."""
    needs_restart: Callable[[Settings], str | None] = _can_change
    """Why new settings cannot be reached without a restart; None if they can."""
    differs: Callable[[Settings, Settings], bool] = _all_is_listed
    """Whether there is a difference that the settings' own values need not show, such as the content of a file that
    they name."""

    def covers(self, path: SettingPath) -> bool:
        """Whether the setting is this one's business."""
        return path[: len(self.prefix)] == self.prefix


def setter(
    prefix: SettingPath,
    value: Callable[[Settings], Value],
    put: Callable[[Value], object],
    needs_restart: Callable[[Settings], str | None] = _can_change,
) -> Applier:
    """An applier that puts a value, and to undo that, the old one. `put` does it all or raises and does nothing."""

    def stage(old: Settings, new: Settings) -> Step:
        return Step(lambda: put(value(new)), lambda: put(value(old)))

    return Applier(prefix, stage, needs_restart, lambda old, new: value(old) != value(new))


class ApplyError(Exception):
    """A live change could not be made, so none was."""

    def __init__(self, setting: str, reason: str, stuck: Sequence[SettingPath]) -> None:
        """`stuck` are the paths at which the new values stay, since taking them back failed too."""
        super().__init__(f"{setting} could not be changed: {reason}{_stuck(stuck)}")
        self.setting = setting
        self.reason = reason
        self.stuck = tuple(stuck)


def apply_all(appliers: Iterable[Applier], old: Settings, new: Settings) -> None:
    """Stages every change, then makes them in the given order.

    Raises ConfigError before the first was made, or ApplyError after taking back those that were.
    """
    staged = [(applier, _staged(applier, old, new)) for applier in appliers]
    made: list[tuple[Applier, Step]] = []
    for applier, step in staged:
        try:
            step.apply()
        # NOTE: Whatever it is, what was changed before must be taken back.
        except Exception as error:
            raise ApplyError(dotted(applier.prefix), _reason(error), list(_take_back(made))) from error
        made.append((applier, step))


def disagreements(schema: Schema, appliers: Sequence[Applier]) -> list[str]:
    """How the settings that the schema calls live differ from those that something can change, both ways."""
    live = list(marked(schema, "x-live"))
    return [
        *(
            f"config/schema.json: {dotted(path)} is x-live, but nothing applies it while the process runs"
            for path in live
            if not any(applier.covers(path) for applier in appliers)
        ),
        *(
            f"config/schema.json: {dotted(applier.prefix)} can be applied live, but nothing there is x-live"
            for applier in appliers
            if not any(applier.covers(path) for path in live)
        ),
    ]


def _staged(applier: Applier, old: Settings, new: Settings) -> Step:
    try:
        return applier.stage(old, new)
    except ConfigError:
        raise
    except Exception as error:
        raise ApplyError(dotted(applier.prefix), _reason(error), ()) from error


def _take_back(made: Sequence[tuple[Applier, Step]]) -> Iterator[SettingPath]:
    for applier, step in reversed(made):
        try:
            step.undo()
        # NOTE: The others must be taken back all the same.
        except Exception:
            log.exception("%s could not be changed back", dotted(applier.prefix))
            yield applier.prefix


def _reason(error: Exception) -> str:
    if isinstance(error, EngineError):
        return str(error)
    log.error("a live change failed", exc_info=error)
    return "an unexpected error; the server's log has it"


def _stuck(stuck: Sequence[SettingPath]) -> str:
    names = " and ".join(dotted(path) for path in stuck)
    return f"; {names} could not be changed back and keeps the new value" if names else ""
