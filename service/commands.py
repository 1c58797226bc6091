"""The commands that only read: `check-config` and `show-config`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from service.config_view import setting_rows
from service.problems import ConfigError, show
from service.schema import Schema
from service.settings import Override, Settings, load_settings


@dataclass(frozen=True, slots=True)
class Checked:
    """What was found in a file, as lines to print."""

    problems: tuple[str, ...] = ()
    """None if the file is right."""
    warnings: tuple[str, ...] = ()


def check_config(schema: Schema, file: str, environ: Mapping[str, str]) -> Checked:
    """What a start with this file would complain of."""
    no_flags: tuple[Override, ...] = ()
    try:
        return Checked(warnings=load_settings(schema, file, no_flags, environ).warnings)
    except ConfigError as error:
        return Checked(problems=tuple(str(problem) for problem in error.problems))


def show_config(schema: Schema, settings: Settings) -> list[str]:
    """The effective settings as the lines of an aligned table; secrets masked."""
    rows = [("SETTING", "VALUE", "ORIGIN")]
    found = setting_rows(schema, settings.listing)
    rows += [(each["setting"], show(each["value"]), each["origin"]) for each in found]
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    return [f"{name:<{widths[0]}}  {value:<{widths[1]}}  {origin}" for name, value, origin in rows]
