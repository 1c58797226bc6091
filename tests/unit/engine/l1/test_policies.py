"""What the cache may rely on with every eviction policy, and while objects move from one to another."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from itertools import product
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import engine.l1.policies
from engine.l1.policies.base import EvictionPolicy
from engine.l1.policies.handover import Handover

Make = Callable[[], EvictionPolicy]
FOLDER = Path(engine.l1.policies.__path__[0])
NAMES = sorted(path.stem.removesuffix("_policy") for path in FOLDER.glob("*_policy.py"))
KEYS = [b"a", b"b", b"c", b"d", b"e"]


def policy_of(name: str) -> EvictionPolicy:
    made: EvictionPolicy = import_module(f"engine.l1.policies.{name}_policy").Policy()
    return made


def handover_of(*names: str) -> EvictionPolicy:
    made = policy_of(names[0])
    for name in names[1:]:
        made = Handover(made, policy_of(name))
    return made


EVERY_POLICY = [pytest.param(lambda name=name: policy_of(name), id=name) for name in NAMES]
EVERY_HANDOVER = [
    pytest.param(lambda names=names: handover_of(*names), id=" to ".join(names))
    for names in [*product(NAMES, NAMES), *product(NAMES, NAMES, NAMES)]
]
every = pytest.mark.parametrize("make", [*EVERY_POLICY, *EVERY_HANDOVER])


def ranked(policy: EvictionPolicy) -> list[bytes]:
    return list(policy.victims())


def filled(make: Make, keys: str) -> EvictionPolicy:
    policy = make()
    for key in keys:
        policy.insert(key.encode(), 4096)
    return policy


def names(policy: EvictionPolicy) -> str:
    return b"".join(policy.victims()).decode()


def test_there_are_the_policies_that_can_be_configured() -> None:
    assert NAMES == ["fifo", "lru"]


@every
def test_what_was_never_used_goes_in_the_order_of_its_arrival(make: Make) -> None:
    assert names(filled(make, "cab")) == "cab"


@every
def test_what_is_held_is_no_victim_until_it_is_let_go(make: Make) -> None:
    policy = filled(make, "abc")
    policy.hold(b"b")
    assert names(policy) == "ac"
    policy.unhold(b"b", 4096)
    assert sorted(ranked(policy)) == [b"a", b"b", b"c"]


@every
def test_a_use_of_what_is_held_or_unknown_ranks_nothing(make: Make) -> None:
    policy = filled(make, "abc")
    policy.hold(b"b")
    policy.touch([b"b", b"x"])
    assert names(policy) == "ac"


@every
@pytest.mark.parametrize("held", [False, True])
def test_what_was_removed_comes_back_as_something_new(make: Make, held: bool) -> None:
    policy = filled(make, "abc")
    if held:
        policy.hold(b"a")
    policy.remove(b"a")
    policy.remove(b"x")
    assert names(policy) == "bc"
    policy.insert(b"a", 4096)
    assert names(policy) == "bca"


@every
def test_of_a_clear_nothing_is_left_and_the_held_neither(make: Make) -> None:
    policy = filled(make, "abc")
    policy.hold(b"a")
    policy.clear()
    assert names(policy) == ""
    for key in (b"b", b"a"):
        policy.insert(key, 4096)
    assert names(policy) == "ba"


@every
def test_asking_for_victims_changes_nothing(make: Make) -> None:
    policy = filled(make, "abc")
    next(policy.victims())
    assert names(policy) == names(policy) == "abc"


ACTIONS = st.tuples(st.sampled_from(["come", "use", "hold", "let go", "go", "clear", "move"]), st.sampled_from(KEYS))


@every
def test_whatever_happens_what_can_be_evicted_is_ranked_once(make: Make) -> None:
    @given(actions=st.lists(ACTIONS, max_size=40), count=st.integers(1, 3))
    @settings(max_examples=40, deadline=None)
    def happens(actions: list[tuple[str, bytes]], count: int) -> None:
        policy = make()
        free: set[bytes] = set()
        held: set[bytes] = set()
        for action, key in actions:
            match action:
                case "come" if key not in free | held:
                    policy.insert(key, 4096)
                    free.add(key)
                case "use":
                    policy.touch([key, b"unknown"])
                case "hold" if key in free:
                    policy.hold(key)
                    free.remove(key)
                    held.add(key)
                case "let go" if key in held:
                    policy.unhold(key, 4096)
                    held.remove(key)
                    free.add(key)
                case "go":
                    policy.remove(key)
                    free.discard(key)
                    held.discard(key)
                case "clear" if key == KEYS[0]:
                    policy.clear()
                    free, held = set(), set()
                case "move" if isinstance(policy, Handover) and policy.move(count, lambda key: 4096):
                    policy = policy.new
            assert sorted(ranked(policy)) == sorted(free)

    happens()
