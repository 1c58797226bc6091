"""What a trace says, and what is said of one that is wrong."""

from __future__ import annotations

import json
from typing import Any

import pytest

from engine.simulation import Request, TraceError, parse_trace
from engine.simulation.trace import parse_request

GOOD: dict[str, Any] = {"timestamp": 7, "input_length": 1030, "output_length": 5, "hash_ids": [4, 9, 2**53]}


def line(**changes: Any) -> str:
    return json.dumps({**GOOD, **changes})


def without(key: str) -> str:
    return json.dumps({name: value for name, value in GOOD.items() if name != key})


@pytest.mark.parametrize("text", [line(), line().encode(), line(type="chat", extra=[1]), line() + "\r\n"])
def test_a_line_is_a_request(text: str | bytes) -> None:
    assert parse_request(text) == Request(7.0, 1030, 5, (4, 9, 2**53), 512)


def test_a_recording_has_its_own_block_size() -> None:
    assert parse_request(line(block_size=400)).block_size == 400


def test_blocks_are_full_but_for_the_last_one() -> None:
    request = parse_request(line())
    assert [request.tokens(blocks) for blocks in range(4)] == [0, 512, 1024, 1030]


def test_what_no_complete_block_has_is_not_counted() -> None:
    request = parse_request(line(hash_ids=[1, 2], block_size=256))
    assert [request.tokens(blocks) for blocks in range(3)] == [0, 256, 512]


def test_a_trace_knows_how_much_it_asks_for() -> None:
    trace = parse_trace([line(), line(hash_ids=[4, 9, 5]), line(hash_ids=[], input_length=0)])
    assert (len(trace.requests), trace.references, trace.unique, trace.tokens) == (3, 6, 4, 2060)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not JSON"),
        ("\n", "is not JSON"),
        (line()[:-9], "is not JSON"),
        (b"\xff" + line().encode(), "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[1]", r"must be a JSON object, not \[1\]"),
        *[(without(key), f"{key}: is missing") for key in GOOD],
        (line(timestamp="now"), 'timestamp: must be a number of milliseconds, at least 0, not "now"'),
        (line(timestamp=-1), "timestamp: must be .* not -1"),
        (line(timestamp=float("nan")), "timestamp: must be .* not NaN"),
        (line(timestamp=True), "timestamp: must be .* not true"),
        (line(input_length=1.5), "input_length: must be an integer of at least 0, not 1.5"),
        (line(input_length=-1), "input_length: must be an integer of at least 0, not -1"),
        (line(output_length=None), "output_length: must be an integer of at least 0, not null"),
        (line(output_length=True), "output_length: must be an integer of at least 0, not true"),
        (line(hash_ids="1 2"), 'hash_ids: must be a list of integers, not "1 2"'),
        (line(hash_ids=[1, "b"]), 'hash_ids: must be a list of integers, but "b" is in it'),
        (line(hash_ids=[1, True]), "hash_ids: must be a list of integers, but true is in it"),
        (line(hash_ids=[3, 4, 3]), "hash_ids: 3 is there twice"),
        (line(hash_ids=[1, 2, 3, 4]), "hash_ids: 4 blocks do not fit input_length 1030: 3 blocks of 512 tokens"),
        (line(block_size=0), "block_size: must be an integer of at least 1, not 0"),
        (line(timestamp="x" * 1000), r'not "x{39}\.\.\.$'),
    ],
)
def test_a_wrong_line_is_refused_with_its_key(text: str | bytes, message: str) -> None:
    with pytest.raises(TraceError, match=message) as caught:
        parse_trace([line(), text])
    assert caught.value.line == 2


@pytest.mark.parametrize(("first", "second"), [({}, {"block_size": 256}), ({"block_size": 256}, {})])
def test_the_block_size_is_the_same_in_all_lines(first: dict[str, int], second: dict[str, int]) -> None:
    lines = [line(hash_ids=[1], **first), line(hash_ids=[1], **first), line(hash_ids=[1], **second)]
    with pytest.raises(TraceError, match=r"block_size: must be the same in all lines \(512 where absent\)") as caught:
        parse_trace(lines)
    assert caught.value.line == 3


def test_the_usual_block_size_may_be_named_or_not() -> None:
    assert parse_trace([line(), line(block_size=512)]).unique == 3


@pytest.mark.parametrize(
    ("lines", "message"), [([], "there are no requests"), ([line(hash_ids=[])], "no request has a block")]
)
def test_a_trace_that_asks_for_nothing_is_refused(lines: list[str], message: str) -> None:
    with pytest.raises(TraceError, match=message) as caught:
        parse_trace(lines)
    assert caught.value.line is None
