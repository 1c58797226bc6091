"""Sizes as people write them."""

from __future__ import annotations

import re
from fractions import Fraction

_UNITS = {
    "B": 1,
    "kB": 10**3,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KiB": 1 << 10,
    "MiB": 1 << 20,
    "GiB": 1 << 30,
    "TiB": 1 << 40,
}
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?([A-Za-z]+)")


def is_size(text: str) -> bool:
    """Whether a text is a size."""
    match = _SIZE.fullmatch(text)
    return match is not None and match[2] in _UNITS


def parse_size(value: int | str) -> int:
    """Bytes from `4GiB`, `1.5 GiB`, `500MB` or a plain number. Raises ValueError for anything else.

    Units with an i are powers of 1024, units without are powers of 1000; parts of a byte are dropped.
    """
    if isinstance(value, int):
        return value
    match = _SIZE.fullmatch(value)
    if match is None or match[2] not in _UNITS:
        raise ValueError(f"{value!r} is not a size such as 4GiB, 512MiB, 500MB or a number of bytes")
    # NOTE: A fraction, since 0.1 TiB in floating point is off by a few bytes.
    return int(Fraction(match[1]) * _UNITS[match[2]])
