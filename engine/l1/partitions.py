"""Which tenant's objects may take how much of L1, and whose have to go. Pure.

A tenant is a cache salt. One with a quota has a *partition* of its own, with a policy of its own; all others share one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Final, cast

from engine.l1.entry import Entry
from engine.l1.policies.base import EvictionPolicy

MakePolicy = Callable[[int], EvictionPolicy]
"""A policy for a capacity in bytes."""


@dataclass(frozen=True, slots=True)
class Quota:
    """What a tenant may have, in bytes."""

    limit: int | None = None
    """It never has more; None means that it has no limit of its own."""
    reservation: int = 0
    """What others cannot take away from it."""


UNLIMITED: Final = Quota()


class Partition:
    """Objects that are ranked together."""

    def __init__(self, policy: EvictionPolicy, quota: Quota) -> None:
        self.policy = policy
        """Ranks what is stored or used from now on."""
        self.former: list[EvictionPolicy] = []
        """Those that still rank objects from before the policy was changed, the oldest first."""
        self.quota = quota
        self.used = 0
        """Bytes occupied by its tenants' objects, doomed ones included."""

    @property
    def excess(self) -> int:
        """Bytes that others may take away from it."""
        return max(0, self.used - self.quota.reservation)

    def missing(self, size: int) -> int:
        """Bytes that have to go before another `size` are within the limit."""
        return 0 if self.quota.limit is None else max(0, self.used + size - self.quota.limit)

    def victims(self) -> Iterator[Entry]:
        """Its objects that are not held, the one to evict first in front."""
        policies = (*self.former, self.policy) if self.former else (self.policy,)
        return cast("Iterator[Entry]", chain.from_iterable(policy.victims() for policy in policies))


class Partitions:
    """All of them. Belongs to the engine thread."""

    def __init__(self, make_policy: MakePolicy, capacity: int) -> None:
        self.usage: dict[str, int] = {}
        """Bytes occupied by the objects of each cache salt that has any, doomed ones included."""
        self.default = UNLIMITED
        """The quota of those that have none of their own."""
        self.quotas: dict[str, Quota] = {}
        """By cache salt."""
        self._make_policy = make_policy
        self._capacity = capacity
        self._shared = Partition(make_policy(self._capacity_of(UNLIMITED)), UNLIMITED)
        self._own: dict[str, Partition] = {}

    def __iter__(self) -> Iterator[Partition]:
        return chain((self._shared,), self._own.values())

    @property
    def are_several(self) -> bool:
        return bool(self._own)

    def of(self, salt: str) -> Partition:
        """The partition of a tenant's objects."""
        own = self._own
        if not own and self.default is UNLIMITED:
            return self._shared
        found = own.get(salt)
        if found is None:
            quota = self.quotas.get(salt, self.default)
            if quota == UNLIMITED:
                return self._shared
            found = self._separate(salt, quota)
        return found

    def forget_unused(self, salt: str) -> None:
        """The partition of a tenant that has nothing, and no quota of its own, ends."""
        if salt in self._own and salt not in self.quotas and salt not in self.usage:
            del self._own[salt]

    def count(self, salt: str, size: int) -> None:
        """A tenant's objects occupy `size` bytes more, or less if that is negative."""
        self.of(salt).used += size
        usage = self.usage[salt] = self.usage.get(salt, 0) + size
        if not usage:
            del self.usage[salt]
            self.forget_unused(salt)

    def clear(self, left: Iterable[Entry]) -> None:
        """Every object is gone; only these still occupy their slots."""
        self.usage.clear()
        for partition in self:
            partition.policy.clear()
            partition.former.clear()
            partition.used = 0
        for salt in [*self._own]:
            self.forget_unused(salt)
        for entry in left:
            self.count(entry.namespace.cache_salt, entry.size)

    def protected(self, asking: Partition) -> int:
        """Bytes that others have reserved and use, so that `asking` cannot have them."""
        others = (partition for partition in self._own.values() if partition is not asking)
        return sum(min(partition.used, partition.quota.reservation) for partition in others)

    def set_quota(self, salt: str, quota: Quota | None) -> None:
        """A tenant's quota from now on; None stands for the default one.

        Its objects are ranked where they were until they are used, or moved with `EvictionPolicy.adopt`.
        """
        if quota is None:
            self.quotas.pop(salt, None)
        else:
            self.quotas[salt] = quota
        self._apply(salt)

    def set_default(self, quota: Quota) -> None:
        """The quota from now on of those that have none of their own."""
        self.default = quota
        for salt in [*self.usage, *self._own]:
            if salt not in self.quotas:
                self._apply(salt)

    def set_capacity(self, capacity: int) -> None:
        self._capacity = capacity
        for partition in self:
            partition.policy.set_capacity(self._capacity_of(partition.quota))

    def change_policy(self, make_policy: MakePolicy) -> None:
        """Another policy ranks from now on what is stored or used."""
        self._make_policy = make_policy
        for partition in self:
            partition.former.append(partition.policy)
            partition.policy = make_policy(self._capacity_of(partition.quota))

    def victims(self, asking: Partition) -> Iterator[Entry]:
        """What may go for an object of the partition `asking`, the one to evict first in front.

        Of several partitions the one whose next victim was not used for longest is asked; never more than its excess,
        unless it is the one that asks.
        """
        if not self._own:
            return asking.victims()
        return self._merged(asking)

    def may_lose(self, loser: Partition, asking: Partition, size: int) -> bool:
        """Whether `size` bytes of one partition may go for another."""
        return loser is asking or loser.excess >= size

    def _merged(self, asking: Partition) -> Iterator[Entry]:
        fronts = [_Front(partition, asking) for partition in self]
        while fronts := [front for front in fronts if front.victim is not None]:
            oldest = min(fronts, key=_used)
            assert oldest.victim is not None
            yield oldest.victim
            oldest.advance()

    def _apply(self, salt: str) -> None:
        quota = self.quotas.get(salt, self.default)
        present = self._own.get(salt)
        if present is not None and quota != UNLIMITED:
            present.quota = quota
            present.policy.set_capacity(self._capacity_of(quota))
        elif present is not None:
            del self._own[salt]
            self._shared.used += present.used
            self._shared.former += [*present.former, present.policy]
        elif quota != UNLIMITED:
            self._separate(salt, quota)
        self.forget_unused(salt)

    def _separate(self, salt: str, quota: Quota) -> Partition:
        made = self._own[salt] = Partition(self._make_policy(self._capacity_of(quota)), quota)
        made.used = self.usage.get(salt, 0)
        self._shared.used -= made.used
        return made

    def _capacity_of(self, quota: Quota) -> int:
        """Of its policy."""
        # NOTE: No policy has to get along with nothing, as when L1 is made smaller than that for a while.
        return max(1, self._capacity if quota.limit is None else min(quota.limit, self._capacity))


class _Front:
    """The next victim of a partition."""

    def __init__(self, partition: Partition, asking: Partition) -> None:
        self._partition = partition
        self._asking = asking
        self._victims = partition.victims()
        self._left = partition.excess
        self.victim: Entry | None = None
        self.advance()

    def advance(self) -> None:
        self.victim = next(self._victims, None)
        if self.victim is not None and self._partition is not self._asking:
            self._left -= self.victim.size
            if self._left < 0:
                self.victim = None


def _used(front: _Front) -> float:
    return front.victim.used if front.victim else 0.0
