"""Policies are made by name."""

from __future__ import annotations

import pytest

from engine import StartError, policy_names
from engine.discovery import policy_maker


@pytest.mark.parametrize("name", policy_names())
def test_every_policy_is_made_with_its_capacity(name: str) -> None:
    policy = policy_maker(name)(1234)
    assert type(policy).__module__ == f"engine.l1.policies.{name}_policy"
    assert policy.capacity == 1234


@pytest.mark.parametrize("name", ["", "base", "LRU", "optimal", "lru_policy", "..lru"])
def test_no_other_name_makes_one(name: str) -> None:
    with pytest.raises(StartError, match=f"there is no eviction policy '{name}'"):
        policy_maker(name)
