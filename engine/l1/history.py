"""Why an object is not there. Pure; bounded, whatever comes and goes."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, Final

from engine.status import MissReason

_REMEMBERED: Final = 32_768
"""Departed objects whose reason is known; about 300 bytes each, 10 MB."""
_CLEARED_LIMIT: Final = 1 << 20
"""Objects of one clear that are remembered, at most; the table that held them is kept for that."""
_FILTER_BITS: Final = 26
_FILTER_MASK: Final = (1 << _FILTER_BITS) - 1


class History:
    """What became of the objects that were in L1. Belongs to the engine thread.

    Reasons are known of those that left last. A Bloom filter of 8 MiB with three bits a key knows every key that was
    ever stored, so that "never stored" is never said of one that was. It fills up: of 10 million stored objects on,
    more than one new key in twenty is taken for an old one, and "not remembered" said of it.
    """

    def __init__(self) -> None:
        self._left: OrderedDict[bytes, MissReason] = OrderedDict()
        self._cleared: dict[bytes, Any] = {}
        self._stored = bytearray(1 << (_FILTER_BITS - 3))

    def stored(self, key: bytes) -> None:
        """The object is there."""
        self._left.pop(key, None)
        self._cleared.pop(key, None)
        stored = self._stored
        for bit in _bits(key):
            stored[bit >> 3] |= 1 << (bit & 7)

    def left(self, key: bytes, reason: MissReason) -> None:
        """The object is not there any more, or could not come."""
        left = self._left
        left[key] = reason
        left.move_to_end(key)
        if len(left) > _REMEMBERED:
            left.popitem(last=False)

    def cleared(self, table: dict[bytes, Any]) -> None:
        """All these objects were cleared at once. The table belongs to the history from now on."""
        if table:
            self._cleared = table if len(table) <= _CLEARED_LIMIT else {}

    def reason(self, key: bytes) -> MissReason:
        """Why an object that is not there is not there."""
        found = self._left.get(key)
        if found is not None:
            return found
        if key in self._cleared:
            return "cleared"
        return "not_remembered" if self._was_stored(key) else "never_stored"

    def _was_stored(self, key: bytes) -> bool:
        stored = self._stored
        return all(stored[bit >> 3] & 1 << (bit & 7) for bit in _bits(key))


def _bits(key: bytes) -> tuple[int, int, int]:
    """Three bits of the filter, by double hashing (Kirsch and Mitzenmacher, 2006).

    PERF: Python keeps the hash of a key that was looked up in a table, as this one has just been.
    """
    first = hash(key)
    step = first >> 32 | 1
    return first & _FILTER_MASK, (first + step) & _FILTER_MASK, (first + 2 * step) & _FILTER_MASK
