"""Requests replayed against an eviction policy, as the server's L1 would serve them. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from engine.l1.policies.base import EvictionPolicy, Ranked

BLOCK_SIZE = 1
"""What the policy is told of a block's size: capacity is counted in blocks."""


class Replay:
    """An L1 of `capacity` blocks, all of one size, and one request after the other.

    The policy hears the same calls in the same order as it does in the server for a request that is looked up,
    retrieved, stored where it was absent, and ended before the next one arrives.
    """

    def __init__(self, policy: EvictionPolicy, capacity: int) -> None:
        self._policy = policy
        self._free = capacity
        self._resident: dict[int, Ranked] = {}

    def request(self, blocks: Sequence[int]) -> int:
        """Serves a request; returns how many leading blocks were there."""
        resident, policy = self._resident, self._policy
        prefix: list[Ranked] = []
        for block in blocks:
            ranked = resident.get(block)
            if ranked is None:
                break
            policy.hold(ranked)
            prefix.append(ranked)
        hits = len(prefix)
        parent = prefix[-1] if prefix else None
        prefix.reverse()
        policy.hit(prefix)
        if hits < len(blocks):
            self._store(blocks[hits:], parent)
        for ranked in prefix:
            policy.unhold(ranked)
        return hits

    def _store(self, blocks: Sequence[int], parent: Ranked | None) -> None:
        """Stores what is absent, as far as there is room."""
        resident, policy = self._resident, self._policy
        present = [resident[block] for block in reversed(blocks) if block in resident]
        for ranked in present:
            policy.hold(ranked)
        policy.hit(present)
        stored: list[Ranked] = []
        for block in blocks:
            if block in resident:
                parent = resident[block]
                continue
            policy.expect(block, BLOCK_SIZE)
            if self._free:
                self._free -= 1
            else:
                victim = next(policy.victims(), None)
                if victim is None:
                    break
                policy.evict(victim)
                del resident[victim.key]  # type: ignore[arg-type]  # the keys are blocks here
            ranked = resident[block] = Ranked(block, BLOCK_SIZE)
            policy.insert(ranked, parent)
            parent = ranked
            stored.append(ranked)
        for ranked in present:
            policy.unhold(ranked)
        for ranked in reversed(stored):
            policy.unhold(ranked)
        if present:
            policy.refresh([resident[block] for block in reversed(blocks) if block in resident])
