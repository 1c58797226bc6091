"""What an eviction policy is. A policy ranks, and never frees: the cache asks it who should go, and does it itself."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterable, Iterator
from typing import Final

NOT_ARRIVED: Final = -1


class Ranked:
    """What a policy ranks. It carries its place in the ranking itself: no table has to be kept, or looked into."""

    __slots__ = ("after", "before", "held", "key", "queue", "size", "stamp")

    def __init__(self, key: Hashable, size: int) -> None:
        self.key = key
        self.size = size
        """Bytes occupied; does not change."""
        self.queue: Queue | None = None
        """Where the policy counts it."""
        self.before: Ranked | None = None
        """Its neighbour in the queue that goes earlier; None while it stands in none, as when it is held."""
        self.after: Ranked | None = None
        self.held = True
        """Somebody uses it, so it must not be evicted."""
        self.stamp = 0
        """For the policy."""


class Queue:
    """Objects in the order in which they are to go: a doubly linked ring, all operations O(1).

    `size` counts the bytes of all that were added, whether they stand in line now or not.
    """

    __slots__ = ("_end", "owner", "size")

    def __init__(self, owner: EvictionPolicy) -> None:
        self.owner: Final = owner
        self.size = 0
        self._end = Ranked(None, 0)
        self.forget()

    def forget(self) -> None:
        """Drops all objects at once; they are not told."""
        self.size = 0
        self._end = end = Ranked(None, 0)
        end.before = end.after = end

    def add(self, ranked: Ranked) -> None:
        """Counts an object that does not stand in line yet."""
        ranked.queue = self
        self.size += ranked.size

    def drop(self, ranked: Ranked) -> None:
        """Neither counts an object any more nor has it in line."""
        if ranked.before is not None:
            self.unlink(ranked)
        ranked.queue = None
        self.size -= ranked.size

    def append(self, ranked: Ranked) -> None:
        """To the end of the line: goes last."""
        end = self._end
        last = end.before
        ranked.before, ranked.after = last, end
        last.after = end.before = ranked  # type: ignore[union-attr]  # a ring has no open end

    def prepend(self, ranked: Ranked) -> None:
        """To the front of the line: goes next."""
        end = self._end
        first = end.after
        ranked.before, ranked.after = end, first
        first.before = end.after = ranked  # type: ignore[union-attr]

    def unlink(self, ranked: Ranked) -> None:
        """Out of line, where it must stand."""
        before, after = ranked.before, ranked.after
        before.after, after.before = after, before  # type: ignore[union-attr]
        ranked.before = ranked.after = None

    def renew(self, ranked: Ranked) -> None:
        """From its place in line to the end."""
        before, after = ranked.before, ranked.after
        before.after, after.before = after, before  # type: ignore[union-attr]
        end = self._end
        last = end.before
        ranked.before, ranked.after = last, end
        last.after = end.before = ranked  # type: ignore[union-attr]

    @property
    def first(self) -> Ranked | None:
        """Who goes next."""
        first = self._end.after
        return None if first is self._end else first

    def behind(self, ranked: Ranked) -> Ranked | None:
        """Who goes after `ranked`, which stands in line."""
        after = ranked.after
        return None if after is self._end else after

    def __iter__(self) -> Iterator[Ranked]:
        """From the front. The object in hand may be taken out."""
        ranked, end = self._end.after, self._end
        while ranked is not end:
            assert ranked is not None
            after = ranked.after
            yield ranked
            ranked = after

    def __reversed__(self) -> Iterator[Ranked]:
        """From the end. The object in hand may be taken out."""
        ranked, end = self._end.before, self._end
        while ranked is not end:
            assert ranked is not None
            before = ranked.before
            yield ranked
            ranked = before


class GatedQueue(Queue):
    """A queue with a gate in line. Whoever comes back after its turn has come goes through in front of it: next, but
    behind those who came back before.
    """

    __slots__ = ("_gate",)

    def forget(self) -> None:
        super().forget()
        self._gate = gate = Ranked(None, 0)
        self.append(gate)

    def give_back(self, ranked: Ranked) -> None:
        """To its place in front of the gate."""
        gate = self._gate
        last = gate.before
        ranked.before, ranked.after = last, gate
        last.after = gate.before = ranked  # type: ignore[union-attr]

    @property
    def first(self) -> Ranked | None:
        first = self._end.after
        return super().behind(self._gate) if first is self._gate else first

    def behind(self, ranked: Ranked) -> Ranked | None:
        after = super().behind(ranked)
        return super().behind(self._gate) if after is self._gate else after

    def __iter__(self) -> Iterator[Ranked]:
        return (ranked for ranked in super().__iter__() if ranked is not self._gate)

    def __reversed__(self) -> Iterator[Ranked]:
        return (ranked for ranked in super().__reversed__() if ranked is not self._gate)


class EvictionPolicy(ABC):
    """Ranks the objects of L1 by who is to go first. Belongs to the engine thread; every call is O(1) an object.

    The life of an object: `expect`, with room being made for it meanwhile; `insert`, held; `unhold`, when it is
    written; then any number of `hit`, `hold` and `unhold`; and `evict` or `remove` at the end. Where a call takes
    several objects they are of one prompt, last chunk first: a chunk is worth nothing once its prefix is gone, so
    suffixes have to go first.
    """

    def __init__(self, capacity: int) -> None:
        """`capacity`: bytes that the objects may occupy."""
        self.capacity = capacity

    def set_capacity(self, capacity: int) -> None:
        """The objects may occupy this many bytes from now on; nothing is evicted for that by itself."""
        self.capacity = capacity

    def expect(self, key: Hashable, size: int) -> None:  # noqa: B027  # most policies do not care
        """An object of this key and of `size` bytes is going to be stored: what has to go for it is asked next."""

    @abstractmethod
    def insert(self, ranked: Ranked, parent: Ranked | None) -> None:
        """The expected object has its place now; it is held. `parent` is the one before it in its prompt, if known."""

    @abstractmethod
    def hit(self, objects: Iterable[Ranked]) -> None:
        """A request uses these objects, held or not. Told once a request."""

    @abstractmethod
    def refresh(self, objects: Iterable[Ranked]) -> None:
        """These objects are still in use by a request whose `hit` was told: only their order changes, to this one."""

    @abstractmethod
    def hold(self, ranked: Ranked) -> None:
        """The object must not be evicted until `unhold`."""

    @abstractmethod
    def unhold(self, ranked: Ranked) -> None:
        """The object may be evicted again."""

    @abstractmethod
    def evict(self, ranked: Ranked) -> None:
        """The object was evicted; it may be remembered for the time when it comes back."""

    def remove(self, ranked: Ranked) -> None:
        """The object is gone for another reason, held or not."""
        queue = ranked.queue
        assert queue is not None  # a policy is told of its own objects only
        queue.drop(ranked)

    @abstractmethod
    def clear(self) -> None:
        """All objects are gone, and what was remembered of those that were evicted before; nobody asks for them again.
        What was learned about how objects are used stays.
        """

    @abstractmethod
    def victims(self) -> Iterator[Ranked]:
        """The objects that are not held, the one to evict first in front.

        The caller changes nothing while it iterates. Objects that stand in no one's way are named once; the ranking
        itself may be put in order meanwhile.
        """

    @abstractmethod
    def members(self) -> Iterator[Ranked]:
        """All objects that are not held, roughly the one to evict last in front. The one in hand may be removed."""

    @abstractmethod
    def adopt(self, ranked: Ranked) -> None:
        """Ranks an object, not held, that another policy ranked until now: before all that is here.

        This one may have evicted an object of the same key before that; it is remembered no more.
        """


class Recency(EvictionPolicy):
    """What policies have in common that keep objects in the order of their last use, in one or several queues.

    An object that is held does not stand in line; back in line it goes to the end of its queue.
    """

    def refresh(self, objects: Iterable[Ranked]) -> None:
        for ranked in objects:
            if ranked.before is not None:
                ranked.queue.renew(ranked)  # type: ignore[union-attr]  # what stands in line has a queue

    def hold(self, ranked: Ranked) -> None:
        ranked.held = True
        ranked.queue.unlink(ranked)  # type: ignore[union-attr]

    def unhold(self, ranked: Ranked) -> None:
        ranked.held = False
        ranked.queue.append(ranked)  # type: ignore[union-attr]


class Arrival(EvictionPolicy):
    """What policies have in common that keep objects in the order of their arrival, which is when they are written.

    An object that is held keeps its place until its turn comes. Then it is taken out of line, and goes next when it is
    not held any more: so each hold costs one step at most. The queues are gated, so that of several that come back the
    first one goes first, as a prompt's suffix has to. `stamp` is negative before the arrival.
    """

    def refresh(self, objects: Iterable[Ranked]) -> None:
        pass

    def hold(self, ranked: Ranked) -> None:
        ranked.held = True

    def unhold(self, ranked: Ranked) -> None:
        ranked.held = False
        if ranked.stamp < 0:
            ranked.stamp = 0
            ranked.queue.append(ranked)  # type: ignore[union-attr]
        elif ranked.before is None:
            queue = ranked.queue
            assert isinstance(queue, GatedQueue)
            queue.give_back(ranked)
