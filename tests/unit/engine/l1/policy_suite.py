"""What the cache may rely on with every eviction policy. `PolicySuite` is made for one policy by a subclass."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Hashable
from random import Random
from types import FrameType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.l1.partitions import MakePolicy
from engine.l1.policies.base import EvictionPolicy
from engine.l1.policies.ghosts import Ghosts
from tests.unit.engine.l1.shelf import PAGE, FullShelf, Shelf, ghosts, queues

CAPACITY = 10 * PAGE
NAMES = "abcdef"
OFTEN = ["begin", "let go", "evict"]
ACTIONS = st.sampled_from(
    [*OFTEN, *OFTEN, "write", "hit", "refresh", "hold", "remove", "ask", "look", "adopt", "clear", "resize"]
)
EVENTS = st.lists(st.tuples(ACTIONS, st.text(NAMES, min_size=1, max_size=3), st.integers(1, 4)), max_size=60)


class PolicySuite:
    make: MakePolicy
    """Set by the subclass, as a staticmethod."""
    ghost_capacities: int
    """How many capacities of evicted bytes are remembered at most, while the capacity is full."""

    @pytest.fixture
    def policy(self) -> EvictionPolicy:
        return self.make(CAPACITY)

    @pytest.fixture
    def shelf(self, policy: EvictionPolicy) -> Shelf:
        return Shelf(policy)

    # Who goes

    def test_what_was_never_used_goes_in_the_order_of_its_arrival(self, shelf: Shelf) -> None:
        shelf.put("cab")
        assert shelf.order == [*"cab"]

    def test_the_suffix_of_a_prompt_goes_before_its_prefix(self) -> None:
        shelf = Shelf(self.make(5000 * PAGE))
        for key, parent in ("a-", "ba", "cb"):
            shelf.begin(key, parent=parent)
        shelf.unhold("cba")
        assert shelf.order == [*"cba"]

    def test_it_still_does_after_it_was_used(self, shelf: Shelf) -> None:
        shelf.put("cba")
        for _ in range(5):
            shelf.hold("abc")
            shelf.hit("cba")
            shelf.put(shelf.there.keys() ^ "abcxyz")
            next(shelf.policy.victims(), None)
            shelf.unhold("cba")
            shelf.refresh("cba")
            assert [key for key in shelf.order if key in "abc"] == [*"cba"]

    def test_what_is_being_written_is_no_victim(self, shelf: Shelf) -> None:
        shelf.put("a")
        shelf.begin("b")
        assert (shelf.order, shelf.members) == (["a"], ["a"])

    def test_what_is_held_is_no_victim_until_it_is_let_go(self, shelf: Shelf) -> None:
        shelf.put("abc")
        shelf.hold("b")
        assert shelf.order == [*"ac"]
        shelf.unhold("b")
        assert sorted(shelf.order) == [*"abc"]

    def test_a_use_of_what_is_held_makes_it_no_victim(self, shelf: Shelf) -> None:
        shelf.put("abc")
        shelf.hold("b")
        shelf.hit("b")
        shelf.refresh("b")
        assert shelf.order == [*"ac"]

    def test_a_use_while_it_is_written_does_not_send_it_to_the_front(self, shelf: Shelf) -> None:
        shelf.put("ab")
        shelf.begin("c")
        shelf.hit("c")
        shelf.unhold("c")
        assert shelf.order == [*"abc"]

    def test_nothing_is_lost_when_asking_for_all_victims_again_and_again(self, shelf: Shelf) -> None:
        shelf.put("abcdef")
        shelf.hit("eca")
        shelf.hit("e")
        for _ in range(9):
            assert sorted(shelf.order) == [*"abcdef"]

    @pytest.mark.parametrize("way", ["evict", "remove"])
    def test_what_has_gone_is_ranked_no_more_and_can_come_back(self, shelf: Shelf, way: str) -> None:
        shelf.put("abc")
        getattr(shelf, way)("a")
        assert shelf.order == [*"bc"]
        shelf.put("a")
        assert sorted(shelf.order) == [*"abc"]

    def test_what_is_removed_while_it_is_held_or_written_is_gone(self, shelf: Shelf) -> None:
        shelf.put("abc")
        shelf.begin("d")
        shelf.hold("a")
        for key in "ad":
            shelf.remove(key)
        assert shelf.order == [*"bc"]
        assert sum(queue.size for queue in queues(shelf.policy)) == 2 * PAGE

    def test_the_object_in_hand_may_be_removed_while_all_members_are_visited(self, shelf: Shelf) -> None:
        shelf.put("abcdef")
        shelf.hit("ba")
        shelf.hold("c")
        met = []
        for ranked in shelf.policy.members():
            met.append(ranked.key)
            shelf.policy.remove(ranked)
        assert sorted(met) == [*"abdef"]
        assert shelf.order == []

    def test_members_come_roughly_the_other_way_round(self, shelf: Shelf) -> None:
        shelf.put("abcd")
        assert shelf.members == [*"dcba"]

    def test_of_a_clear_nothing_is_left(self, shelf: Shelf) -> None:
        shelf.put("abcdef")
        shelf.hit("ab")
        for key in "fe":
            shelf.evict(key)
        shelf.hold("c")
        shelf.begin("x")
        shelf.clear()
        assert (shelf.order, shelf.members) == ([], [])
        assert {queue.size for queue in queues(shelf.policy)} == {0}
        assert [(len(each), each.size) for each in ghosts(shelf.policy)] == [(0, 0)] * len(ghosts(shelf.policy))
        shelf.put("fab")
        assert shelf.order == [*"fab"]

    # Whom another policy ranked before

    def test_what_is_adopted_goes_before_what_is_there_in_the_order_of_the_last_to_come(self, shelf: Shelf) -> None:
        shelf.put("xyz")
        for key in "cba":
            shelf.adopt(key)
        assert shelf.order == [*"abcxyz"]

    def test_what_is_adopted_counts_and_can_be_used_held_and_evicted(self, shelf: Shelf) -> None:
        for key in "cba":
            shelf.adopt(key, 2 * PAGE)
        assert sum(queue.size for queue in queues(shelf.policy)) == 6 * PAGE
        shelf.hold("a")
        assert shelf.order == [*"bc"]
        shelf.hit("a")
        shelf.unhold("a")
        shelf.evict("b")
        assert sorted(shelf.order) == [*"ac"]

    def test_what_is_adopted_is_not_remembered_as_evicted(self) -> None:
        shelf = Shelf(self.make(CAPACITY))
        for key in ("a", "b"):
            shelf.begin(key)
            shelf.unhold([key])
        shelf.evict("a")
        shelf.evict("b")
        remembered = [each for each in vars(shelf.policy).values() if isinstance(each, Ghosts)]
        assert sum(map(len, remembered)) == (2 if remembered else 0)
        shelf.adopt("a")
        shelf.adopt("b")
        assert sum(map(len, remembered)) == 0

    # Whatever happens

    def test_whatever_happens_what_can_be_evicted_is_named_once_and_the_bytes_are_right(self) -> None:
        @given(events=EVENTS)
        @settings(max_examples=200, deadline=None)
        def happens(events: list[tuple[str, str, int]]) -> None:
            shelf = Shelf(self.make(CAPACITY))
            for action, which, number in events:
                self._do(shelf, action, which, number)
                self._check(shelf)

        happens()

    def _do(self, shelf: Shelf, action: str, which: str, number: int) -> None:
        policy, key = shelf.policy, which[0]
        ranked = shelf.there.get(key)
        there = [each for each in dict.fromkeys(which) if each in shelf.there]
        match action:
            case "begin" if ranked is None:
                shelf.begin(key, number * PAGE, which[-1])
            case "adopt" if ranked is None:
                shelf.adopt(key, number * PAGE)
            case "hit" | "refresh":
                getattr(shelf, action)(there)
            case "hold":
                shelf.hold(each for each in there if not shelf.there[each].held)
            case "write" | "let go":
                shelf.unhold(each for each in there if shelf.there[each].held)
            case "evict" if shelf.idle:
                shelf.evict(shelf.order[0] if number % 2 else shelf.idle[0].key)
            case "remove" if ranked is not None:
                shelf.remove(key)
            case "ask":
                policy.expect(key, number * PAGE)
                next(policy.victims(), None)
            case "look":
                list(policy.victims())
            case "clear" if number == 1:
                shelf.clear()
            case "resize" if number > 1:
                policy.set_capacity((number - 2) * CAPACITY // 2 or PAGE)

    def _check(self, shelf: Shelf) -> None:
        idle = Counter(ranked.key for ranked in shelf.idle)
        assert Counter(shelf.members) == idle
        assert Counter(shelf.order) == idle
        counted: Counter[object] = Counter()
        for ranked in shelf.there.values():
            assert ranked.queue is not None
            assert ranked.queue.owner is shelf.policy
            counted[ranked.queue] += ranked.size
        assert {queue: queue.size for queue in queues(shelf.policy) if queue.size} == dict(counted)
        self.check_more(shelf)

    def check_more(self, shelf: Shelf) -> None:
        """What else is true of one policy at any time."""

    def test_the_size_of_a_page_decides_nothing(self) -> None:
        """All sizes and the capacity 4,096 times larger: the same decisions."""

        def decisions(unit: int) -> list[Hashable]:
            random, chosen = Random(7), []
            shelf = Shelf(self.make(100 * unit))
            for _ in range(6000):
                key = int(300 * random.random() ** 3)
                if key in shelf.there:
                    shelf.hit([key])
                    continue
                size = (key % 5 + 1) * unit
                shelf.policy.expect(key, size)
                while shelf.size + size > 100 * unit:
                    chosen.append(next(shelf.policy.victims()).key)
                    shelf.evict(chosen[-1])
                shelf.begin(key, size)
                shelf.unhold([key])
            return chosen

        small = decisions(1)
        assert len(small) > 1000
        assert decisions(4096) == small

    # What it costs

    @pytest.mark.parametrize("work", ["ask", "ask, let go"])
    def test_however_many_are_held_asking_for_a_victim_costs_little(self, work: str) -> None:
        """Each hold may cost a step later on, once."""
        count = 5000
        shelf = Shelf(self.make(2 * count * PAGE))
        shelf.put(range(count + 3))
        shelf.hit(range(count + 3))
        shelf.hit(range(count + 3))
        shelf.hold(range(count))
        assert next(shelf.policy.victims()).key == count
        assert steps_of(lambda: next(shelf.policy.victims())) < 150
        if work == "ask, let go":
            shelf.unhold(reversed(range(count)))
            shelf.hold(range(count))
            once = steps_of(lambda: next(shelf.policy.victims()))
            assert once < 20 * count
            assert steps_of(lambda: next(shelf.policy.victims())) < 150

    def test_what_is_remembered_of_those_who_left_is_bounded(self) -> None:
        capacity, random = 500, Random(1)
        shelf = FullShelf(self.make(capacity), capacity)
        most = 0
        for number in range(30_000):
            shelf.request(random.randrange(600) if number % 3 else number)
            found = ghosts(shelf.policy)
            most = max(most, sum(each.size for each in found))
            assert all(len(each._oldest) <= 256 + len(each) // 64 for each in found)
            assert all(len(each._shared) <= 1024 for each in found)
        assert most <= self.ghost_capacities * capacity
        assert bool(most) == bool(self.ghost_capacities)

    def test_it_can_be_resized_under_its_objects_and_to_almost_nothing(self) -> None:
        shelf = Shelf(self.make(CAPACITY))
        for capacity in (1, CAPACITY, PAGE, 100 * CAPACITY, 1):
            shelf.put(name for name in NAMES if name not in shelf.there)
            for _ in range(50):
                shelf.hit("ab")
            shelf.policy.set_capacity(capacity)
            for _ in range(50):
                shelf.hit("bc")
            for key in "de":
                shelf.evict(key)
            assert sorted(shelf.order) == [*"abcf"]
            self._check(shelf)


def steps_of(work: Callable[[], Any]) -> int:
    """Lines of code that are executed."""
    steps = 0

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal steps
        steps += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return steps
