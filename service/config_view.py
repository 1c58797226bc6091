"""The configuration as people see it: the settings in force, the last reload, and what waits for a restart. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from service.changes import Change
from service.configuration import InForce, ReloadReport
from service.problems import dotted
from service.schema import Schema, is_marked, nodes
from service.settings import Setting

Row = dict[str, Any]


def setting_rows(schema: Schema, listing: Sequence[Setting]) -> list[Row]:
    """Every setting with its value, where that comes from, and what the schema says of it; secrets masked."""
    return [_setting(schema, each) for each in listing]


def change_rows(changes: Sequence[Change]) -> list[Row]:
    """What differs between the settings in force and those of a file."""
    return [_change(each) for each in changes]


def config_body(schema: Schema, file: str | None, moment: InForce) -> dict[str, Any]:
    """The body of getConfig."""
    return {
        "file": file,
        "settings": setting_rows(schema, moment.settings.listing),
        "last_reload": _report(moment.report),
        "pending_restart": change_rows(moment.pending),
    }


def _setting(schema: Schema, setting: Setting) -> Row:
    return {
        "setting": dotted(setting.path),
        "value": setting.masked_value,
        "is_masked": setting.masked_value != setting.value,
        "origin": setting.origin.label,
        "is_live": is_marked(schema, setting.path, "x-live"),
        "description": " ".join(node["description"] for node in list(nodes(schema, setting.path))[-1:]),
    }


def _change(change: Change) -> Row:
    return {
        "setting": dotted(change.path),
        "old": change.old,
        "new": change.new,
        "origin": change.origin,
        "is_live": change.is_live,
        "reason": change.reason,
    }


def _report(report: ReloadReport) -> dict[str, Any]:
    return {
        "at": datetime.fromtimestamp(report.at, UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        "trigger": report.trigger,
        "outcome": report.outcome,
        "message": report.message,
    }
