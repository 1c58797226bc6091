"""Ways to spoil a message by chance: its values, its bytes, and its frames. Nothing here knows a server."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from math import inf, nan
from typing import Any, Final

import msgspec
from msgspec.msgpack import Ext

Frames = list[bytes]

_LONG: Final = 3000


def _nested(depth: int, opener: bytes = b"\x91") -> msgspec.Raw:
    """A list in a list in a list, or maps that are each other's keys."""
    return msgspec.Raw(opener * depth + b"\xc0")


_BITS: Final = (0, 4, 8, 15, 31, 32, 53, 62, 63)
_EDGES: Final = {sign * (1 << bits) + more for bits in _BITS for sign in (1, -1) for more in (-1, 0, 1)}
SMALLEST: Final = -(1 << 63)
LARGEST: Final = (1 << 64) - 1
NUMBERS: Final = (*sorted(edge for edge in _EDGES if edge >= SMALLEST), LARGEST - 4095, LARGEST)
"""Integers of MessagePack, where they change their form on the wire or in the machine."""
STRANGE: Final = (
    *NUMBERS,
    nan,
    inf,
    -inf,
    1e308,
    -0.0,
    True,
    False,
    None,
    "",
    "\0",
    "../../etc/passwd",
    "a@b/c\\d",
    "\N{LATIN SMALL LETTER A WITH RING ABOVE}start",
    "x" * _LONG,
    b"",
    b"\xff" * 64,
    b"\0" * _LONG,
    [],
    {},
    [[]] * 40,
    [0] * _LONG,
    [(1 << 63) - 1] * 40,
    {"": 0},
    {"type": "cpu_shm"},
    Ext(1, b""),
    Ext(1, b"\x80"),
    Ext(7, b"\xc0"),
    msgspec.Raw(b"\xd6\xff\xff\xff\xff\xff"),
    msgspec.Raw(b"\xdd\xff\xff\xff\xff"),
    msgspec.Raw(b"\xc6\xff\xff\xff\xff"),
    msgspec.Raw(b"\x82\xa1a\x01\xa1a\x02"),
    msgspec.Raw(b"\x81\x80\xc0"),
    msgspec.Raw(b"\xc1"),
    _nested(20),
    _nested(900),
    _nested(20_000),
    _nested(20_000, b"\x81"),
)
"""Values that no request has a use for, and some that are none."""


def packed(value: object) -> bytes:
    """The msgpack of a value, or of something near it: text and numbers can be spoiled until they are none."""
    try:
        return msgspec.msgpack.encode(value)
    except (OverflowError, UnicodeEncodeError, ValueError, RecursionError):
        return msgspec.msgpack.encode(repr(value)[:_LONG])


