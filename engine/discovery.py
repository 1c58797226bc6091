"""Modules found by the names of their files, so that adding one means dropping it into its folder."""

from __future__ import annotations

import pkgutil

import engine.l1.policies
import engine.l2

POLICY_SUFFIX = "_policy"
L2_SUFFIX = "_l2"


def policy_names() -> tuple[str, ...]:
    """The eviction policies that exist: `engine/l1/policies/NAME_policy.py`. Imports none of them."""
    return _stems(engine.l1.policies.__path__, POLICY_SUFFIX)


def l2_types() -> tuple[str, ...]:
    """The L2 adapters that exist: `engine/l2/TYPE_l2.py`. Imports none of them."""
    return _stems(engine.l2.__path__, L2_SUFFIX)


def _stems(path: list[str], suffix: str) -> tuple[str, ...]:
    names = (module.name for module in pkgutil.iter_modules(path))
    return tuple(sorted(name.removesuffix(suffix) for name in names if name.endswith(suffix)))
