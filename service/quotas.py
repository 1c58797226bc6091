"""The quotas of the configuration: what the schema cannot say of them, and what they mean to the engine. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from engine import QuotaSettings, TenantQuota
from service.problems import SettingPath
from service.sizes import is_size, parse_size

Report = Callable[[SettingPath, str], None]
"""Takes a problem: where it is, and what is wrong."""


def check_quotas(quotas: Any, l1_size: int, report: Report) -> None:
    """Reports whatever cannot be together. What the schema finds wrong is passed over."""
    seen: set[str] = set()
    reserved = 0
    for index, tenant in _tenants(quotas):
        path: SettingPath = ("quotas", "tenants", index)
        salt, limit, reservation = (
            tenant.get("cache_salt"),
            _bytes(tenant.get("limit")),
            _bytes(tenant.get("reservation")),
        )
        if isinstance(salt, str) and salt in seen:
            report((*path, "cache_salt"), "has a quota above already")
        if isinstance(salt, str):
            seen.add(salt)
        if limit is not None and limit < 1:
            report((*path, "limit"), "must be at least 1 byte; leave it out for no limit")
        if reservation is not None and limit is not None and reservation > limit:
            report((*path, "reservation"), "must be at most the limit")
        reserved += reservation or 0
        if reservation and reserved > l1_size:
            report((*path, "reservation"), f"makes the reservations {reserved} bytes, and l1.size is {l1_size}")
            return


def quota_settings(quotas: dict[str, Any]) -> QuotaSettings:
    """The quotas as the engine takes them; `quotas` is right."""
    return QuotaSettings(
        _bytes(quotas["default_limit"]),
        tuple(
            TenantQuota(tenant["cache_salt"], _bytes(tenant.get("limit")), _bytes(tenant.get("reservation")) or 0)
            for tenant in quotas["tenants"]
        ),
    )


def _tenants(quotas: Any) -> Iterator[tuple[int, dict[str, Any]]]:
    tenants = quotas.get("tenants") if isinstance(quotas, dict) else None
    for index, tenant in enumerate(tenants if isinstance(tenants, list) else []):
        if isinstance(tenant, dict):
            yield index, tenant


def _bytes(size: Any) -> int | None:
    """A size in bytes; None if there is none, or what is there is not one."""
    return parse_size(size) if type(size) is int or (isinstance(size, str) and is_size(size)) else None
