"""Modules found by the names of their files, so that adding one means dropping it into its folder."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING

import engine.l1.policies
import engine.l2
from engine.errors import StartError

if TYPE_CHECKING:
    from engine.l1.policies.base import EvictionPolicy
    from engine.l2.base import L2Adapter
    from engine.settings import L2Settings

POLICY_SUFFIX = "_policy"
L2_SUFFIX = "_l2"


def policy_names() -> tuple[str, ...]:
    """The eviction policies that exist: `engine/l1/policies/NAME_policy.py`. Imports none of them."""
    return _stems(engine.l1.policies.__path__, POLICY_SUFFIX)


def policy_maker(name: str) -> Callable[[int], EvictionPolicy]:
    """What makes a policy of that name for a capacity in bytes. Raises StartError if there is none."""
    if name not in policy_names():
        raise StartError(f"there is no eviction policy {name!r}; there are {', '.join(policy_names())}")
    made: Callable[[int], EvictionPolicy] = import_module(f"engine.l1.policies.{name}{POLICY_SUFFIX}").Policy
    return made


def make_l2_adapter(settings: L2Settings) -> L2Adapter:
    """An adapter that was not opened yet. Raises StartError if it cannot be made, for instance since its client
    library is missing."""
    if settings.type not in l2_types():
        raise StartError(f"there is no L2 adapter {settings.type!r}; there are {', '.join(l2_types())}")
    try:
        module = import_module(f"engine.l2.{settings.type}{L2_SUFFIX}")
    except ModuleNotFoundError as error:
        raise StartError(
            f"the L2 tier {settings.name!r} needs the Python package {error.name}, which is not installed: "
            f"pip install 'kvkeep[{settings.type}]'"
        ) from None
    except ImportError as error:
        raise StartError(f"the client library of the L2 tier {settings.name!r} cannot be used here: {error}") from None
    try:
        adapter: L2Adapter = module.Adapter(**settings.options)
    except ValueError as error:
        raise StartError(f"the L2 tier {settings.name!r} cannot be made: {error}") from None
    return adapter


def l2_types() -> tuple[str, ...]:
    """The L2 adapters that exist: `engine/l2/TYPE_l2.py`. Imports none of them."""
    return _stems(engine.l2.__path__, L2_SUFFIX)


def _stems(path: list[str], suffix: str) -> tuple[str, ...]:
    names = (module.name for module in pkgutil.iter_modules(path))
    return tuple(sorted(name.removesuffix(suffix) for name in names if name.endswith(suffix)))
