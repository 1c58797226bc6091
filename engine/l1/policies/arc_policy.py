"""ARC: recency and frequency in balance, by what turns out to be missing.

Megiddo, Modha: ARC: a self-tuning, low overhead replacement cache, FAST 2003, figure 4. With bytes for pages.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator

from engine.l1.policies.base import Queue, Ranked, Recency
from engine.l1.policies.ghosts import Ghosts


class Policy(Recency):
    """Objects used once are in T1, those used again in T2; B1 and B2 remember what was evicted from each.

    `p` is the size that T1 should have. An object that comes back while it is in B1 raises it, one in B2 lowers it. All
    four together are worth two capacities at most, T1 and B1 one.
    """

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self._t1, self._t2 = Queue(self), Queue(self)
        self._b1, self._b2 = Ghosts(), Ghosts()
        self._p = 0.0
        self._expected: Hashable = None
        self._from: Ghosts | None = None
        """Where the expected object was remembered."""

    def set_capacity(self, capacity: int) -> None:
        super().set_capacity(capacity)
        self._p = min(self._p, capacity)
        self._trim()

    def expect(self, key: Hashable, size: int) -> None:
        b1, b2 = self._b1.size, self._b2.size
        self._expected, self._from = key, None
        if self._b1.take(key) is not None:
            self._from = self._b1
            self._p = min(self.capacity, self._p + size * max(1.0, b2 / b1))
        elif self._b2.take(key) is not None:
            self._from = self._b2
            self._p = max(0.0, self._p - size * max(1.0, b1 / b2))

    def insert(self, ranked: Ranked, parent: Ranked | None) -> None:
        is_back = self._from is not None and self._expected == ranked.key
        (self._t2 if is_back else self._t1).add(ranked)
        self._trim()

    def hit(self, objects: Iterable[Ranked]) -> None:
        t2 = self._t2
        for ranked in objects:
            stands = ranked.before is not None
            if ranked.queue is not t2:
                self._t1.drop(ranked)
                t2.add(ranked)
                if stands:
                    t2.append(ranked)
            elif stands:
                t2.renew(ranked)

    def evict(self, ranked: Ranked) -> None:
        (self._b1 if ranked.queue is self._t1 else self._b2).add(ranked.key, ranked.size)
        self.remove(ranked)

    def clear(self) -> None:
        self._t1.forget()
        self._t2.forget()
        self._b1, self._b2 = Ghosts(), Ghosts()

    def victims(self) -> Iterator[Ranked]:
        t1, t2 = self._t1, self._t2
        left = t1.size
        """Bytes of T1 when all named so far are gone."""
        first, second = t1.first, t2.first
        while first or second:
            too_large = left > self._p or (self._from is self._b2 and left >= self._p)
            if first and (second is None or (left and too_large)):
                ranked, first = first, t1.behind(first)
                left -= ranked.size
            else:
                assert second is not None
                ranked, second = second, t2.behind(second)
            yield ranked

    def members(self) -> Iterator[Ranked]:
        yield from reversed(self._t2)
        yield from reversed(self._t1)

    def adopt(self, ranked: Ranked) -> None:
        self._b1.take(ranked.key)
        self._b2.take(ranked.key)
        self._t1.add(ranked)
        self._t1.prepend(ranked)

    def _trim(self) -> None:
        self._b1.trim(max(0, self.capacity - self._t1.size))
        self._b2.trim(max(0, 2 * self.capacity - self._t1.size - self._t2.size - self._b1.size))
