"""First in, first out, and never who is in use."""

from __future__ import annotations

from engine.l1.policies.fifo_policy import Policy
from tests.unit.engine.l1.test_lru_policy import keys


def order(policy: Policy) -> str:
    """The victims, first one first."""
    return b"".join(policy.victims()).decode()


def policy_of(text: str) -> Policy:
    policy = Policy()
    for key in keys(text):
        policy.insert(key, 1)
    return policy


def test_use_does_not_matter() -> None:
    policy = policy_of("abc")
    policy.touch(keys("ba"))
    assert order(policy) == "abc"


def test_what_is_held_keeps_its_place() -> None:
    policy = policy_of("abc")
    for key in keys("ab"):
        policy.hold(key)
    assert order(policy) == "c"
    for key in keys("ba"):
        policy.unhold(key, 1)
    assert order(policy) == "abc"


def test_one_that_it_did_not_know_while_it_was_held_comes_last() -> None:
    policy = policy_of("ab")
    policy.unhold(b"x", 1)
    assert order(policy) == "abx"


def test_what_was_removed_while_it_was_held_has_lost_its_place() -> None:
    policy = policy_of("abc")
    policy.hold(b"a")
    policy.remove(b"a")
    policy.insert(b"a", 1)
    assert order(policy) == "bca"
