"""Where a setting comes from, and what can be wrong with it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

SettingPath = tuple[str | int, ...]

MASK = "***"
"""Stands for what nobody shall read."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where one value was given."""

    label: str
    """For people reading the settings: `default`, `kvkeep.yaml:7`, `flag --port`, `environment PORT (...)`."""
    place: str
    """Where to go to change it: `kvkeep.yaml:7`, `flag --port`."""
    written: str | None = None
    """`${PORT}`, where the environment filled the value or a part of it: then this is shown, and the value never."""


DEFAULT = Origin("default", "config/schema.json")


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with a setting or its file."""

    place: str
    message: str
    path: SettingPath = ()
    value: Any = None
    has_value: bool = False

    def __str__(self) -> str:
        setting = dotted(self.path)
        if self.has_value:
            setting = f"{setting} = {show(self.value)}" if setting else show(self.value)
        return ": ".join(part for part in (self.place, setting, self.message) if part)


class ConfigError(Exception):
    """The configuration cannot be used; carries every problem, not only the first."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = tuple(problems)


def dotted(path: SettingPath) -> str:
    """`("l2", 0, "type")` as `l2[0].type`."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += f".{part}" if text else part
    return text


def show(value: Any) -> str:
    """A value as it would be written in the file, short enough for one line."""
    if isinstance(value, dict):
        return "a mapping" if value else "{}"
    if isinstance(value, list):
        return "a list" if value else "[]"
    return value if isinstance(value, str) and value else json.dumps(value, default=str)
