"""Request traces: the Mooncake format, and kvkeep's own recordings, which are the same with `block_size`. Pure.

A line is a JSON object with

- `timestamp`: milliseconds since the trace began;
- `input_length`, `output_length`: tokens of the prompt and of what was generated;
- `hash_ids`: the blocks of the prompt in order; two that are equal stand for equal prompts up to there;
- `block_size`: tokens in a block, the same in all lines; 512 where it is absent.

The blocks begin with the prompt and are full, except that the prompt may end within the last one. They may also end
before the prompt does, as in recordings, where only complete chunks are named. What else a line has is ignored.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

DEFAULT_BLOCK_SIZE: Final = 512
"""Tokens in a block of the Mooncake format."""

_LONGEST_SHOWN: Final = 40
"""Characters of a wrong value that a message repeats."""


class TraceError(ValueError):
    """What is wrong with a trace, and with which key; `line` counts from 1 and is None where it is about the whole."""

    def __init__(self, message: str, line: int | None = None) -> None:
        super().__init__(message)
        self.line: Final = line


@dataclass(frozen=True, slots=True)
class Request:
    """One line of a trace."""

    timestamp: float
    """Milliseconds."""
    input_length: int
    """Tokens."""
    output_length: int
    blocks: tuple[int, ...]
    """Of the prompt; no two are equal."""
    block_size: int = DEFAULT_BLOCK_SIZE
    """Tokens."""

    def tokens(self, blocks: int) -> int:
        """How many tokens the first `blocks` blocks have."""
        return min(blocks * self.block_size, self.input_length)


class Trace:
    """The requests of one file, in their order, and how much they ask for."""

    def __init__(self, requests: Sequence[Request]) -> None:
        """Raises TraceError if there is no block in them."""
        self.requests: Final = tuple(requests)
        self.references: Final = sum(len(request.blocks) for request in requests)
        """Blocks, each counted as often as it is asked for."""
        if not self.references:
            raise TraceError("no request has a block" if requests else "there are no requests")
        self.unique: Final = len({block for request in requests for block in request.blocks})
        """Different blocks."""
        self.tokens: Final = sum(request.tokens(len(request.blocks)) for request in requests)
        """In all references."""


def parse_trace(lines: Iterable[str | bytes]) -> Trace:
    """Reads a trace. Raises TraceError for the first line that is wrong, and if there is no block in any."""
    requests: list[Request] = []
    for number, line in enumerate(lines, 1):
        try:
            request = parse_request(line)
            _check_constant(request, requests)
        except TraceError as error:
            raise TraceError(str(error), number) from None
        requests.append(request)
    return Trace(requests)


def parse_request(line: str | bytes) -> Request:
    """Reads a line. Raises TraceError, without a line number."""
    entry = _entry(line)
    request = Request(
        timestamp=_timestamp(entry),
        input_length=_integer(entry, "input_length", 0),
        output_length=_integer(entry, "output_length", 0),
        blocks=_blocks(entry),
        block_size=_integer(entry, "block_size", 1) if "block_size" in entry else DEFAULT_BLOCK_SIZE,
    )
    _check_length(request)
    return request


def _entry(line: str | bytes) -> Mapping[str, Any]:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise TraceError(f"is not JSON: {error}") from None
    if not isinstance(entry, dict):
        raise TraceError(f"must be a JSON object, not {_shown(entry)}")
    return entry


def _value(entry: Mapping[str, Any], key: str) -> Any:
    if key not in entry:
        raise TraceError(f"{key}: is missing")
    return entry[key]


def _timestamp(entry: Mapping[str, Any]) -> float:
    value = _value(entry, "timestamp")
    if type(value) not in (int, float) or not math.isfinite(value) or value < 0:
        raise TraceError(f"timestamp: must be a number of milliseconds, at least 0, not {_shown(value)}")
    return float(value)


def _integer(entry: Mapping[str, Any], key: str, lowest: int) -> int:
    value = _value(entry, key)
    if type(value) is not int or value < lowest:
        raise TraceError(f"{key}: must be an integer of at least {lowest}, not {_shown(value)}")
    return value


def _blocks(entry: Mapping[str, Any]) -> tuple[int, ...]:
    value = _value(entry, "hash_ids")
    if not isinstance(value, list):
        raise TraceError(f"hash_ids: must be a list of integers, not {_shown(value)}")
    for block in value:
        if type(block) is not int:
            raise TraceError(f"hash_ids: must be a list of integers, but {_shown(block)} is in it")
    if len(set(value)) < len(value):
        twice = next(block for index, block in enumerate(value) if block in value[:index])
        raise TraceError(f"hash_ids: {twice} is there twice, but an id stands for all of the prompt up to its block")
    return tuple(value)


def _check_length(request: Request) -> None:
    most = -(-request.input_length // request.block_size)
    if len(request.blocks) > most:
        length = f"input_length {request.input_length}: {most} blocks of {request.block_size} tokens at most"
        raise TraceError(f"hash_ids: {len(request.blocks)} blocks do not fit {length}")


def _check_constant(request: Request, before: Sequence[Request]) -> None:
    if before and request.block_size != before[0].block_size:
        sizes = f"{request.block_size}, but {before[0].block_size} in the lines before"
        raise TraceError(f"block_size: must be the same in all lines ({DEFAULT_BLOCK_SIZE} where absent): {sizes}")


def _shown(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."
