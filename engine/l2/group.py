"""All tiers with their threads: made from settings, found by name, attached and detached while running."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final

from engine.errors import StartError, TierError
from engine.events import Event, Find, Found, Load, Loaded, Saved, TierEffect
from engine.l2.base import L2Adapter
from engine.l2.tier import L2Tier
from engine.settings import L2Settings
from engine.status import TierReport
from engine.supervision import Supervisor

OPEN_SECONDS: Final = 30.0
"""For the storage of a required tier to be reached at the start."""
_STOP_SECONDS: Final = 5.0


class TierGroup:
    """`submit`, `reports` and `expire` are the engine thread's; the others may be called from any one thread."""

    def __init__(
        self,
        make: Callable[[L2Settings], L2Adapter],
        arena: memoryview,
        post: Callable[[Event], None],
        clock: Callable[[], float],
        supervisor: Supervisor | None = None,
    ) -> None:
        """`make`: an adapter from settings; raises StartError."""
        self._make = make
        self._arena = arena
        self._post = post
        self._clock = clock
        self._supervisor = supervisor or Supervisor()
        self._tiers: Mapping[str, L2Tier] = {}
        """Replaced as a whole."""

    def get(self, name: str) -> L2Tier:
        """Raises TierError if there is none of that name."""
        tier = self._tiers.get(name)
        if tier is None:
            known = ", ".join(self._tiers) or "none"
            raise TierError(f"there is no L2 tier {name!r}; there are: {known}")
        return tier

    @property
    def tiers(self) -> list[L2Tier]:
        """In the order in which they are asked."""
        return list(self._tiers.values())

    def attach(self, settings: tuple[L2Settings, ...]) -> list[L2Tier]:
        """Starts what is new in these settings, which are all there are; returns what is not among them any more.

        A tier whose adapter and threads stay as they are goes on. Raises StartError, and then nothing has changed:
        a required tier that is not reached in time is a reason.
        """
        made: list[L2Tier] = []
        tiers: dict[str, L2Tier] = {}
        try:
            for each in settings:
                present = self._tiers.get(each.name)
                if present is None or not _is_same(present.settings, each):
                    former = present
                    present = L2Tier(each, self._make(each), self._arena, self._post, self._clock, self._supervisor)
                    present.is_paused = former is not None and former.is_paused and _is_kept(former.settings, each)
                    present.start()
                    made.append(present)
                tiers[each.name] = present
            self._await_required(made)
        except BaseException:
            for tier in made:
                tier.stop(_STOP_SECONDS)
            raise
        left = [tier for tier in self._tiers.values() if tier not in tiers.values()]
        for each in settings:
            tiers[each.name].settings = each
        self._tiers = tiers
        return left

    def submit(self, effect: TierEffect) -> None:
        """Hands something to its tier; what no tier is there for is answered at once."""
        tier = self._tiers.get(effect.tier)
        if tier is not None:
            tier.submit(effect)
        else:
            self._post(_unavailable(effect, self._clock()))

    def reports(self) -> Mapping[str, TierReport]:
        """By name."""
        return {name: tier.report() for name, tier in self._tiers.items()}

    def expire(self, now: float) -> None:
        """Gives up what has waited too long. Called about once a second."""
        for tier in self._tiers.values():
            tier.expire(now)

    def stop(self) -> list[str]:
        """Ends all threads, in bounded time; returns the names of those that do not end."""
        deadline = self._clock() + _STOP_SECONDS
        for tier in self._tiers.values():
            tier.stop(0)
        return [name for tier in self._tiers.values() for name in tier.stop(max(0.1, deadline - self._clock()))]

    def _await_required(self, tiers: list[L2Tier]) -> None:
        deadline = self._clock() + OPEN_SECONDS
        for tier in tiers:
            if tier.settings.required and (problem := tier.await_open(max(0.0, deadline - self._clock()))):
                raise StartError(
                    f"the L2 tier {tier.settings.name!r} is required and could not be opened within "
                    f"{OPEN_SECONDS:g} seconds: {problem}; mend that, or set its `required` to false"
                )


def _is_same(present: L2Settings, new: L2Settings) -> bool:
    """Whether adapter and threads can stay; what else differs is the engine's business, or changes while they run."""
    kept = replace(
        present,
        store_policy=new.store_policy,
        selective_uses=new.selective_uses,
        promote=new.promote,
        prefetch=new.prefetch,
        required=new.required,
        scrub=new.scrub,
    )
    return kept == new


def _is_kept(former: L2Settings, new: L2Settings) -> bool:
    """Whether the engine takes it for the same tier, which stays paused if it was."""
    return (former.type, former.options) == (new.type, new.options)


def _unavailable(effect: TierEffect, now: float) -> Event:
    if isinstance(effect, Find):
        return Found(now, effect.ticket, (False,) * len(effect.keys))
    return (Loaded if isinstance(effect, Load) else Saved)(now, effect.ticket, "unavailable")
