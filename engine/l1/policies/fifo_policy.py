"""First in, first out: the floor that every other policy is measured against."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from engine.l1.policies.base import NOT_ARRIVED, Arrival, GatedQueue, Ranked


class Policy(Arrival):
    """Evicts in the order of arrival, whatever is used. Needs no memory beyond the objects' own links."""

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self._queue = GatedQueue(self)

    def insert(self, ranked: Ranked, parent: Ranked | None) -> None:
        ranked.stamp = NOT_ARRIVED
        self._queue.add(ranked)

    def hit(self, objects: Iterable[Ranked]) -> None:
        pass

    def evict(self, ranked: Ranked) -> None:
        self._queue.drop(ranked)

    def clear(self) -> None:
        self._queue.forget()

    def victims(self) -> Iterator[Ranked]:
        for ranked in self._queue:
            if ranked.held:
                self._queue.unlink(ranked)
            else:
                yield ranked

    def members(self) -> Iterator[Ranked]:
        return (ranked for ranked in reversed(self._queue) if not ranked.held)

    def adopt(self, ranked: Ranked) -> None:
        ranked.stamp = 0
        self._queue.add(ranked)
        self._queue.prepend(ranked)
