"""The tiers of L2 as the engine knows them: in what order they are asked, and how long lookups wait for each. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import inf
from typing import Final

from engine.settings import L2Settings, PrefetchSettings

LONGEST_WAIT: Final = 30.0
"""Seconds that a lookup waits at most, whatever is configured: no client must hang."""


@dataclass(slots=True, eq=False)
class Tier:
    """One tier in use."""

    settings: L2Settings
    bit: int
    """Its bit in `Entry.saved`; never given to another tier."""
    loaded_objects: int = 0
    """Objects that came from here into L1."""
    dropped_saves: int = 0
    """Objects not written since too much was waiting to be written."""
    paused: bool = False
    """Nothing is asked of it, by an operator's wish."""

    @property
    def name(self) -> str:
        return self.settings.name

    def wait(self, tokens: int) -> float:
        """Seconds that the lookup of a prompt may wait for this tier."""
        return patience(self.settings.prefetch, tokens)


class Tiers:
    """All tiers in the order in which they are asked, the fastest first. Belongs to the engine thread."""

    def __init__(self, settings: tuple[L2Settings, ...] = ()) -> None:
        self._tiers: list[Tier] = []
        self._next_bit = 1
        self.configure(settings)

    def __iter__(self) -> Iterator[Tier]:
        return iter(self._tiers)

    @property
    def in_use(self) -> list[Tier]:
        """Those that may be asked."""
        return [tier for tier in self._tiers if not tier.paused]

    def find(self, name: str) -> Tier | None:
        return next((tier for tier in self._tiers if tier.name == name), None)

    def configure(self, settings: tuple[L2Settings, ...]) -> None:
        """These are the tiers from now on. One that keeps its name, type and options keeps what is known of it."""
        self._tiers = [self._kept(each) or self._new(each) for each in settings]

    def forget_saved(self, tier: Tier) -> None:
        """Nothing is known any more to be in this tier."""
        tier.bit = self._new_bit()

    def faster(self, than: Tier) -> list[Tier]:
        """Those in use that are asked before it, and take over what it has."""
        if than not in self._tiers:
            return []
        before = self._tiers[: self._tiers.index(than)]
        return [tier for tier in before if tier.settings.promote and not tier.paused]

    def _kept(self, settings: L2Settings) -> Tier | None:
        tier = self.find(settings.name)
        if tier is None or tier.settings.type != settings.type or tier.settings.options != settings.options:
            return None
        tier.settings = settings
        return tier

    def _new(self, settings: L2Settings) -> Tier:
        return Tier(settings, self._new_bit())

    def _new_bit(self) -> int:
        self._next_bit <<= 1
        return self._next_bit >> 1


def patience(prefetch: PrefetchSettings, tokens: int) -> float:
    """Seconds that the lookup of a prompt of so many tokens may wait."""
    match prefetch.mode:
        case "best_effort":
            return -inf
        case "wait":
            return LONGEST_WAIT
        case "timeout":
            milliseconds = prefetch.base_ms + prefetch.per_1024_tokens_ms * tokens / 1024
            return min(milliseconds, prefetch.cap_ms, LONGEST_WAIT * 1000) / 1000
