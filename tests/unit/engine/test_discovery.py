"""Policies and adapters are found by the names of their files."""

from __future__ import annotations

from pathlib import Path

import pytest

import engine.l1.policies
import engine.l2
from engine import l2_types, policy_names


def test_the_policy_that_exists_is_found() -> None:
    assert policy_names() == ("fifo", "lru")


def test_there_is_no_adapter_yet() -> None:
    assert l2_types() == ()


@pytest.mark.parametrize(
    ("package", "suffix", "found"),
    [
        (engine.l1.policies, "policy", policy_names),
        (engine.l2, "l2", l2_types),
    ],
)
def test_a_file_with_the_right_name_is_all_it_takes(package, suffix, found, tmp_path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    folder: Path = tmp_path
    for name in (f"zebra_{suffix}.py", f"apple_{suffix}.py", "base.py", f"{suffix}_other.py", f"notes_{suffix}.txt"):
        (folder / name).write_text("raise SystemExit('imported')\n")
    monkeypatch.setattr(package, "__path__", [str(folder)])
    assert found() == ("apple", "zebra")
