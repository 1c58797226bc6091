"""Least recently used."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from engine.l1.policies.base import Queue, Ranked, Recency


class Policy(Recency):
    """Evicts what was not used for longest. Needs no memory beyond the objects' own links."""

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self._queue = Queue(self)

    def insert(self, ranked: Ranked, parent: Ranked | None) -> None:
        self._queue.add(ranked)

    def hit(self, objects: Iterable[Ranked]) -> None:
        self.refresh(objects)

    def evict(self, ranked: Ranked) -> None:
        self._queue.drop(ranked)

    def clear(self) -> None:
        self._queue.forget()

    def victims(self) -> Iterator[Ranked]:
        return iter(self._queue)

    def members(self) -> Iterator[Ranked]:
        return reversed(self._queue)

    def adopt(self, ranked: Ranked) -> None:
        self._queue.add(ranked)
        self._queue.prepend(ranked)
