"""What the advisor tells: frozen, and complete without it. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

FACTORS: Final = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""Sizes of L1 that are estimated, in present sizes."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """What one size and policy would do."""

    policy: str
    factor: float
    size: int
    """Bytes of L1."""
    hit_ratio: float
    """Of all chunks asked for, the part that would be found."""
    has_been_full: bool
    """It has had to evict something. Before that its size has had no effect yet."""


@dataclass(frozen=True, slots=True)
class AdvisorReport:
    """One moment of the advisor. It begins anew when the size of L1 changes."""

    is_enabled: bool
    age: float
    """Seconds since it began."""
    policy: str
    """In force."""
    l1_size: int
    references: int
    """Chunks that lookups asked for since it began."""
    dropped_references: int
    """Chunks, roughly, that were not looked at: the traffic was more than there is time for."""
    sampled_references: int
    """As many as were in the sample, had its present rate held from the start."""
    sampled_chunks: int
    """Different ones that the simulations hold now."""
    sample_rate: float
    measured_hit_ratio: float
    """The server's own, of the same time."""
    estimates: tuple[Estimate, ...]
    """By policy, and for each by factor."""
    advice: str = ""
    """One sentence."""
