"""Hit density: evicts where the fewest hits are to be expected for the space and time that they take.

The idea is that of Beckmann, Chen, Cidon: LHD: improving cache hit rate by maximizing hit density, NSDI 2018. How long
it takes until an object is used again is estimated as survival times are (Kaplan, Meier: Nonparametric estimation from
incomplete observations, 1958), since most objects are still waiting when one looks.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator
from typing import Final, NamedTuple

from engine.l1.policies.base import Queue, Ranked, Recency
from engine.l1.policies.ghosts import Ghosts

_TICKS: Final = 1024
"""Steps of the clock in the time in which a capacity of bytes is used. Ages are counted in them."""
_DECAY: Final = 0.998
"""What observations keep of their weight in that time: half of it after 346 such times.

Where long prompts meet little memory, a capacity is a dozen prompts, so that it takes many to see anything.
"""
_GHOST_CAPACITIES: Final = 4
"""Evicted bytes that are remembered, in capacities: so far beyond the capacity it is seen what would have been hit."""
_GHOST_TICKS: Final = 16
"""So exactly it is remembered when an evicted object was used: with few different times there is little to remember."""
_BUCKETS: Final = 4 * 44
"""Ages are told apart in fourths of an octave, up to 2^45 ticks; the last one has all above too."""


class Policy(Recency):
    """Objects are in three classes, each in the order of use: reused ones, which have been hit or came back while they
    were remembered; ends, the last chunks of what was stored, which a longer prompt often replaces; and the others.

    Of each class it is known at which ages objects are used again, be it after their eviction. From that follows how
    many hits a byte will have for the time that it stays, at each age: its density. The victim is the oldest object of
    the class whose oldest has the lowest density; among equals, as when nothing is known yet, the least recently used
    of those that were never reused, if there are any.

    A density looks ahead only as far as a class can be kept: until the age at which it would fill the capacity alone.
    Hits that come later are no reason to keep the many that arrive; they would go before, having displaced others.
    """

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        # Ends come first, so that of a prompt's chunks that are equal in all else the last one goes first. Reused ones
        # come last, and go after others of the same density.
        self._ends, self._fresh, self._reused = self._classes = (_Class(self, 0), _Class(self, 1), _Class(self, 2))
        self._ghosts = Ghosts()
        self._expected: Hashable = None
        self._is_known = False
        self._tick = 0
        self._spent = 0
        """Bytes used since the last step of the clock, times `_TICKS`."""
        self._compute_at = _TICKS

    def expect(self, key: Hashable, size: int) -> None:
        self._expected = key
        ghost = self._ghosts.take(key)
        self._is_known = ghost is not None
        if ghost is not None:
            assert isinstance(ghost.mark, _Mark)
            self._classes[ghost.mark.place].was_hit(self._tick, ghost.mark.stamp, ghost.size)

    def insert(self, ranked: Ranked, parent: Ranked | None) -> None:
        if parent is not None and parent.queue is self._ends:
            self._move(parent, self._fresh, parent.stamp)
        is_back = self._is_known and self._expected == ranked.key
        ranked.stamp = self._tick
        (self._reused if is_back else self._ends).enter(ranked)
        self._spend(ranked.size)

    def hit(self, objects: Iterable[Ranked]) -> None:
        # PERF: Chunks of one prompt have most often been used together before, so what is noted of them is noted once.
        tick, reused, spent = self._tick, self._reused, 0
        queue, stamp, size = None, 0, 0
        for ranked in objects:
            if ranked.queue is not queue or ranked.stamp != stamp:
                self._note_hits(queue, stamp, size)
                queue, stamp, size = ranked.queue, ranked.stamp, 0
            size += ranked.size
            spent += ranked.size
            ranked.stamp = tick
            if queue is not reused:
                stands = ranked.before is not None
                queue.drop(ranked)  # type: ignore[union-attr]  # what can be hit is in a class
                reused.add(ranked)
                if stands:
                    reused.append(ranked)
            elif ranked.before is not None:
                reused.renew(ranked)
        self._note_hits(queue, stamp, size)
        if spent:
            reused.waiting[tick] += spent
            self._spend(spent)

    def evict(self, ranked: Ranked) -> None:
        queue = ranked.queue
        assert isinstance(queue, _Class)
        queue.leave(ranked)
        stamp = ranked.stamp - ranked.stamp % _GHOST_TICKS
        queue.waiting[stamp] += ranked.size
        self._ghosts.add(ranked.key, ranked.size, _Mark(queue.place, stamp))
        for size, mark in self._ghosts.trim(_GHOST_CAPACITIES * self.capacity):
            assert isinstance(mark, _Mark)
            self._classes[mark.place].was_forgotten(self._tick, mark.stamp, size)

    def remove(self, ranked: Ranked) -> None:
        queue = ranked.queue
        assert isinstance(queue, _Class)
        queue.leave(ranked)

    def clear(self) -> None:
        self._ghosts = Ghosts()
        for queue in self._classes:
            queue.forget()
            queue.waiting.clear()

    def victims(self) -> Iterator[Ranked]:
        tick = self._tick
        oldest = [queue.first for queue in self._classes]
        while True:
            lowest, stamp, place = -1.0, 0, -1
            for index, ranked in enumerate(oldest):
                if ranked is not None:
                    density = self._classes[index].densities[_bucket(tick - ranked.stamp)]
                    if (
                        place < 0
                        or density < lowest
                        or (density == lowest and ranked.stamp < stamp and index < self._reused.place)
                    ):
                        lowest, stamp, place = density, ranked.stamp, index
            if place < 0:
                return
            ranked = oldest[place]
            assert ranked is not None
            oldest[place] = self._classes[place].behind(ranked)
            yield ranked

    def members(self) -> Iterator[Ranked]:
        for queue in reversed(self._classes):
            yield from reversed(queue)

    def adopt(self, ranked: Ranked) -> None:
        ghost = self._ghosts.take(ranked.key)
        if ghost is not None:
            assert isinstance(ghost.mark, _Mark)
            self._classes[ghost.mark.place].end_wait(ghost.mark.stamp, ghost.size)
        # When it was used is not known; before all that is here, if only by a tick.
        first, others = self._fresh.first, (self._ends.first, self._reused.first)
        before = min([self._tick, *(other.stamp for other in others if other)]) - 1
        ranked.stamp = min(before, first.stamp) if first else before
        self._fresh.enter(ranked)
        self._fresh.prepend(ranked)

    def _note_hits(self, queue: Queue | None, stamp: int, size: int) -> None:
        """Bytes of a class, last used at `stamp`, are used again."""
        if size:
            assert isinstance(queue, _Class)
            queue.was_hit(self._tick, stamp, size)

    def _move(self, ranked: Ranked, queue: _Class, stamp: int) -> None:
        """To a class, with a last use; at the end of the line if it stands in one."""
        present = ranked.queue
        assert isinstance(present, _Class)
        stands = ranked.before is not None
        present.leave(ranked)
        ranked.stamp = stamp
        queue.enter(ranked)
        if stands:
            queue.append(ranked)

    def _spend(self, size: int) -> None:
        steps, self._spent = divmod(self._spent + size * _TICKS, self.capacity)
        if steps:
            self._tick += steps
            if self._tick >= self._compute_at:
                self._compute_at = self._tick + _TICKS
                self._compute()

    def _compute(self) -> None:
        lost = [queue.lost(self._tick) for queue in self._classes]
        came = [sum(queue.hits) + sum(each) for queue, each in zip(self._classes, lost, strict=True)]
        everything = sum(came)
        for queue, each, part in zip(self._classes, lost, came, strict=True):
            queue.compute(each, part / everything if everything else 0.0)


class _Mark(NamedTuple):
    """What is remembered of an evicted object."""

    place: int
    """Its class."""
    stamp: int
    """Its last use."""


class _Class(Queue):
    """One class, with what happened to its objects by age: the ticks since their last use."""

    __slots__ = ("densities", "forgotten", "hits", "place", "waiting")

    def __init__(self, owner: Policy, place: int) -> None:
        super().__init__(owner)
        self.place: Final = place
        """Among the owner's classes."""
        self.waiting: defaultdict[int, int] = defaultdict(int)
        """Bytes by the tick of their last use: of objects here, and of those evicted from here that are remembered."""
        self.hits = [0.0] * _BUCKETS
        """Bytes that were used again at this age."""
        self.forgotten = [0.0] * _BUCKETS
        """Bytes that were not, until this age."""
        self.densities = [0.0] * _BUCKETS
        """The most hits in bytes, of a byte of this age, for each byte and tick that it stays from now on."""

    def enter(self, ranked: Ranked) -> None:
        """Counts an object, not in line yet, that waits to be used again."""
        self.add(ranked)
        self.waiting[ranked.stamp] += ranked.size

    def leave(self, ranked: Ranked) -> None:
        """It waits here no more."""
        self.drop(ranked)
        self.end_wait(ranked.stamp, ranked.size)

    def was_hit(self, tick: int, stamp: int, size: int) -> None:
        """Bytes, last used at `stamp`, are used again."""
        self.hits[_bucket(tick - stamp)] += size
        self.end_wait(stamp, size)

    def was_forgotten(self, tick: int, stamp: int, size: int) -> None:
        """Bytes that had been evicted are remembered no more."""
        self.forgotten[_bucket(tick - stamp)] += size
        self.end_wait(stamp, size)

    def end_wait(self, stamp: int, size: int) -> None:
        """Bytes that were last used at `stamp` do not wait any more."""
        left = self.waiting[stamp] - size
        if left:
            self.waiting[stamp] = left
        else:
            del self.waiting[stamp]

    def lost(self, tick: int) -> list[float]:
        """Bytes by the age until which they were seen, not having been used again."""
        lost = self.forgotten.copy()
        for stamp, size in self.waiting.items():
            lost[_bucket(tick - stamp)] += size
        return lost

    def compute(self, lost: list[float], part: float) -> None:
        """The densities anew, with what was `lost` by age; the observations lose weight.

        `part`: which part of all bytes that are used comes to be in this class.
        """
        cohort = self._cohort(lost)
        last = _last_kept(cohort, part)
        self.densities = [0.0] * _BUCKETS
        # The density at an age is the best ratio of hits to time over all ages until which the object might be kept.
        # From the last age on, ranges are joined for as long as that raises the ratio: O(buckets). Objects that are
        # older, as when few came for a while, are kept for what comes at once.
        ranges: list[tuple[float, float]] = []
        for bucket in range(len(cohort) - 1, -1, -1):
            hits, time = cohort[bucket]
            if bucket >= last:
                ranges.clear()
            while ranges and ranges[-1][0] * time >= hits * ranges[-1][1]:
                more_hits, more_time = ranges.pop()
                hits, time = hits + more_hits, time + more_time
            ranges.append((hits, time))
            self.densities[bucket] = hits / time if time else 0.0
        self.hits = [_DECAY * hits for hits in self.hits]
        self.forgotten = [_DECAY * forgotten for forgotten in self.forgotten]

    def _cohort(self, lost: list[float]) -> list[tuple[float, float]]:
        """Of bytes kept until they are used again: the share that is hit at each age, and the time until then.

        Up to the highest age at which anything was seen.
        """
        seen = _BUCKETS
        while seen and not (self.hits[seen - 1] or lost[seen - 1]):
            seen -= 1
        older = 0.0
        shares = [0.0] * seen
        """Of those that reach an age, the share that is hit at it."""
        for bucket in range(seen - 1, -1, -1):
            # Those that are not seen any further, but were not hit, have been there for half of the range.
            reached = older + self.hits[bucket] + lost[bucket] / 2
            older += self.hits[bucket] + lost[bucket]
            shares[bucket] = self.hits[bucket] / reached if reached else 0.0
        left, cohort = 1.0, []
        for share, width in zip(shares, _WIDTHS, strict=False):
            cohort.append((left * share, width * left * (1 - share / 2)))
            left *= 1 - share
        return cohort


