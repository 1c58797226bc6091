"""First in, first out: the floor that every other policy is measured against."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator

from engine.l1.policies.base import EvictionPolicy


class Policy(EvictionPolicy):
    """Evicts in the order of arrival; use does not matter, and a held object keeps its place. O(1) a chunk."""

    def __init__(self) -> None:
        self._order: OrderedDict[bytes, None] = OrderedDict()
        self._held: set[bytes] = set()

    def insert(self, key: bytes, size: int) -> None:
        self._order[key] = None

    def touch(self, keys: Iterable[bytes]) -> None:
        pass

    def hold(self, key: bytes) -> None:
        self._held.add(key)

    def unhold(self, key: bytes, size: int) -> None:
        self._held.discard(key)
        self._order.setdefault(key)

    def remove(self, key: bytes) -> None:
        self._order.pop(key, None)
        self._held.discard(key)

    def victims(self) -> Iterator[bytes]:
        return (key for key in self._order if key not in self._held)

    def clear(self) -> None:
        self._order.clear()
        self._held.clear()
