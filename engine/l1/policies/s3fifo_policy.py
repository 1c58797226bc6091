"""S3-FIFO: three queues, of which a small one lets go of what is not used again soon.

Yang, Zhang, Qiu, Yue, Rashmi: FIFO queues are all you need for cache eviction, SOSP 2023. With bytes for objects.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from typing import Final

from engine.l1.policies.base import NOT_ARRIVED, Arrival, GatedQueue, Ranked
from engine.l1.policies.ghosts import Ghosts

_SMALL_SHARE: Final = 0.1
_MOST_USES: Final = 3
"""What `stamp` counts up to."""


class Policy(Arrival):
    """New objects come to the small queue, a tenth of the capacity, and are evicted from there unless they were used
    more than once; those move to the main queue, as do objects that come back while their ghost is remembered. The main
    queue gives each use since the last turn another turn. Ghosts are remembered for a capacity of evicted bytes.
    """

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self._small, self._main = GatedQueue(self), GatedQueue(self)
        self._ghosts = Ghosts()
        self._expected: Hashable = None
        self._is_known = False

    def expect(self, key: Hashable, size: int) -> None:
        self._expected, self._is_known = key, self._ghosts.take(key) is not None

    def insert(self, ranked: Ranked, parent: Ranked | None) -> None:
        queue = self._main if self._is_known and self._expected == ranked.key else self._small
        ranked.stamp = NOT_ARRIVED
        queue.add(ranked)

    def hit(self, objects: Iterable[Ranked]) -> None:
        for ranked in objects:
            if 0 <= ranked.stamp < _MOST_USES:
                ranked.stamp += 1

    def evict(self, ranked: Ranked) -> None:
        if ranked.queue is self._small:
            self._ghosts.add(ranked.key, ranked.size)
            self._ghosts.trim(self.capacity)
        self.remove(ranked)

    def clear(self) -> None:
        self._small.forget()
        self._main.forget()
        self._ghosts = Ghosts()

    def victims(self) -> Iterator[Ranked]:
        small, main = self._small, self._main
        left = small.size
        """Bytes of the small queue when all named so far are gone."""
        next_small, next_main = small.first, main.first
        while next_small or next_main:
            if next_small and (left >= _SMALL_SHARE * self.capacity or not next_main):
                ranked, next_small = next_small, small.behind(next_small)
                if ranked.held:
                    small.unlink(ranked)
                    continue
                left -= ranked.size
                if ranked.stamp > 1:
                    small.drop(ranked)
                    ranked.stamp = 0
                    main.add(ranked)
                    main.append(ranked)
                    next_main = next_main or ranked
                    continue
            else:
                assert next_main is not None
                ranked = next_main
                if ranked.held or ranked.stamp:
                    next_main = main.behind(ranked)
                    main.unlink(ranked)
                    if not ranked.held:
                        ranked.stamp -= 1
                        main.append(ranked)
                        next_main = next_main or ranked
                    continue
                next_main = main.behind(ranked)
            yield ranked

    def members(self) -> Iterator[Ranked]:
        for queue in (self._main, self._small):
            for ranked in reversed(queue):
                if not ranked.held:
                    yield ranked

    def adopt(self, ranked: Ranked) -> None:
        self._ghosts.take(ranked.key)
        ranked.stamp = 0
        self._small.add(ranked)
        self._small.prepend(ranked)
