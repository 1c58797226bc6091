"""Quotas in the configuration: what they mean to the engine, and what cannot be."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine import MIB, QuotaSettings, TenantQuota
from service import assets
from service.problems import ConfigError
from service.schema import load_schema
from service.settings import Settings, load_settings

SCHEMA = load_schema(assets.schema_path())


@pytest.fixture
def load(tmp_path: Path):
    def load(quotas: str) -> Settings:
        file = tmp_path / "f.yaml"
        file.write_text("l1: {size: 64MiB}\nquotas:\n" + quotas)
        return load_settings(SCHEMA, str(file), (), {})

    return load


@pytest.fixture
def refuse(load, tmp_path: Path):
    def refuse(quotas: str) -> list[str]:
        with pytest.raises(ConfigError) as caught:
            load(quotas)
        return [str(problem).removeprefix(f"{tmp_path}/") for problem in caught.value.problems]

    return refuse


def test_sizes_may_have_units_and_what_is_left_out_is_no_limit_and_no_reservation(load) -> None:
    settings = load(
        """  default_limit: 4MiB
  tenants:
    - {cache_salt: a, limit: 8MiB, reservation: 2MiB}
    - {cache_salt: "", reservation: 1048576}
    - {cache_salt: b, limit: null}
"""
    )
    tenants = (TenantQuota("a", 8 * MIB, 2 * MIB), TenantQuota("", None, MIB), TenantQuota("b"))
    assert settings.engine.quotas == QuotaSettings(4 * MIB, tenants)


@pytest.mark.parametrize(
    ("tenants", "problem"),
    [
        ("[{limit: 1MiB}]", "f.yaml:3: quotas.tenants[0]"),
        ("[{cache_salt: a}, {cache_salt: a}]", "f.yaml:3: quotas.tenants[1].cache_salt = a: has a quota above already"),
        ("[{cache_salt: a/b}]", "f.yaml:3: quotas.tenants[0].cache_salt = a/b: must be written like team-a"),
        ("[{cache_salt: a, limit: 0}]", "f.yaml:3: quotas.tenants[0].limit = 0: must be at least 1"),
        (
            "[{cache_salt: a, limit: 0.1B}]",
            "f.yaml:3: quotas.tenants[0].limit = 0.1B: must be at least 1 byte; leave it out for no limit",
        ),
        (
            "[{cache_salt: a, limit: 1MiB, reservation: 2MiB}]",
            "f.yaml:3: quotas.tenants[0].reservation = 2MiB: must be at most the limit",
        ),
        (
            "[{cache_salt: a, reservation: 40MiB}, {cache_salt: b, reservation: 25MiB}]",
            "f.yaml:3: quotas.tenants[1].reservation = 25MiB: makes the reservations 68157440 bytes, "
            "and l1.size is 67108864",
        ),
    ],
)
def test_what_cannot_be_is_named_with_its_place(refuse, tenants: str, problem: str) -> None:
    [found] = refuse(f"  tenants: {tenants}\n")
    assert found.startswith(problem)
