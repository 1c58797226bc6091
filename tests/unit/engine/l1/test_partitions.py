"""Tenants: whose objects may take how much, whose have to go, and what is left of a tenant that has nothing."""

from __future__ import annotations

import contextlib

import pytest

from engine.discovery import policy_maker, policy_names
from engine.keys import namespace
from engine.l1.cache import ALIGNMENT, L1Cache, NoSpaceError
from engine.l1.entry import Entry
from engine.l1.partitions import UNLIMITED, Quota
from engine.l1.policies.lru_policy import Policy

SLOT = ALIGNMENT


def quota(limit: int | None = None, reservation: int = 0) -> Quota:
    """In slots."""
    return Quota(None if limit is None else limit * SLOT, reservation * SLOT)


class Tenants:
    """An L1 whose objects are named by letters; the time passes with each step."""

    def __init__(self, slots: int = 10, policy: str = "lru", default: Quota = UNLIMITED, **quotas: Quota) -> None:
        self.cache = L1Cache(slots * SLOT, policy_maker(policy))
        self.partitions = self.cache._partitions
        self.now = 0.0
        self.cache.set_default_quota(default)
        for salt, given in quotas.items():
            self.cache.set_quota(salt, given)

    def put(self, salt: str, keys: str, slots: int = 1) -> None:
        for key in keys:
            self.cache.commit(self.begin(salt, key, slots))

    def begin(self, salt: str, key: str, slots: int = 1) -> Entry:
        self.now += 1
        space = namespace("m", 1, 0, bytes(16), salt)
        return self.cache.reserve(key.encode(), slots * SLOT, space, self.now)

    def use(self, keys: str) -> None:
        self.now += 1
        found = [entry for key in keys if (entry := self.cache.find(key.encode()))]
        self.cache.use(found, self.now)

    def lease(self, keys: str) -> None:
        for key in keys:
            found = self.cache.find(key.encode())
            assert found is not None
            self.cache.lease(found)

    def refused(self, salt: str, slots: int = 1) -> str:
        """Why there is no room for another one; nothing goes for it."""
        before = self.there
        with pytest.raises(NoSpaceError) as caught:
            self.put(salt, "!", slots)
        assert self.there == before
        return caught.value.reason

    def settle(self) -> None:
        """As the job does it after a change of quotas."""
        self.cache.bring_home(0, 1000)
        while not self.cache.hand_over(100):
            pass
        self.cache.evict_over_limits(1000)

    @property
    def there(self) -> str:
        return b"".join(sorted(entry.key for entry in self.cache.page(0, 1000).members)).decode()

    def used(self, salt: str) -> int:
        """In slots."""
        return self.partitions.usage.get(salt, 0) // SLOT

    @property
    def apart(self) -> set[str]:
        """Who has a partition of its own."""
        return set(self.partitions._own)

    def order(self, salt: str) -> str:
        """What goes for another object of a tenant, first to last."""
        victims = self.partitions.victims(self.partitions.of(salt))
        return b"".join(entry.key for entry in victims).decode()


class TestWithoutQuotas:
    def test_all_are_ranked_together(self) -> None:
        tenants = Tenants(4)
        for salt, key in zip("abab", "wxyz", strict=True):
            tenants.put(salt, key)
        assert (tenants.apart, tenants.order("a")) == (set(), "wxyz")
        tenants.put("c", "q")
        assert tenants.there == "qxyz"

    def test_what_each_has_is_counted(self) -> None:
        tenants = Tenants()
        tenants.put("a", "xy", 2)
        tenants.begin("b", "z")
        assert tenants.partitions.usage == {"a": 4 * SLOT, "b": SLOT}
        found = tenants.cache.find(b"x")
        assert found is not None
        tenants.cache.lease(found)
        tenants.cache.doom(found, "cleared")
        assert tenants.used("a") == 4, "it still occupies its slot"
        tenants.cache.release(found)
        assert tenants.partitions.usage == {"a": 2 * SLOT, "b": SLOT}
        tenants.cache.clear()
        assert tenants.partitions.usage == {"b": SLOT}


