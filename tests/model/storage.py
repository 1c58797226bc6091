"""The tiers of L2, simulated: they keep real bytes, and do what they are asked when the test chooses, in any order."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Literal

from engine.checksum import checksum
from engine.events import Event, Find, Found, Load, Loaded, Save, Saved
from engine.settings import L2Settings, PrefetchMode, PrefetchSettings, StorePolicy
from engine.status import TierOutcome
from tests.model.oracle import PAGE, Identity, Slot

How = Literal["done", "fail", "damage"]


def tier(
    name: str, store_policy: StorePolicy, mode: PrefetchMode, uses: int = 2, *, promote: bool = True
) -> L2Settings:
    prefetch = PrefetchSettings(mode, base_ms=400.0, per_1024_tokens_ms=10_000.0, cap_ms=5000.0)
    return L2Settings("memory", name, {}, store_policy, uses, promote, prefetch)


TIERS: tuple[tuple[L2Settings, ...], ...] = (
    (tier("a", "write_through", "timeout"),),
    (tier("a", "write_through", "best_effort"),),
    (tier("a", "skip_l1", "wait"),),
    (tier("a", "write_back", "wait"),),
    (tier("a", "selective", "timeout", 1), tier("b", "write_through", "wait")),
    (tier("b", "skip_l1", "wait"), tier("a", "write_through", "best_effort"), tier("c", "write_back", "timeout")),
    (tier("c", "write_back", "best_effort", promote=False), tier("b", "write_through", "timeout")),
)
"""What may be configured; tiers of one name are the same storage."""

_PROBLEMS: dict[type, tuple[TierOutcome, ...]] = {
    Load: ("unavailable", "absent", "late", "busy", "refused"),
    Save: ("unavailable", "full", "late", "busy", "refused"),
}


@dataclass(eq=False)
class Work:
    """One effect under way."""

    effect: Find | Load | Save
    slot: Slot | None
    """The oracle's, of a load or save."""
    content: bytes = b""
    """What is being saved."""


class Storage:
    """What the engine has asked for and not been told the end of, and what the tiers have."""

    def __init__(self, arena: bytearray, random: Random) -> None:
        self._arena = arena
        self._random = random
        self.work: list[Work] = []
        self.objects: dict[str, dict[bytes, bytes]] = {}
        """By tier and key."""
        self.configured: tuple[L2Settings, ...] = ()
        self.replaces_l1 = False
        """L1 may have let go of what was saved to a tier."""
        self.paused: set[str] = set()

    @property
    def in_use(self) -> list[str]:
        return [each.name for each in self.configured if each.name not in self.paused]

    @property
    def is_loading(self) -> bool:
        return any(not isinstance(each.effect, Save) for each in self.work)

    @property
    def finds(self) -> list[Work]:
        return [each for each in self.work if isinstance(each.effect, Find)]

    @property
    def loading(self) -> set[Identity]:
        return {each.slot.identity for each in self.loads if each.slot}

    @property
    def loads(self) -> list[Work]:
        return [each for each in self.work if isinstance(each.effect, Load)]

    def put(self, name: str, key: bytes, slot: Slot) -> None:
        """The tier gets what is in a slot of L1, to its last page."""
        start, end = slot.pages.start * PAGE, slot.pages.stop * PAGE
        self.objects.setdefault(name, {})[key] = bytes(self._arena[start:end])

    def keys(self, name: str) -> list[bytes]:
        """Of all objects of a tier."""
        return list(self.objects.get(name, ()))

    def configure(self, tiers: tuple[L2Settings, ...]) -> None:
        self.configured = tiers
        self.replaces_l1 = self.replaces_l1 or any(each.store_policy == "skip_l1" for each in tiers)
        self.paused &= {each.name for each in tiers}

    def has(self, key: bytes) -> bool:
        """In a tier that may be asked."""
        return any(key in self.objects.get(name, {}) for name in self.in_use)

    def submit(self, effect: Find | Load | Save, slot: Slot | None) -> None:
        """A load begins to write at once, with something else than the object."""
        assert effect.tier not in self.paused, "asked a tier that is paused"
        work = Work(effect, slot)
        if isinstance(effect, Load):
            self._scribble(effect)
        elif isinstance(effect, Save):
            work.content = self._bytes(effect)
        self.work.append(work)

    def finish(self, now: float, work: Work, how: How) -> Event:
        """Ends it. What is no tier any more answers that it cannot be reached, as `TierGroup` does."""
        self.work.remove(work)
        effect = work.effect
        if all(effect.tier != each.name for each in self.configured):
            how = "fail"
        objects = self.objects.setdefault(effect.tier, {})
        match effect:
            case Find():
                return Found(now, effect.ticket, tuple(how == "done" and key in objects for key in effect.keys))
            case Load():
                outcome = self._load(objects, effect, how)
                return Loaded(now, effect.ticket, outcome, checksum(self._bytes(effect)) if outcome == "done" else None)
            case Save():
                return Saved(now, effect.ticket, self._save(objects, effect, work.content, how))

    def _load(self, objects: dict[bytes, bytes], load: Load, how: How) -> TierOutcome:
        self._scribble(load)
        content = objects.get(load.slot.key)
        if how == "fail":
            return self._random.choice(_PROBLEMS[Load])
        if content is None:
            return "absent"
        if how == "damage":
            del objects[load.slot.key]
            return "damaged"
        assert len(content) == load.slot.size
        self._arena[load.slot.offset : load.slot.offset + load.slot.size] = content
        return "done"

    def _save(self, objects: dict[bytes, bytes], save: Save, content: bytes, how: How) -> TierOutcome:
        assert self._bytes(save) == content, "an object was overwritten while it was being saved"
        assert save.checksum in (None, checksum(content)), "what is saved is taken for corrupt"
        if how != "done":
            return self._random.choice(_PROBLEMS[Save])
        objects[save.slot.key] = content
        return "done"

    def _bytes(self, effect: Load | Save) -> bytes:
        return bytes(self._arena[effect.slot.offset : effect.slot.offset + effect.slot.size])

    def _scribble(self, load: Load) -> None:
        self._arena[load.slot.offset : load.slot.offset + load.slot.size] = self._random.randbytes(load.slot.size)
