"""The log's lines, for people and for programs, and which of them are written."""

from __future__ import annotations

import io
import json
import logging
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from service import audit
from service.logs import LEVELS, LOGGERS, Logs, current_request, escaped


class Stream(io.StringIO):
    """A stream that is a terminal or is none."""

    def __init__(self, *, terminal: bool = False) -> None:
        super().__init__()
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal

    def lines(self) -> list[str]:
        return self.getvalue().splitlines()


@contextmanager
def request(name: str | None) -> Iterator[None]:
    token = current_request.set(name)
    try:
        yield
    finally:
        current_request.reset(token)


def written(style: str, *arguments: object, level: int = logging.INFO, **more: object) -> list[str]:
    """The lines of one record."""
    stream = Stream()
    with Logs("debug").written(stream, style):
        logging.getLogger("kvkeep.test").log(level, *arguments, **more)
    return stream.lines()


def failure(text: str) -> Exception:
    try:
        raise ValueError(text)
    except ValueError as error:
        return error


def test_a_line_for_people_tells_when_how_important_who_and_what() -> None:
    [line] = written("human", "%d objects", 8, level=logging.WARNING)
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} WARNING kvkeep\.test: 8 objects", line)


def test_a_line_of_a_request_carries_its_id() -> None:
    with request("abc-1"):
        [human], [line] = written("human", "x"), written("json", "x")
    assert human.endswith("kvkeep.test: x [request abc-1]")
    assert json.loads(line)["request_id"] == "abc-1"


def test_a_line_outside_of_requests_has_no_id() -> None:
    [human], [line] = written("human", "x"), written("json", "x")
    assert human.endswith(": x")
    assert "request_id" not in json.loads(line)


def test_a_line_for_programs_is_json_with_the_time_in_utc() -> None:
    [line] = written("json", "%s done", "copy", extra={"bytes": 5})
    found = json.loads(line)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", found.pop("timestamp"))
    assert found == {"level": "INFO", "logger": "kvkeep.test", "message": "copy done", "bytes": 5}


def test_an_exception_is_one_field_for_programs_and_indented_lines_for_people() -> None:
    error = failure("broken")
    [line] = written("json", "failed", exc_info=error)
    assert json.loads(line)["exception"].endswith("ValueError: broken")
    first, *trace = written("human", "failed", exc_info=error)
    assert first.endswith("kvkeep.test: failed")
    assert trace[0] == "    Traceback (most recent call last):"
    assert trace[-1] == "    ValueError: broken"
    assert all(each.startswith("    ") for each in trace)


FORGED = "x\n2026-01-01 00:00:00,000 INFO kvkeep.audit: alice did it"


@pytest.mark.parametrize("separator", ["\n", "\r", "\r\n", "\v", "\f", "\x1c", "\x85", "\u2028", "\u2029", "\x1b[2K"])
def test_no_text_of_a_client_passes_for_a_line_of_its_own(separator: str) -> None:
    text = FORGED.replace("\n", separator)
    assert len(written("human", "path %s", text)) == 1
    assert len(written("json", "path %s", text)) == 1
    lines = written("human", "failed", exc_info=failure(text))
    assert [line for line in lines if line.startswith("20")] == lines[:1]
    assert "\x1b" not in "".join(lines)


def test_text_that_can_be_printed_is_left_as_it_is() -> None:
    assert escaped("größe 木 `a` \\n") == "größe 木 `a` \\n"
    assert escaped("a\n\x00\u202eb") == "a\\n\\x00\\u202eb"


@pytest.mark.parametrize(
    ("style", "terminal", "is_json"),
    [("auto", True, False), ("auto", False, True), ("human", False, False), ("json", True, True)],
)
def test_lines_are_for_people_on_a_terminal_only_unless_asked_for(style: str, terminal: bool, is_json: bool) -> None:
    stream = Stream(terminal=terminal)
    with Logs().written(stream, style):
        logging.getLogger("kvkeep").warning("x")
    assert stream.getvalue().startswith("{") == is_json


def test_a_level_leaves_out_what_is_less_important() -> None:
    stream = Stream()
    with Logs("warning").written(stream, "human"):
        logging.getLogger("engine.loop").info("not this")
        logging.getLogger("engine.loop").warning("this")
    assert [line.rpartition(": ")[2] for line in stream.lines()] == ["this"]


def test_a_level_changes_while_the_log_is_written() -> None:
    stream, logs = Stream(), Logs("error")
    with logs.written(stream, "human"):
        assert logs.change("debug", "engine") == "error"
        logging.getLogger("engine.loop").debug("one")
        logging.getLogger("kvkeep").debug("two")
        assert logs.change("debug") == "error"
        logging.getLogger("kvkeep").debug("three")
    assert [line.rpartition(": ")[2] for line in stream.lines()] == ["one", "three"]


def test_only_levels_that_differ_from_the_roots_are_a_loggers_own() -> None:
    logs = Logs()
    with logs.written(Stream(), "human"):
        logs.change("debug", "engine")
        logs.change("error", "waitress")
        assert (logs.level, logs.own_levels) == ("info", {"engine": "debug", "waitress": "error"})
        assert logs.change("info", "waitress") == "error"
        assert logs.own_levels == {"engine": "debug"}
        logs.change("debug")
        assert (logs.level, logs.own_levels) == ("debug", {})
        logs.change("warning")
        assert logging.getLogger("engine").getEffectiveLevel() == logging.WARNING


def test_the_audit_is_written_whatever_the_level() -> None:
    for level in LEVELS:
        for logger in LOGGERS:
            stream, logs = Stream(), Logs("error")
            with logs.written(stream, "human"):
                logs.change(level, logger)
                audit.log.info("alice did it")
            assert "alice did it" in stream.getvalue()


def test_after_the_block_logging_is_as_before() -> None:
    root = logging.getLogger()
    before = (root.level, [*root.handlers], logging.getLogger("engine").level)
    logs = Logs("error")
    with logs.written(Stream(), "human"):
        logs.change("debug", "engine")
        assert root.level == logging.ERROR
    assert (root.level, root.handlers, logging.getLogger("engine").level) == before


def test_an_id_is_of_the_thread_that_serves() -> None:
    found: list[str | None] = []
    with request("abc"):
        other = threading.Thread(target=lambda: found.append(current_request.get()))
        other.start()
        other.join()
    assert found == [None]