class TestLimit:
    def test_at_it_a_tenant_evicts_its_own_although_there_is_room(self) -> None:
        tenants = Tenants(a=quota(3))
        tenants.put("b", "x")
        tenants.put("a", "1234")
        assert tenants.there == "234x"

    def test_as_many_go_as_have_to(self) -> None:
        tenants = Tenants(a=quota(4))
        tenants.put("a", "1234")
        tenants.put("a", "L", 3)
        assert tenants.there == "4L"

    def test_its_own_are_enough_where_others_would_have_to_go_for_a_contiguous_range(self) -> None:
        """There is room for L elsewhere."""
        tenants = Tenants(12, a=quota(3))
        for salt, key in zip("abababbbbb", "1x2y3zuvwq", strict=True):
            tenants.put(salt, key)
        tenants.put("a", "L", 2)
        assert tenants.there == "3Lquvwxyz"

    def test_where_they_are_not_others_go_with_them(self) -> None:
        tenants = Tenants(6, a=quota(3))
        for salt, key in zip("ababab", "1x2y3z", strict=True):
            tenants.put(salt, key)
        tenants.put("a", "L", 2)
        assert tenants.there == "3Lyz"

    def test_one_that_is_larger_than_it_is_refused(self) -> None:
        tenants = Tenants(a=quota(3))
        tenants.put("a", "1")
        assert tenants.refused("a", 4) == "quota"

    @pytest.mark.parametrize("limit", [0, 1])
    def test_it_may_be_nothing(self, limit: int) -> None:
        tenants = Tenants(a=Quota(limit))
        assert tenants.refused("a") == "quota"
        tenants.put("b", "x")

    def test_what_is_in_use_does_not_go_for_it(self) -> None:
        tenants = Tenants(a=quota(2))
        tenants.put("a", "12")
        tenants.lease("12")
        assert tenants.refused("a") == "quota"

    def test_what_was_doomed_and_is_in_use_counts_against_it(self) -> None:
        tenants = Tenants(a=quota(1))
        tenants.put("a", "1")
        tenants.lease("1")
        tenants.cache.clear()
        assert tenants.refused("a") == "quota"

    @pytest.mark.parametrize("name", policy_names())
    def test_it_is_the_capacity_of_the_tenants_policy(self, name: str) -> None:
        tenants = Tenants(10, name, a=quota(3), b=quota(99), c=quota(None, 2), d=quota(0))
        capacities = {salt: tenants.partitions.of(salt).policy.capacity for salt in "abcde"}
        assert capacities == {"a": 3 * SLOT, "b": 10 * SLOT, "c": 10 * SLOT, "d": 1, "e": 10 * SLOT}
        tenants.cache.set_capacity(2 * SLOT)
        assert {tenants.partitions.of(salt).policy.capacity for salt in "abce"} == {2 * SLOT}
        tenants.cache.set_quota("a", quota(1))
        assert tenants.partitions.of("a").policy.capacity == SLOT


class TestReservation:
    def test_a_flood_takes_what_is_above_it_and_no_more(self) -> None:
        tenants = Tenants(8, a=quota(None, 3))
        tenants.put("a", "12345")
        tenants.put("b", "pqrstuvwxyz")
        assert (tenants.used("a"), tenants.used("b")) == (3, 5)

    def test_objects_of_other_sizes_do_not_take_more_together_either(self) -> None:
        """Neighbours go with the coldest: of those of a, one may."""
        tenants = Tenants(8, a=quota(None, 3))
        tenants.put("b", "xyzw")
        tenants.put("a", "1234")
        tenants.use("xyzw")
        assert tenants.refused("b", 6) == "in_use"
        tenants.put("b", "L", 5)
        assert tenants.there == "234L"

    def test_nor_does_what_lies_in_a_gap(self) -> None:
        """In memory: 1 2 3 4 x y, with 3 in use. The coldest has no neighbour that may go."""
        tenants = Tenants(6, a=quota(None, 3))
        tenants.put("a", "1234")
        tenants.put("b", "xy")
        tenants.lease("3")
        tenants.put("b", "L", 3)
        assert tenants.there == "123L"

    @pytest.mark.parametrize("name", policy_names())
    def test_no_flood_of_any_sizes_does(self, name: str) -> None:
        tenants = Tenants(40, name, a=quota(None, 12), b=quota(30, 5), c=quota(11))
        for key in range(0x4E00, 0x4E00 + 14):
            tenants.put("a", chr(key))
        for number in range(400):
            salt, size = "bcd"[number % 3], (1, 2, 3, 5, 8)[number % 5]
            with contextlib.suppress(NoSpaceError):
                tenants.put(salt, chr(0x5000 + number), size)
            tenants.use(chr(0x5000 + number - 7))
            assert tenants.used("a") >= 12
            assert tenants.used("c") <= 11
        assert tenants.used("b") >= 5

    def test_what_is_not_used_of_it_others_may_have_meanwhile(self) -> None:
        tenants = Tenants(4, a=quota(None, 3))
        tenants.put("b", "wxyz")
        tenants.put("a", "123")
        assert (tenants.used("a"), tenants.used("b")) == (3, 1)

    def test_of_its_own_a_tenant_loses_as_many_as_it_needs(self) -> None:
        tenants = Tenants(4, a=quota(None, 4))
        tenants.put("a", "1234")
        tenants.put("a", "5")
        assert tenants.there == "2345"
        assert tenants.refused("b") == "in_use"

    def test_a_reason_is_what_is_reserved_and_not_that_it_is_in_pieces(self) -> None:
        tenants = Tenants(6, a=quota(None, 4))
        tenants.put("a", "1234")
        tenants.put("b", "xy")
        assert tenants.refused("b", 3) == "in_use"
        tenants.cache.set_quota("a", quota(None, 2))
        tenants.lease("y")
        assert tenants.refused("b", 3) == "fragmented"