def _last_kept(cohort: list[tuple[float, float]], part: float) -> int:
    """The last bucket until which there is space for all that are in a class, if nothing else takes any.

    What comes in a tick, times the ticks for which it stays: so much is there at any time.
    """
    last, stay = 0, 0.0
    for bucket, (_, time) in enumerate(cohort):
        stay += time
        if part * stay > _TICKS:
            break
        last = bucket
    return last


def _bucket(age: int) -> int:
    """0, 1, 2, ... 7 for these ages, 8 for 8 and 9, 9 for 10 and 11, 12 for 16 to 19, ..."""
    return _NEAR[age] if age < len(_NEAR) else _far(age)


def _far(age: int) -> int:
    """The bucket of any age."""
    if age < 8:
        return age
    octave = age.bit_length() - 3
    return min(4 * octave + (age >> octave), _BUCKETS - 1)


_NEAR: Final = [_far(age) for age in range(8 * _TICKS)]
"""PERF: Nearly all ages that are met."""


def _youngest(bucket: int) -> int:
    """The lowest age in a bucket."""
    if bucket < 8:
        return bucket
    octave = bucket // 4 - 1
    return bucket - 4 * octave << octave


_WIDTHS: Final = [_youngest(bucket + 1) - _youngest(bucket) for bucket in range(_BUCKETS)]
