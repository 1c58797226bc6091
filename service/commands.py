"""The commands that only read: `check-config` and `show-config`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from service.problems import ConfigError, dotted, show
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


def show_config(settings: Settings) -> list[str]:
    """The effective settings as the lines of an aligned table."""
    rows = [("SETTING", "VALUE", "ORIGIN")]
    rows += [(dotted(each.path), show(each.masked_value), each.origin.label) for each in settings.listing]
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    return [f"{name:<{widths[0]}}  {value:<{widths[1]}}  {origin}" for name, value, origin in rows]