class TestRecency:
    def test_between_tenants_who_was_not_used_for_longest_goes(self) -> None:
        tenants = Tenants(6, a=quota(9), b=quota(9))
        for salt, key in zip("abcabc", "123456", strict=True):
            tenants.put(salt, key)
        assert [tenants.order(salt) for salt in "abc"] == ["123456"] * 3
        tenants.use("1")
        tenants.use("5")
        assert tenants.order("a") == "234615"

    def test_each_tenants_own_policy_ranks_its_own(self) -> None:
        tenants = Tenants(6, "fifo", a=quota(9))
        tenants.put("a", "12")
        tenants.put("b", "xy")
        tenants.use("1")
        assert tenants.order("a") == "xy12"

    def test_what_is_above_the_reservation_is_named_only_for_others(self) -> None:
        tenants = Tenants(6, a=quota(None, 2))
        tenants.put("a", "123")
        tenants.put("b", "xyz")
        assert tenants.order("b") == "1xyz"
        assert tenants.order("a") == "123xyz"


class TestDefault:
    def test_each_that_has_no_quota_of_its_own_has_it_by_itself(self) -> None:
        tenants = Tenants(default=quota(2), c=quota(3))
        for salt, keys in [("a", "123"), ("b", "pqr"), ("c", "wxyz")]:
            tenants.put(salt, keys)
        assert tenants.there == "23qrxyz"

    @pytest.mark.parametrize("own", [Quota(), quota(None, 1), quota(9)])
    def test_one_that_has_an_own_quota_does_not_even_an_unlimited_one(self, own: Quota) -> None:
        tenants = Tenants(default=quota(2), a=own)
        tenants.put("a", "1234")
        tenants.put("b", "xyz")
        assert tenants.there == "1234yz"

    def test_who_has_nothing_any_more_has_no_partition(self) -> None:
        tenants = Tenants(default=quota(2))
        tenants.put("a", "1")
        assert tenants.apart == {"a"}
        found = tenants.cache.find(b"1")
        assert found is not None
        tenants.cache.doom(found, "cleared")
        assert tenants.apart == set()

    def test_nor_has_who_never_found_room(self) -> None:
        tenants = Tenants(default=quota(2))
        for salt in "abc":
            assert tenants.refused(salt, 3) == "quota"
        assert tenants.apart == set()

    def test_nor_has_whom_a_clear_left_nothing(self) -> None:
        tenants = Tenants(default=quota(2), c=quota(1))
        tenants.put("a", "1")
        tenants.put("b", "2")
        tenants.lease("2")
        tenants.cache.clear()
        assert tenants.apart == {"b", "c"}

    def test_who_evicts_all_it_has_for_another_keeps_it(self) -> None:
        """And the other one can be evicted."""
        tenants = Tenants(default=quota(2))
        tenants.put("a", "1", 2)
        tenants.put("a", "2", 2)
        assert (tenants.there, tenants.order("a"), tenants.order("b")) == ("2", "2", "2")
        tenants.put("a", "3", 2)
        assert (tenants.there, tenants.used("a")) == ("3", 2)

    @pytest.mark.parametrize("default", [UNLIMITED, Quota()])
    def test_when_there_is_none_any_more_all_are_together_again(self, default: Quota) -> None:
        tenants = Tenants(default=quota(2))
        tenants.put("a", "12")
        tenants.put("b", "x")
        tenants.cache.set_default_quota(default)
        assert tenants.apart == set()
        assert sorted(tenants.order("c")) == [*"12x"]
        tenants.settle()
        assert sorted(tenants.order("c")) == [*"12x"]
        assert tenants.partitions._shared.used == 3 * SLOT


