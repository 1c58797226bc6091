"""From one eviction policy to another without losing what is cached, a part at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from typing import Final

from engine.l1.policies.base import EvictionPolicy


class Handover(EvictionPolicy):
    """Ranks with two policies while objects move from the old one to the new one, the coldest first.

    What arrived at the new one is evicted before what has not: that is the old one's order for as long as it lasts.
    """

    def __init__(self, old: EvictionPolicy, new: EvictionPolicy) -> None:
        self._old = old
        self.new: Final = new

    def move(self, count: int, size_of: Callable[[bytes], int]) -> bool:
        """Moves up to `count` objects; returns True when there is none left."""
        moving = list(islice(self._old.victims(), count))
        for key in moving:
            self._old.remove(key)
            self.new.insert(key, size_of(key))
        return len(moving) < count

    def insert(self, key: bytes, size: int) -> None:
        self.new.insert(key, size)

    def touch(self, keys: Iterable[bytes]) -> None:
        used = list(keys)
        self._old.touch(used)
        self.new.touch(used)

    def hold(self, key: bytes) -> None:
        self._old.hold(key)
        self.new.hold(key)

    def unhold(self, key: bytes, size: int) -> None:
        self._old.remove(key)
        self.new.unhold(key, size)

    def remove(self, key: bytes) -> None:
        self._old.remove(key)
        self.new.remove(key)

    def victims(self) -> Iterator[bytes]:
        return chain(self.new.victims(), self._old.victims())

    def clear(self) -> None:
        self._old.clear()
        self.new.clear()
