"""The settings that change live: what each of them means in the running process. The order is that of application.

What can be taken back without loss comes first, the size of L1 last: a smaller one evicts, and a larger one may fail.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from engine import EngineStoppedError, L2Settings, QuotaSettings
from service import assets
from service.access import AccessControl
from service.appliers import Applier, setter
from service.configuration import ConfigSource, Configuration
from service.logs import Logs
from service.schema import load_schema
from service.settings import Settings


class Tunable(Protocol):
    """The part of the running engine that live settings change. Both block until it is done."""

    def resize_l1(self, size: int) -> None:
        """Gives L1 another size in bytes. Raises EngineError, and the size is the old."""

    def set_advisor(self, enabled: bool) -> None:
        """Has the advisor look at the traffic, or no more."""

    def record(self, enabled: bool) -> None:
        """Begins or ends a recording. Raises EngineError, and nothing is recorded."""

    def change_policy(self, name: str) -> None:
        """Evicts by another policy from now on; the contents stay. Raises EngineError, and the policy is the old."""

    def configure_quotas(self, quotas: QuotaSettings) -> None:
        """These are the configuration's quotas from now on. Raises EngineError, and they are the old."""

    def configure_tiers(self, tiers: tuple[L2Settings, ...]) -> None:
        """These are the tiers of L2 from now on. Raises EngineError, and they are the old."""

    def set_pin_budget(self, budget: int | None) -> None:
        """Pins may hold so many bytes from now on. Raises EngineError, and the budget is the old."""


def appliers(
    engine: Callable[[], Tunable | None], largest_l1: int, logs: Logs, access: AccessControl
) -> tuple[Applier, ...]:
    """One for each setting, or group of settings, that the schema marks as live.

    `largest_l1` is the length in bytes of the segment that L1 got at the start: its size cannot be more.
    """

    def running() -> Tunable:
        found = engine()
        if found is None:
            raise EngineStoppedError("the engine is stopping")
        return found

    def is_too_large(new: Settings) -> str | None:
        return f"is more than the {largest_l1} bytes that L1 can grow to" if new.engine.l1_size > largest_l1 else None

    return (
        setter(("log", "level"), lambda each: each.log.level, logs.change),
        setter(("http",), lambda each: each.http.policy, access.replace),
        setter(
            ("advisor", "enabled"),
            lambda each: each.engine.advisor_enabled,
            lambda enabled: running().set_advisor(enabled),
        ),
        setter(
            ("recording", "enabled"),
            lambda each: each.engine.recording.enabled,
            lambda enabled: running().record(enabled),
        ),
        setter(
            ("l1", "eviction_policy"),
            lambda each: each.engine.eviction_policy,
            lambda name: running().change_policy(name),
        ),
        setter(
            ("l1", "pin_budget"),
            lambda each: each.engine.pin_budget,
            lambda budget: running().set_pin_budget(budget),
        ),
        setter(("quotas",), lambda each: each.engine.quotas, lambda quotas: running().configure_quotas(quotas)),
        setter(("l2",), lambda each: each.engine.l2, lambda tiers: running().configure_tiers(tiers)),
        setter(("l1", "size"), lambda each: each.engine.l1_size, lambda size: running().resize_l1(size), is_too_large),
    )


def defaults() -> Configuration:
    """Every setting at its default, no file to read again, and no engine: for applications without a process."""
    source = ConfigSource(load_schema(assets.schema_path()), None, (), {})
    return Configuration(source, source.load(), appliers=appliers(lambda: None, 0, Logs(), AccessControl()))
