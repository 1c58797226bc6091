"""One simulated L1, as much smaller than the one it stands for as the sample is smaller than the traffic. Pure.

Miniature simulation (Waldspurger, Saemundsson, Ahmad, Park: Cache modeling and optimization using miniature
simulations, USENIX ATC 2017): what holds a part of the chunks in that part of the space evicts as the whole would.
"""

from __future__ import annotations

from collections.abc import Sequence

from engine.advisor.sample import STRATA, Piece, Sampled
from engine.l1.policies.base import EvictionPolicy, Ranked


class Miniature:
    """The policy hears of sampled chunks what the server's would; see `engine.simulation.replay`."""

    def __init__(self, policy: EvictionPolicy) -> None:
        self.hits = [0.0] * STRATA
        """References that hit, by stratum; scaled as those of the sample are."""
        self.has_been_full = False
        """Something had to go for something else."""
        self._policy = policy
        self._used = 0
        self._resident: dict[int, Ranked] = {}

    def __len__(self) -> int:
        return len(self._resident)

    def serve(self, piece: Piece, *, has_missed: bool = False) -> bool:
        """A request, which may have missed something before, uses chunks, or stores those that are not there.

        As for a lookup, there are no hits behind a miss. Returns True if the request has had one now.
        """
        find, policy = self._resident.get, self._policy
        chain = [ranked for sampled in piece.before if (ranked := find(sampled.id)) is not None]
        present: list[Ranked] = []
        absent: list[Sampled] = []
        for sampled in piece.now:
            ranked = find(sampled.id)
            if ranked is None:
                absent.append(sampled)
                continue
            present.append(ranked)
            if not (absent or has_missed) and sampled.stratum >= 0:
                self.hits[sampled.stratum] += 1
        chain += present
        chain.reverse()
        present.reverse()
        if not absent:
            policy.hit(present)
            policy.refresh(chain)
            return has_missed
        for ranked in chain:
            policy.hold(ranked)
        policy.hit(present)
        self._follow_last(piece.before)
        self._store(absent)
        for ranked in chain:
            policy.unhold(ranked)
        return True

    def shrink(self, capacity: int, threshold: int, factor: float) -> None:
        """The sample has a smaller part of the chunks from now on: those with ids below the threshold."""
        self.hits = [factor * hits for hits in self.hits]
        for ranked in [each for key, each in self._resident.items() if key >= threshold]:
            self._policy.remove(ranked)
            self._drop(ranked)
        self._policy.set_capacity(capacity)
        self._make_room(0)

    def clear(self) -> None:
        """L1 was emptied."""
        self._policy.clear()
        self._resident.clear()
        self._used = 0

    def _store(self, absent: Sequence[Sampled]) -> None:
        """As much of it as there is room for."""
        policy, stored = self._policy, []
        for sampled in absent:
            policy.expect(sampled.id, sampled.size)
            self.has_been_full |= self._used + sampled.size > policy.capacity
            if not self._make_room(sampled.size):
                break
            ranked = self._resident[sampled.id] = Ranked(sampled.id, sampled.size)
            self._used += sampled.size
            policy.insert(ranked, None)
            if sampled.is_followed:
                self._follow(ranked)
            stored.append(ranked)
        for ranked in reversed(stored):
            policy.unhold(ranked)

    def _make_room(self, size: int) -> bool:
        policy = self._policy
        while self._used + size > policy.capacity:
            victim = next(policy.victims(), None)
            if victim is None:
                return False
            policy.evict(victim)
            self._drop(victim)
        return True

    def _drop(self, ranked: Ranked) -> None:
        del self._resident[ranked.key]  # type: ignore[arg-type]  # the keys are ids here
        self._used -= ranked.size

    def _follow_last(self, before: Sequence[Sampled]) -> None:
        if before and before[-1].is_followed:
            ranked = self._resident.get(before[-1].id)
            if ranked is not None:
                self._follow(ranked)

    def _follow(self, parent: Ranked) -> None:
        """The policy learns that the chunk is not the last of what was stored, though the next one may not be sampled:
        one of no size comes after it, and goes.
        """
        child = Ranked(None, 0)
        self._policy.insert(child, parent)
        self._policy.remove(child)
