"""How a new reading of the configuration differs from what is in force. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from service.problems import MASK, SettingPath, dotted, show
from service.schema import Schema, is_marked
from service.settings import Setting
from service.sizes import is_size, parse_size

AT_START: Final = "is read at the start only"

RestartReason = Callable[[SettingPath], str | None]
"""Why a setting that can change live cannot take its new value live; None if it can."""


@dataclass(frozen=True, slots=True)
class Change:
    """One setting that differs. Secrets are masked already."""

    path: SettingPath
    old: Any
    """None where the setting was not there."""
    new: Any
    """None where the setting is gone."""
    origin: str
    """Where the new value stands, or where the old one stood if the setting is gone."""
    reason: str | None
    """Why it needs a restart; None if it can change live."""

    @property
    def is_live(self) -> bool:
        """Whether it can change while the process runs."""
        return self.reason is None

    def __str__(self) -> str:
        text = f"{dotted(self.path)}: {show(self.old)} -> {show(self.new)} ({self.origin})"
        return text if self.reason is None else f"{text} {self.reason}"


def differences(
    schema: Schema, old: Sequence[Setting], new: Sequence[Setting], restart_reason: RestartReason
) -> tuple[Change, ...]:
    """Every difference, in the order of the new settings, with what is gone at the end."""
    before = {each.path: each for each in old}
    after = {each.path: each for each in new}
    paths = [*after, *(path for path in before if path not in after)]
    changes = (_change(schema, path, before.get(path), after.get(path), restart_reason) for path in paths)
    filled = {path for path in paths if any(other[: len(path)] == path != other for other in paths)}
    return tuple(change for change in changes if change is not None and change.path not in filled)


def behind(path: SettingPath) -> Change:
    """A difference that no setting's value shows: what a setting stands for is another, such as a file's content."""
    return Change(path, MASK, MASK, "what it names", reason=None)


def _change(
    schema: Schema, path: SettingPath, old: Setting | None, new: Setting | None, restart_reason: RestartReason
) -> Change | None:
    newest = new or old
    if newest is None or (old and new and _is_same(old.value, new.value)):
        return None
    values = [each.masked_value if each else None for each in (old, new)]
    reason = restart_reason(path) if is_marked(schema, path, "x-live") else AT_START
    return Change(path, values[0], values[1], newest.origin.label, reason)


def _is_same(old: Any, new: Any) -> bool:
    """Whether two values mean the same: 1GiB is 1024MiB."""
    return bool(old == new) or (_is_size(old) and _is_size(new) and parse_size(old) == parse_size(new))


def _is_size(value: Any) -> bool:
    return isinstance(value, int) or (isinstance(value, str) and is_size(value))
