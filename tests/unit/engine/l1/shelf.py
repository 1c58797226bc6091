"""Objects that a policy ranks, called in the order in which the cache calls it."""

from __future__ import annotations

from collections.abc import Hashable, Iterable

from engine.l1.policies.base import EvictionPolicy, Queue, Ranked
from engine.l1.policies.ghosts import Ghosts

PAGE = 4096


class Shelf:
    """Objects by name, as many as come: nobody is evicted unless a test says so."""

    def __init__(self, policy: EvictionPolicy) -> None:
        self.policy = policy
        self.there: dict[Hashable, Ranked] = {}

    def begin(self, key: Hashable, size: int = PAGE, parent: Hashable = None) -> Ranked:
        """An object that is being written."""
        self.policy.expect(key, size)
        made = self.there[key] = Ranked(key, size)
        self.policy.insert(made, self.there.get(parent))
        return made

    def put(self, keys: Iterable[Hashable], size: int = PAGE) -> None:
        """Objects of prompts of their own, one after the other."""
        for key in keys:
            self.begin(key, size)
            self.unhold([key])

    def hold(self, keys: Iterable[Hashable]) -> None:
        for key in keys:
            self.policy.hold(self.there[key])

    def unhold(self, keys: Iterable[Hashable]) -> None:
        for key in keys:
            self.policy.unhold(self.there[key])

    def hit(self, keys: Iterable[Hashable]) -> None:
        self.policy.hit([self.there[key] for key in keys])

    def refresh(self, keys: Iterable[Hashable]) -> None:
        self.policy.refresh([self.there[key] for key in keys])

    def evict(self, key: Hashable) -> None:
        self.policy.evict(self.there.pop(key))

    def remove(self, key: Hashable) -> None:
        self.policy.remove(self.there.pop(key))

    def adopt(self, key: Hashable, size: int = PAGE) -> None:
        """An object that another policy ranked until now."""
        made = self.there[key] = Ranked(key, size)
        made.held = False
        self.policy.adopt(made)

    def clear(self) -> None:
        self.there.clear()
        self.policy.clear()

    @property
    def order(self) -> list[Hashable]:
        """The victims, first one first."""
        return [ranked.key for ranked in self.policy.victims()]

    @property
    def members(self) -> list[Hashable]:
        return [ranked.key for ranked in self.policy.members()]

    @property
    def idle(self) -> list[Ranked]:
        """What is not held."""
        return [ranked for ranked in self.there.values() if not ranked.held]

    @property
    def size(self) -> int:
        return sum(ranked.size for ranked in self.there.values())


class FullShelf(Shelf):
    """Takes objects of one size, evicting what the policy says: `capacity` of them."""

    def __init__(self, policy: EvictionPolicy, capacity: int, size: int = 1) -> None:
        super().__init__(policy)
        self._capacity = capacity
        self._size = size

    def request(self, key: Hashable) -> bool:
        """One object is asked for, and stored if it is not there; returns whether it was."""
        if key in self.there:
            self.hold([key])
            self.hit([key])
            self.unhold([key])
            return True
        self.policy.expect(key, self._size)
        if len(self.there) == self._capacity:
            self.evict(next(self.policy.victims()).key)
        made = self.there[key] = Ranked(key, self._size)
        self.policy.insert(made, None)
        self.policy.unhold(made)
        return False


def queues(policy: EvictionPolicy) -> set[Queue]:
    return {value for value in vars(policy).values() if isinstance(value, Queue)}


def ghosts(policy: EvictionPolicy) -> set[Ghosts]:
    return {value for value in vars(policy).values() if isinstance(value, Ghosts)}


def keys(queue: Queue) -> list[Hashable]:
    """What stands in line, first to last."""
    return [ranked.key for ranked in queue]


def remembered(found: Ghosts) -> list[int]:
    """Oldest first; small whole numbers are their own fingerprints."""
    return list(found._ghosts)
