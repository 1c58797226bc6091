"""Least recently used, and never who is in use."""

from __future__ import annotations

from engine.l1.policies.lru_policy import Policy


def order(policy: Policy) -> str:
    """The victims, first one first."""
    return b"".join(policy.victims()).decode()


def policy_of(keys: str) -> Policy:
    policy = Policy()
    for key in keys:
        policy.insert(key.encode(), 1)
    return policy


def keys(text: str) -> list[bytes]:
    return [key.encode() for key in text]


def test_the_oldest_goes_first() -> None:
    assert order(policy_of("abc")) == "abc"


def test_what_is_used_goes_last_and_a_prompts_suffix_before_its_prefix() -> None:
    policy = policy_of("abcd")
    policy.touch(keys("ba"))
    assert order(policy) == "cdba"


def test_what_is_held_is_no_victim_and_is_new_when_it_is_let_go() -> None:
    policy = policy_of("abc")
    policy.hold(b"a")
    assert order(policy) == "bc"
    policy.unhold(b"a", 1)
    assert order(policy) == "bca"


def test_touching_what_is_held_or_unknown_ranks_nothing() -> None:
    policy = policy_of("abc")
    policy.hold(b"b")
    policy.touch(keys("bxa"))
    assert order(policy) == "ca"


def test_what_is_removed_is_gone_held_or_not() -> None:
    policy = policy_of("abc")
    policy.hold(b"b")
    for key in keys("abx"):
        policy.remove(key)
    assert order(policy) == "c"


def test_nothing_is_left_of_a_clear() -> None:
    policy = policy_of("abc")
    policy.clear()
    assert order(policy) == ""
