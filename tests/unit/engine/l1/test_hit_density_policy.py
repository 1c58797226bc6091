"""Hit density: what is known of ages, what follows from it, and that it is what a full log says."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Hashable
from dataclasses import dataclass, field
from random import Random
from typing import Literal, NamedTuple

import pytest

from engine.l1.policies.base import Ranked
from engine.l1.policies.hit_density_policy import _WIDTHS, Policy, _bucket, _Class, _Mark, _youngest
from tests.unit.engine.l1.policy_suite import PolicySuite
from tests.unit.engine.l1.shelf import FullShelf, Shelf

TICKS = 1024
PAGE = 4096


class TestHitDensity(PolicySuite):
    make = staticmethod(Policy)
    ghost_capacities = 4

    def check_more(self, shelf: Shelf) -> None:
        """What waits is what is here and what is remembered."""
        policy = shelf.policy
        assert isinstance(policy, Policy)
        waiting: dict[object, Counter[int]] = {each: Counter() for each in policy._classes}
        for ranked in shelf.there.values():
            waiting[ranked.queue][ranked.stamp] += ranked.size
        for size, mark in policy._ghosts._ghosts.values():
            assert isinstance(mark, _Mark)
            waiting[policy._classes[mark.place]][mark.stamp] += size
        assert {each: each.waiting for each in policy._classes} == waiting


def class_of(shelf: Shelf, key: Hashable) -> str:
    policy = shelf.policy
    assert isinstance(policy, Policy)
    return {policy._ends: "end", policy._fresh: "fresh", policy._reused: "reused"}[shelf.there[key].queue]  # type: ignore[index]


def counts(policy: Policy) -> list[object]:
    """All that is known of ages."""
    return [(dict(each.waiting), each.hits, each.forgotten, each.size) for each in policy._classes] + [policy._tick]


class TestClasses:
    @pytest.fixture
    def shelf(self) -> Shelf:
        return Shelf(Policy(1000 * PAGE))

    def test_the_last_of_a_prompt_is_an_end_and_those_before_it_are_not(self, shelf: Shelf) -> None:
        shelf.begin("a")
        shelf.begin("b", parent="a")
        shelf.unhold("ba")
        assert [class_of(shelf, key) for key in "ab"] == ["fresh", "end"]
        shelf.begin("c", parent="b")
        assert [class_of(shelf, key) for key in "abc"] == ["fresh", "fresh", "end"]

    def test_what_is_used_is_reused_and_stays_it_when_others_follow(self, shelf: Shelf) -> None:
        shelf.put("a")
        shelf.hit("a")
        shelf.begin("b", parent="a")
        assert [class_of(shelf, key) for key in "ab"] == ["reused", "end"]

    def test_what_comes_back_while_it_is_remembered_is_too(self, shelf: Shelf) -> None:
        shelf.put("ab")
        shelf.evict("a")
        shelf.put("a")
        assert [class_of(shelf, key) for key in "ab"] == ["reused", "end"]

    def test_another_one_than_was_expected_is_not(self, shelf: Shelf) -> None:
        shelf.put("a")
        shelf.evict("a")
        shelf.policy.expect("a", PAGE)
        shelf.put("b")
        assert class_of(shelf, "b") == "end"

    @pytest.mark.parametrize("held", [False, True])
    def test_a_successor_does_not_change_when_its_parent_was_used_last(self, held: bool) -> None:
        policy = Policy(10 * PAGE)
        shelf = Shelf(policy)
        shelf.put("a")
        if held:
            shelf.hold("a")
        shelf.put("xyz")
        shelf.begin("b", parent="a")
        assert shelf.there["a"].stamp == 0
        assert policy._fresh.waiting == {0: PAGE}


def test_holding_letting_go_and_touching_leave_no_trace_in_what_is_known() -> None:
    policy = Policy(10 * PAGE)
    shelf = Shelf(policy)
    shelf.put("abcdef")
    shelf.hit("ab")
    before = counts(policy)
    for _ in range(100):
        shelf.hold("abcd")
        shelf.refresh("abcdef")
        list(policy.victims())
        shelf.unhold("dcba")
        shelf.refresh("fedcba")
    assert counts(policy) == before


def test_a_clear_keeps_what_was_learned_of_ages() -> None:
    policy = Policy(100)
    shelf = FullShelf(policy, 100)
    random = Random(1)
    for _ in range(3000):
        shelf.request(int(400 * random.random() ** 2))
    before = [(each.hits, each.forgotten, each.densities) for each in policy._classes]
    shelf.clear()
    assert [(each.hits, each.forgotten, each.densities) for each in policy._classes] == before
    assert not any(each.waiting for each in policy._classes)


def test_time_is_what_is_stored_and_hit_in_capacities() -> None:
    policy = Policy(100)
    shelf = Shelf(policy)
    shelf.put("a", 30)
    assert policy._tick == 30 * TICKS // 100
    shelf.hit("aa")
    assert policy._tick == 90 * TICKS // 100
    shelf.evict("a")
    shelf.put("a", 30)
    assert policy._tick == 120 * TICKS // 100


class TestAges:
    def test_ages_up_to_8_are_apart_and_then_each_octave_is_in_four_parts(self) -> None:
        starts = [*range(8)]
        for octave in range(3, 20):
            starts += [(1 << octave) + part * (1 << octave - 2) for part in range(4)]
        for age in [*range(3000), 1 << 19, (1 << 20) - 1]:
            assert _bucket(age) == bisect_right(starts, age) - 1
        assert [_youngest(bucket) for bucket in range(len(starts))] == starts

    def test_the_widths_fill_the_ages_without_a_gap(self) -> None:
        assert sum(_WIDTHS) == 1 << 45
        assert all(_bucket(_youngest(bucket) + width - 1) == bucket for bucket, width in enumerate(_WIDTHS))

    def test_an_age_beyond_all_is_in_the_last(self) -> None:
        assert _bucket(1 << 60) == _bucket((1 << 45) - 1) == len(_WIDTHS) - 1


class Event(NamedTuple):
    """Bytes of an object stopped waiting: hit, or forgotten without having been."""

    kind: Literal["hit", "forgotten"]
    age: int
    size: int
    computed: int
    """How often the densities had been computed before."""


@dataclass
class Lifetime:
    """One object, here or remembered."""

    size: int
    place: str
    used: int


@dataclass
class Log:
    """The same requests, and everything that happened written down: nothing is summed up, and nothing thrown away."""

    capacity: int
    spent: int = 0
    computed: int = 0
    compute_at: int = TICKS
    here: dict[int, Lifetime] = field(default_factory=dict)
    gone: dict[int, Lifetime] = field(default_factory=dict)
    """Oldest first."""
    events: dict[str, list[Event]] = field(default_factory=lambda: defaultdict(list))
    densities: dict[str, list[float]] = field(default_factory=dict)

    @property
    def tick(self) -> int:
        return self.spent * TICKS // self.capacity

    def hit(self, key: int) -> None:
        lifetime = self.here[key]
        self._end("hit", lifetime)
        self.here[key] = Lifetime(lifetime.size, "reused", self.tick)
        self._spend(lifetime.size)

    def expect(self, key: int) -> bool:
        known = self.gone.pop(key, None)
        if known:
            self._end("hit", known)
        return known is not None

    def store(self, key: int, size: int, known: bool, parent: int | None) -> None:
        before = None if parent is None else self.here.get(parent)
        if before is not None and before.place == "end":
            before.place = "fresh"
        self.here[key] = Lifetime(size, "reused" if known else "end", self.tick)
        self._spend(size)

    def evict(self, key: int) -> None:
        lifetime = self.gone[key] = self.here.pop(key)
        lifetime.used -= lifetime.used % 16
        while sum(each.size for each in self.gone.values()) > 4 * self.capacity:
            self._end("forgotten", self.gone.pop(next(iter(self.gone))))

    def _end(self, kind: Literal["hit", "forgotten"], lifetime: Lifetime) -> None:
        event = Event(kind, self.tick - lifetime.used, lifetime.size, self.computed)
        self.events[lifetime.place].append(event)

    def _spend(self, size: int) -> None:
        self.spent += size
        if self.tick >= self.compute_at:
            self.compute_at = self.tick + TICKS
            seen = {place: self._seen(place) for place in ("end", "fresh", "reused")}
            everything = sum(sum(hits) + sum(lost) for hits, lost in seen.values())
            for place, (hits, lost) in seen.items():
                self.densities[place] = self._densities(hits, lost, (sum(hits) + sum(lost)) / everything)
            self.computed += 1

    def _seen(self, place: str) -> tuple[list[float], list[float]]:
        """Bytes that were used again, and that were not, by age."""
        hits, lost = [0.0] * len(_WIDTHS), [0.0] * len(_WIDTHS)
        for event in self.events[place]:
            weight = 0.998 ** (self.computed - event.computed)
            (hits if event.kind == "hit" else lost)[_bucket(event.age)] += weight * event.size
        for lifetime in (*self.here.values(), *self.gone.values()):
            if lifetime.place == place:
                lost[_bucket(self.tick - lifetime.used)] += lifetime.size
        return hits, lost

    def _densities(self, hits: list[float], lost: list[float], part: float) -> list[float]:
        """The best ratio of expected hits to expected time, over every age until which all that come have space."""
        shares = []
        for bucket in range(len(_WIDTHS)):
            older = sum(hits[bucket + 1 :]) + sum(lost[bucket + 1 :])
            reached = older + hits[bucket] + lost[bucket] / 2
            shares.append(hits[bucket] / reached if reached else 0.0)
        space = [part * time for _, time in self._expected(shares, 0)]
        densities = []
        for start in range(len(_WIDTHS)):
            first, *further = [hits / time for hits, time in self._expected(shares, start)]
            kept = [ratio for ratio, needed in zip(further, space[start + 1 :], strict=True) if needed <= TICKS]
            densities.append(max(first, *kept, 0.0))
        return densities

    @staticmethod
    def _expected(shares: list[float], start: int) -> list[tuple[float, float]]:
        """Of one that comes to the bucket `start`: the hits, and the time until then, if it waits in one, two, ..."""
        left, hits, time, expected = 1.0, 0.0, 0.0, []
        for share, width in zip(shares[start:], _WIDTHS[start:], strict=True):
            hits += left * share
            time += left * width * (1 - share / 2)
            left *= 1 - share
            expected.append((hits, time))
        return expected


@pytest.mark.parametrize(("seed", "capacity"), [(1, 60), (2, 300), (3, 1000)])
def test_the_densities_are_what_a_full_log_of_lifetimes_says(seed: int, capacity: int) -> None:
    random, policy, log = Random(seed), Policy(capacity), Log(capacity)
    shelf = Shelf(policy)
    computed = 0
    for number in range(2500):
        key = number if number % 5 == 0 else int(capacity * random.random() ** 2) // 2
        if key in shelf.there:
            shelf.hit([key])
            log.hit(key)
        else:
            size = key % 4 + 1
            policy.expect(key, size)
            known = log.expect(key)
            while shelf.size + size > capacity:
                victim = next(policy.victims()).key
                shelf.evict(victim)
                assert isinstance(victim, int)
                log.evict(victim)
            parent = key - 1 if key % 3 else None
            store(shelf, key, size, parent)
            log.store(key, size, known, parent)
        assert policy._tick == log.tick
        if log.computed > computed:
            computed = log.computed
            for place, each in (("end", policy._ends), ("fresh", policy._fresh), ("reused", policy._reused)):
                # NOTE: Behind the last that was ever seen, one is 0 by definition and the other by rounding.
                assert each.densities == pytest.approx(log.densities[place], rel=1e-9, abs=1e-12)
    assert computed >= 4
    assert all(any(each) for each in log.densities.values())


def store(shelf: Shelf, key: int, size: int, parent: int | None) -> None:
    """Without a second `expect`."""
    made = Ranked(key, size)
    before = None if parent is None else shelf.there.get(parent)
    shelf.policy.insert(made, before)
    shelf.there[key] = made
    shelf.policy.unhold(made)


class TestEstimate:
    """What follows from a few lifetimes."""

    @pytest.fixture
    def place(self) -> _Class:
        return _Class(Policy(1000), 0)

    @staticmethod
    def compute(place: _Class, tick: int = 0, part: float = 0.0) -> None:
        """With a class of which so little comes that it can be kept for ever, unless it is told otherwise."""
        place.compute(place.lost(tick), part)

    def test_without_a_hit_nothing_is_expected(self, place: _Class) -> None:
        place.waiting[0] += 100
        place.was_forgotten(50, 0, 100)
        self.compute(place, 100)
        assert not any(place.densities)

    def test_where_all_are_hit_at_one_age_one_hit_is_expected_in_the_time_until_then(self, place: _Class) -> None:
        place.hits[_bucket(7)] = 10.0
        self.compute(place)
        assert place.densities[7] == pytest.approx(1 / 0.5)
        assert place.densities[0] == pytest.approx(1 / 7.5)
        assert place.densities[8] == 0

    def test_the_density_rises_towards_the_age_of_use_and_falls_behind_it(self, place: _Class) -> None:
        place.hits[_bucket(7)] = 10.0
        place.forgotten[_bucket(1000)] = 10.0
        self.compute(place)
        assert sorted(place.densities[:8]) == place.densities[:8]
        assert max(place.densities[8:]) < place.densities[0]

    def test_a_later_use_counts_however_many_are_used_early(self, place: _Class) -> None:
        """Nine in ten early, the rest late: who has not been used early is worth to be kept."""
        place.hits[_bucket(4)] = 90.0
        place.hits[_bucket(100)] = 10.0
        self.compute(place)
        assert place.densities[_bucket(50)] > 0

    def test_who_still_waits_counts_as_having_reached_its_age(self, place: _Class) -> None:
        place.hits[_bucket(100)] = 10.0
        self.compute(place)
        alone = place.densities[0]
        place.hits[_bucket(100)] = 10.0
        place.waiting[0] += 30
        self.compute(place, 1 << 20)
        assert place.densities[0] == pytest.approx(alone / 4, rel=0.2)

    def test_an_early_plateau_does_not_hide_a_later_peak(self, place: _Class) -> None:
        place.hits[_bucket(4)] = 1.0
        place.hits[_bucket(16)] = 99.0
        self.compute(place)
        assert place.densities[4] > 0.05, "the first alone were 0.01"

    def test_hits_after_the_age_until_which_there_is_space_for_all_do_not_count(self, place: _Class) -> None:
        for part, age, counts in ((1.0, 900, True), (1.0, 1300, False), (0.5, 1300, True), (0.1, 20000, False)):
            place.hits = [0.0] * len(_WIDTHS)
            place.hits[_bucket(age)] = 10.0
            self.compute(place, part=part)
            assert (place.densities[0] > 0) == counts

    def test_nor_do_those_who_go_until_then_take_space(self, place: _Class) -> None:
        place.hits[_bucket(4000)] = 10.0
        self.compute(place, part=1.0)
        assert place.densities[0] == 0
        place.hits[_bucket(10)] = 90.0
        place.hits[_bucket(4000)] = 10.0
        self.compute(place, part=1.0)
        assert place.densities[_bucket(100)] > 0

    def test_who_is_older_is_kept_for_hits_of_its_own_age(self, place: _Class) -> None:
        place.hits[_bucket(3000)] = place.hits[_bucket(6000)] = 10.0
        self.compute(place, part=1.0)
        assert [place.densities[_bucket(age)] > 0 for age in (2000, 3000, 4000, 6000)] == [False, True, False, True]

    def test_observations_lose_a_five_hundredth_each_time(self, place: _Class) -> None:
        place.hits[3], place.forgotten[4] = 100.0, 50.0
        self.compute(place)
        assert (place.hits[3], place.forgotten[4]) == (99.8, 49.9)


class TestVictim:
    def test_it_is_the_oldest_of_the_class_whose_oldest_has_the_lowest_density(self) -> None:
        policy = Policy(1000 * PAGE)
        shelf = Shelf(policy)
        shelf.put("ab")
        shelf.put("xy")
        shelf.hit("xy")
        policy._ends.densities = [2.0] * len(_WIDTHS)
        policy._reused.densities = [1.0] * len(_WIDTHS)
        assert shelf.order == [*"xyab"]
        policy._reused.densities = [3.0] * len(_WIDTHS)
        assert shelf.order == [*"abxy"]

    def test_it_depends_on_the_age(self) -> None:
        policy = Policy(10 * PAGE)
        shelf = Shelf(policy)
        shelf.put("abc")
        shelf.put("x")
        shelf.hit("x")
        ages = {key: policy._tick - shelf.there[key].stamp for key in "abcx"}
        policy._ends.densities = [0.0 if bucket >= _bucket(ages["b"]) else 9.0 for bucket in range(len(_WIDTHS))]
        policy._reused.densities = [5.0] * len(_WIDTHS)
        assert shelf.order == [*"abxc"]

    def test_among_equals_it_is_the_least_recently_used_and_reused_ones_come_last(self) -> None:
        shelf = Shelf(Policy(10 * PAGE))
        shelf.put("abcd")
        shelf.hit("ca")
        shelf.put("e")
        shelf.begin("f", parent="b")
        shelf.unhold("f")
        assert shelf.order == [*"bdefca"]

    def test_and_among_those_of_one_moment_an_end(self) -> None:
        shelf = Shelf(Policy(5000 * PAGE))
        for key, parent in ("a-", "ba", "cb"):
            shelf.begin(key, parent=parent)
        shelf.unhold("cba")
        shelf.put("x")
        shelf.hit("x")
        assert shelf.order == [*"cbax"]