class TestChange:
    def test_what_is_there_moves_in_its_order(self) -> None:
        tenants = Tenants()
        for salt, key in zip("ababa", "12345", strict=True):
            tenants.put(salt, key)
        tenants.cache.set_quota("a", quota(9))
        tenants.settle()
        own = tenants.partitions.of("a")
        assert sorted(entry.key for entry in own.victims()) == [b"1", b"3", b"5"]
        assert (own.used, tenants.partitions._shared.used) == (3 * SLOT, 2 * SLOT)

    def test_until_it_has_moved_it_can_be_evicted_all_the_same_once(self) -> None:
        tenants = Tenants(4)
        tenants.put("a", "12")
        tenants.put("b", "34")
        tenants.cache.set_quota("a", quota(9))
        tenants.use("1")
        assert sorted(tenants.order("b")) == [*"1234"]
        tenants.put("b", "5")
        assert tenants.there == "1345"

    def test_a_lower_limit_takes_what_is_too_much_in_parts(self) -> None:
        tenants = Tenants(a=quota(6))
        tenants.put("a", "123456")
        tenants.cache.set_quota("a", quota(2))
        assert len(tenants.cache.evict_over_limits(3)) == 3
        assert tenants.there == "456"
        assert [entry.key for entry in tenants.cache.evict_over_limits(3)] == [b"4"]
        assert tenants.cache.evict_over_limits(3) == []

    def test_a_limit_of_nothing_takes_all_of_those_who_have_it_by_default(self) -> None:
        tenants = Tenants()
        for salt in "abc":
            tenants.put(salt, salt)
        tenants.cache.set_default_quota(Quota(0))
        tenants.settle()
        assert (tenants.there, tenants.apart, tenants.partitions.usage) == ("", set(), {})

    def test_a_quota_that_is_taken_away_leaves_the_objects_to_all(self) -> None:
        tenants = Tenants(4, a=quota(2, 2))
        tenants.put("a", "12")
        tenants.put("b", "34")
        tenants.cache.set_quota("a", None)
        assert tenants.apart == set()
        assert sorted(tenants.order("b")) == [*"1234"]
        tenants.settle()
        assert not tenants.partitions._shared.former
        tenants.put("b", "567")
        assert tenants.used("a") < 2

    def test_one_that_is_replaced_keeps_the_partition_and_its_order(self) -> None:
        tenants = Tenants(a=quota(5))
        tenants.put("a", "123")
        partition = tenants.partitions.of("a")
        tenants.cache.set_quota("a", quota(4, 1))
        assert tenants.partitions.of("a") is partition
        assert partition.quota == quota(4, 1)
        assert tenants.order("a") == "123"

    def test_a_quota_of_who_has_nothing_leaves_nothing_behind(self) -> None:
        tenants = Tenants(default=quota(2), a=quota(5))
        tenants.cache.set_quota("a", None)
        assert tenants.apart == set()

    def test_an_own_one_instead_of_the_default_and_back(self) -> None:
        tenants = Tenants(default=quota(2))
        tenants.put("a", "12")
        tenants.cache.set_quota("a", quota(3))
        tenants.put("a", "3")
        assert tenants.there == "123"
        tenants.cache.set_quota("a", None)
        tenants.settle()
        assert tenants.there == "23"


def test_a_policy_is_made_for_nothing_only_as_if_it_were_a_byte() -> None:
    made: list[int] = []

    def make(capacity: int) -> Policy:
        made.append(capacity)
        return Policy(capacity)

    cache = L1Cache(0, make)
    cache.set_quota("a", Quota(0))
    cache.change_policy(make)
    assert made == [1, 1, 1, 1]
