"""What a simulation finds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from engine import HitRatios, Trace
from service.simulate.options import CacheSize

DIGITS = 6
"""Of a ratio in JSON."""


@dataclass(frozen=True, slots=True)
class Result:
    """One policy at one size."""

    policy: str
    size: CacheSize
    capacity: int
    """The size in blocks."""
    ratios: HitRatios


@dataclass(frozen=True, slots=True)
class TraceResults:
    """All results of one trace."""

    file: str
    trace: Trace
    results: Sequence[Result]

    def of(self, policy: str) -> list[Result]:
        """One policy's, in the order of the sizes as they were given."""
        return [result for result in self.results if result.policy == policy]

    @property
    def policies(self) -> list[str]:
        """In the order in which they were given."""
        return list(dict.fromkeys(result.policy for result in self.results))

    @property
    def most_hits(self) -> float:
        """The part of all references that an infinite cache has: all but the first of each block."""
        return 1 - self.trace.unique / self.trace.references


def as_json(file: str, result: Result) -> str:
    """One line of `--json`."""
    return json.dumps(
        {
            "trace": file,
            "policy": result.policy,
            "size": result.size.text,
            "capacity_blocks": result.capacity,
            "block_hit_ratio": round(result.ratios.blocks, DIGITS),
            "byte_hit_ratio": round(result.ratios.tokens, DIGITS),
        }
    )
