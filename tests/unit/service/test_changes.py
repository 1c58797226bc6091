"""The difference between the settings in force and those of a new reading."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest

from service.changes import AT_START, Change, differences
from service.problems import DEFAULT, MASK, SettingPath
from service.schema import Schema
from service.settings import Setting, load_settings
from tests.support.configuration import SCHEMA


def listing(schema: Schema, file: Path, text: str, **environ: str) -> tuple[Setting, ...]:
    file.write_text(text)
    return load_settings(schema, str(file), (), environ).listing


@pytest.fixture
def differ(tmp_path: Path):
    def differ(old: str, new: str, schema=SCHEMA, reason: str | None = None, **environ: str) -> list[Change]:
        file = tmp_path / "f.yaml"
        before = listing(schema, file, old, **environ)
        return list(differences(schema, before, listing(schema, file, new, **environ), lambda path: reason))

    return differ


def test_nothing_differs_from_itself(differ) -> None:
    assert differ("l1: {size: 2GiB}", "server: {port: 5555}\nl1: {size: 2GiB}") == []


def test_what_is_written_otherwise_but_means_the_same_is_no_change(differ) -> None:
    assert differ("l1: {size: 2GiB}", "l1: {size: 2048MiB}") == []
    assert differ("l1: {size: 2GiB}", "l1: {size: 2147483648}") == []
    assert differ("server: {lease_ttl: 300}", "server: {lease_ttl: 300.0}") == []


def test_a_change_has_both_values_and_the_place_of_the_new_one(differ, tmp_path: Path) -> None:
    assert differ("", "\nl1:\n  size: 2GiB") == [
        Change(("l1", "size"), "1GiB", "2GiB", f"{tmp_path}/f.yaml:3", reason=None)
    ]


def test_what_is_gone_from_the_file_goes_back_to_its_default(differ) -> None:
    assert differ("l1: {size: 2GiB}", "") == [Change(("l1", "size"), "2GiB", "1GiB", "default", reason=None)]


def test_what_is_not_marked_as_live_needs_a_restart(differ) -> None:
    [change] = differ("", "server: {port: 1}")
    assert (change.is_live, change.reason) == (False, AT_START)


def test_a_live_setting_may_have_a_reason_of_its_own_to_need_a_restart(differ) -> None:
    [change] = differ("", "l1: {size: 2GiB}", reason="is more than l1.max_size")
    assert (change.is_live, change.reason) == (False, "is more than l1.max_size")


def test_a_mark_on_a_section_or_list_holds_for_all_in_it(differ) -> None:
    schema = copy.deepcopy(SCHEMA)
    schema["properties"]["http"]["x-live"] = True
    assert [each.is_live for each in differ("", "http: {threads: 3}", schema)] == [True]


@pytest.mark.parametrize("written", ["${%s}", "'${%s}'", "x-${%s}"])
def test_values_of_the_environment_are_masked_on_both_sides(differ, written: str) -> None:
    file = f"server:\n  host: {written}\n"
    [change] = differ(file % "A", file % "B", A="hidden", B="secret")
    assert (change.old, change.new) == (MASK, MASK)
    assert "B" in change.origin
    assert "secret" not in str(change)


def test_what_the_schema_calls_secret_is_masked(differ) -> None:
    schema = copy.deepcopy(SCHEMA)
    schema["properties"]["server"]["properties"]["host"]["x-secret"] = True
    [change] = differ("server: {host: a}", "server: {host: b}", schema)
    assert (change.old, change.new) == (MASK, MASK)


def settings(*entries: tuple[SettingPath, object]) -> list[Setting]:
    return [Setting(path, value, DEFAULT) for path, value in entries]


def test_a_list_that_was_empty_is_told_by_its_entries_only() -> None:
    empty, filled = settings((("l2",), [])), settings((("l2", 0, "type"), "fs"), (("l2", 0, "path"), "/x"))
    added = differences(SCHEMA, empty, filled, lambda path: None)
    assert [(each.path, each.old, each.new) for each in added] == [
        (("l2", 0, "type"), None, "fs"),
        (("l2", 0, "path"), None, "/x"),
    ]
    gone = differences(SCHEMA, filled, empty, lambda path: None)
    assert [(each.path, each.old, each.new) for each in gone] == [
        (("l2", 0, "type"), "fs", None),
        (("l2", 0, "path"), "/x", None),
    ]


def test_a_change_reads_like_one(differ, tmp_path: Path) -> None:
    [change] = differ("", "server: {port: 1}")
    assert str(change) == f"server.port: 5555 -> 1 ({tmp_path}/f.yaml:1) is read at the start only"
