"""Least recently used."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator

from engine.l1.policies.base import EvictionPolicy


class Policy(EvictionPolicy):
    """Evicts what was not used for longest. O(1) a chunk; one table entry for each evictable object."""

    def __init__(self) -> None:
        self._order: OrderedDict[bytes, None] = OrderedDict()

    def insert(self, key: bytes, size: int) -> None:
        self._order[key] = None

    def touch(self, keys: Iterable[bytes]) -> None:
        order = self._order
        for key in keys:
            if key in order:
                order.move_to_end(key)

    def hold(self, key: bytes) -> None:
        self._order.pop(key, None)

    def unhold(self, key: bytes, size: int) -> None:
        self._order[key] = None

    def remove(self, key: bytes) -> None:
        self._order.pop(key, None)

    def victims(self) -> Iterator[bytes]:
        return iter(self._order)

    def clear(self) -> None:
        self._order.clear()
