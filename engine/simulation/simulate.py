"""One trace, one policy, one size: which part of what was asked for would have been there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple, Protocol

from engine.discovery import policy_maker, policy_names
from engine.simulation.optimal import Optimal
from engine.simulation.replay import BLOCK_SIZE, Replay
from engine.simulation.trace import Trace

OPTIMAL: Final = "optimal"
"""The optimum's name among the policies; the server has none of it, since it knows no request before it comes."""


class HitRatios(NamedTuple):
    """Parts of what was asked for, 0 to 1."""

    blocks: float
    """Hits by references."""
    tokens: float
    """The same with each block weighed by its tokens, which is by its bytes."""


class _Cache(Protocol):
    def request(self, blocks: Sequence[int]) -> int: ...


def simulated_policies() -> tuple[str, ...]:
    """What can be simulated: the server's policies and the optimum."""
    return (*policy_names(), OPTIMAL)


def simulate(
    trace: Trace, policy: str, capacity: int, progress: Callable[[int], None] = lambda references: None
) -> HitRatios:
    """Serves all requests with an L1 of `capacity` blocks that is empty at first.

    `progress` is called after each request with the number of its blocks. Raises StartError if there is no such policy.
    """
    cache = _cache(trace, policy, capacity)
    block_hits = token_hits = 0
    for request in trace.requests:
        hits = cache.request(request.blocks)
        block_hits += hits
        token_hits += request.tokens(hits)
        progress(len(request.blocks))
    return HitRatios(block_hits / trace.references, token_hits / trace.tokens)


def _cache(trace: Trace, policy: str, capacity: int) -> _Cache:
    if policy == OPTIMAL:
        return Optimal([request.blocks for request in trace.requests], capacity)
    return Replay(policy_maker(policy)(capacity * BLOCK_SIZE), capacity)
