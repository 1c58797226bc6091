"""From one eviction policy to another without losing what is cached, a part at a time."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from typing import Final

from engine.l1.policies.base import EvictionPolicy


class Handover(EvictionPolicy):
    """Ranks with two policies while objects move from the old one to the new one, the coldest first.

    What arrived at the new one is evicted before what has not, and that before what was stored or used meanwhile, which
    moves last: so it is the old one's order for as long as it lasts. While that last part moves, what is stored or used
    goes to the new one directly, so that it ends.
    """

    def __init__(self, old: EvictionPolicy, new: EvictionPolicy) -> None:
        self._old = old
        self.new: Final = new
        self._used: OrderedDict[bytes, None] = OrderedDict()
        """What was stored or used meanwhile, by last use."""
        self._old_is_empty = False

    def move(self, count: int, size_of: Callable[[bytes], int]) -> bool:
        """Moves up to `count` objects; returns True when there is none left."""
        moving = list(islice(self._old.victims(), count))
        if len(moving) < count:
            self._old_is_empty = True
            moving += islice(self._used, count - len(moving))
        for key in moving:
            self._old.remove(key)
            self._used.pop(key, None)
            self.new.insert(key, size_of(key))
        return len(moving) < count

    def insert(self, key: bytes, size: int) -> None:
        if self._old_is_empty:
            self.new.insert(key, size)
        else:
            self._used[key] = None

    def touch(self, keys: Iterable[bytes]) -> None:
        others = []
        for key in keys:
            if key in self._used:
                self._used.move_to_end(key)
            else:
                others.append(key)
        self._old.touch(others)
        self.new.touch(others)

    def hold(self, key: bytes) -> None:
        self._old.hold(key)
        self.new.hold(key)
        self._used.pop(key, None)

    def unhold(self, key: bytes, size: int) -> None:
        self._old.remove(key)
        if self._old_is_empty:
            self.new.unhold(key, size)
        else:
            self.new.remove(key)
            self._used[key] = None

    def remove(self, key: bytes) -> None:
        self._old.remove(key)
        self.new.remove(key)
        self._used.pop(key, None)

    def victims(self) -> Iterator[bytes]:
        return chain(self.new.victims(), self._old.victims(), self._used)

    def clear(self) -> None:
        self._old.clear()
        self.new.clear()
        self._used.clear()