def spoil_value(rng: random.Random, value: Any) -> Any:
    """The value with one part of it replaced, left out, or there once more."""
    match value:
        case dict() if value and rng.random() < 0.95:
            return _spoil_map(rng, value)
        case list() if value and rng.random() < 0.95:
            return _spoil_list(rng, value)
        case Ext() if rng.random() < 0.95:
            return Ext(rng.choice((value.code,) * 30 + (0, 2, -1)), spoil_frame(rng, bytes(value.data)))
        case int() if not isinstance(value, bool) and rng.random() < 0.7:
            return rng.choice((value + 1, value - 1, -value, value * 2, value // 2, rng.choice(NUMBERS)))
        case _:
            return rng.choice(STRANGE)


def _spoil_map(rng: random.Random, value: dict[Any, Any]) -> Any:
    name = rng.choice(list(value))
    action = rng.random()
    if action < 0.1:
        return {other: part for other, part in value.items() if other != name}
    if action < 0.15:
        return {**value, rng.choice(("", "more", 1, None)): rng.choice(STRANGE)}
    if action < 0.2:
        return dict(rng.sample(list(value.items()), len(value)))
    if action < 0.25:
        return _with_twice(value, name, rng.choice(STRANGE))
    return {**value, name: spoil_value(rng, value[name])}


def _with_twice(value: dict[Any, Any], name: Any, second: Any) -> msgspec.Raw:
    """A map that has one of its names twice, which no map in memory can have."""
    pairs = [*value.items(), (name, second)]
    return msgspec.Raw(
        b"\xdf" + len(pairs).to_bytes(4, "big") + b"".join(packed(part) for pair in pairs for part in pair)
    )


def _spoil_list(rng: random.Random, value: list[Any]) -> Any:
    index = rng.randrange(len(value))
    action = rng.random()
    if action < 0.1:
        return value[:index] + value[index + 1 :]
    if action < 0.2:
        return value[:index] + [value[index]] * rng.choice((2, 3, 100)) + value[index + 1 :]
    if action < 0.25:
        return value[:index]
    if action < 0.3:
        return rng.sample(value, len(value))
    return [*value[:index], spoil_value(rng, value[index]), *value[index + 1 :]]


def spoil_frame(rng: random.Random, frame: bytes) -> bytes:
    """A frame with another value in it, or with other bytes."""
    if rng.random() < 0.75:
        try:
            return packed(spoil_value(rng, msgspec.msgpack.decode(frame)))
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, TypeError):
            pass
    return spoil_bytes(rng, frame)


def spoil_bytes(rng: random.Random, frame: bytes) -> bytes:
    """Bits that fell over, bytes that are missing, or too many."""
    if not frame:
        return rng.randbytes(rng.choice((1, 2, 16)))
    place = rng.randrange(len(frame))
    action = rng.randrange(6)
    if action == 0:
        return frame[:place]
    if action == 1:
        return frame + rng.randbytes(rng.choice((1, 4, 1000)))
    if action == 2:
        return frame[:place] + rng.randbytes(1) + frame[place + 1 :]
    if action == 3:
        return frame[:place] + bytes((frame[place] ^ 1 << rng.randrange(8),)) + frame[place + 1 :]
    if action == 4:
        return frame[:place] + rng.randbytes(rng.randrange(1, 9)) + frame[place:]
    return frame[place:] + frame[:place]


def _drop(rng: random.Random, frames: Frames, _: Sequence[Frames]) -> Frames:
    gone = rng.randrange(len(frames))
    return frames[:gone] + frames[gone + 1 :]


def _repeat(rng: random.Random, frames: Frames, _: Sequence[Frames]) -> Frames:
    index = rng.randrange(len(frames))
    return frames[:index] + [frames[index]] * 2 + frames[index + 1 :]


def _swap(rng: random.Random, frames: Frames, _: Sequence[Frames]) -> Frames:
    return rng.sample(frames, len(frames))


def _empty(rng: random.Random, frames: Frames, _: Sequence[Frames]) -> Frames:
    index = rng.randrange(len(frames))
    return [*frames[:index], b"", *frames[index + 1 :]]


def _many(rng: random.Random, frames: Frames, _: Sequence[Frames]) -> Frames:
    return frames + [rng.choice((b"", b"\xc0", b"\x01"))] * rng.choice((1, 5, 50, 2000))


def _foreign(rng: random.Random, frames: Frames, others: Sequence[Frames]) -> Frames:
    """A frame of another message in place of one of these."""
    index = rng.randrange(len(frames))
    return [*frames[:index], rng.choice(rng.choice(others)), *frames[index + 1 :]]


def _one_frame(rng: random.Random, frames: Frames, _: Sequence[Frames]) -> Frames:
    index = rng.randrange(len(frames))
    return [*frames[:index], spoil_frame(rng, frames[index]), *frames[index + 1 :]]


def _one_argument(rng: random.Random, frames: Frames, others: Sequence[Frames]) -> Frames:
    return frames[:1] + (_one_frame(rng, frames[1:], others) if len(frames) > 1 else [])


_SPOILING: Final[Sequence[Callable[[random.Random, Frames, Sequence[Frames]], Frames]]] = (
    *(_one_argument,) * 10,
    *(_one_frame,) * 2,
    _drop,
    _repeat,
    _swap,
    _empty,
    _many,
    _foreign,
)


def spoil(rng: random.Random, frames: Frames, others: Sequence[Frames]) -> Frames:
    """The operation and the arguments of a request, spoiled once or more. `others`: requests to take frames from."""
    while frames and rng.random() < 0.7:
        frames = rng.choice(_SPOILING)(rng, frames, others)
        if rng.random() < 0.5:
            break
    return frames


def noise(rng: random.Random) -> Frames:
    """Frames that mean nothing."""
    return [rng.randbytes(rng.choice((0, 1, 2, 5, 30, 500))) for _ in range(rng.choice((1, 1, 2, 3, 6, 30)))]
