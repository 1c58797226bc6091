"""Eviction policies made by name. Only the one that is asked for is imported."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from engine.discovery import POLICY_SUFFIX, policy_names
from engine.errors import StartError

if TYPE_CHECKING:
    from engine.l1.policies.base import EvictionPolicy


def make_policy(name: str, capacity: int) -> EvictionPolicy:
    """The policy of `engine/l1/policies/NAME_policy.py` for that many bytes. Raises StartError if there is none."""
    if name not in policy_names():
        raise StartError(f"there is no eviction policy {name!r}")
    module: Any = import_module(f"engine.l1.policies.{name}{POLICY_SUFFIX}")
    policy: EvictionPolicy = module.Policy(capacity)
    return policy
