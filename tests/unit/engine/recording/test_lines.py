"""A lookup as a line of a trace: no tokens, and ids that mean something within one recording only."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from engine.recording.lines import TraceLines
from engine.traffic import Prompt
from tests.unit.engine.support import key, packed

TOKENS = list(range(70_000, 70_040))
"""Two complete chunks and a half one."""


@pytest.fixture
def lines() -> TraceLines:
    return TraceLines(b"k" * 32, 16, began=100.0)


def read(lines: TraceLines, tokens: list[int] = TOKENS, now: float = 100.0, **more: Any) -> dict[str, Any]:
    line = lines.line(Prompt(now, key(tokens, **more)))
    assert line is not None
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    found: dict[str, Any] = json.loads(line)
    return found


def ids(lines: TraceLines, tokens: list[int] = TOKENS, **more: Any) -> list[int]:
    found: list[int] = read(lines, tokens, **more)["hash_ids"]
    return found


def test_a_line_has_what_a_trace_needs(lines: TraceLines) -> None:
    found = read(lines, now=101.2345)
    assert list(found) == ["timestamp", "input_length", "output_length", "hash_ids", "block_size"]
    assert (found["timestamp"], found["input_length"], found["output_length"], found["block_size"]) == (1234, 40, 0, 16)
    assert len(found["hash_ids"]) == 2


def test_equal_prefixes_have_equal_ids_and_others_have_not(lines: TraceLines) -> None:
    first = ids(lines)
    assert ids(lines) == first
    longer = ids(lines, [*TOKENS[:32], *range(16)])
    assert longer[:2] == first
    other_head = ids(lines, [1, *TOKENS[1:]])
    assert not set(other_head) & set(first)


@pytest.mark.parametrize("other", [{"cache_salt": "tenant"}, {"model_name": "n"}, {"world_size": 2}])
def test_another_model_or_salt_has_other_ids(lines: TraceLines, other: dict[str, Any]) -> None:
    assert not set(ids(lines)) & set(ids(lines, **other))


def test_ids_fit_into_what_json_holds_exactly(lines: TraceLines) -> None:
    found = ids(lines, list(range(16 * 2000)))
    assert len(set(found)) == 2000
    assert 2**52 < max(found) < 2**53


def test_another_recording_has_other_ids(lines: TraceLines) -> None:
    assert not set(ids(lines)) & set(ids(TraceLines(b"l" * 32, 16, 100.0)))


def test_only_what_was_asked_for_is_recorded(lines: TraceLines) -> None:
    assert len(ids(lines, end=16)) == 1
    assert ids(lines, TOKENS[:15], end=0) == []
    assert len(ids(lines, end=10**9)) == 2


@pytest.mark.parametrize("encoded", [b"", packed(1), packed(["x"] * 16), packed([-1] * 16), b"\xdc\x00\x10\x01"])
def test_what_is_no_token_is_no_line(lines: TraceLines, encoded: bytes) -> None:
    damaged = msgspec.structs.replace(key(TOKENS), token_ids=msgspec.Raw(encoded))
    assert lines.line(Prompt(100.0, damaged)) is None
