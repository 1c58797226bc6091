"""Policies and adapters are found by the names of their files."""

from __future__ import annotations

from pathlib import Path

import pytest

import engine.l1.policies
import engine.l2
from engine import StartError, l2_types, policy_names
from engine.discovery import policy_maker


def test_the_policies_that_exist_are_found() -> None:
    assert policy_names() == ("arc", "fifo", "hit_density", "lru", "s3fifo")


@pytest.mark.parametrize("name", policy_names())
def test_each_of_them_can_be_made_for_a_capacity(name: str) -> None:
    assert policy_maker(name)(8192).capacity == 8192


@pytest.mark.parametrize("name", ["mru", "", "base", "LRU", "../lru"])
def test_one_that_there_is_not_is_refused_with_those_that_there_are(name: str) -> None:
    with pytest.raises(StartError, match=r"no eviction policy .*; there are arc, fifo, hit_density, lru, s3fifo"):
        policy_maker(name)


def test_the_l2_adapters_are_those_of_the_folder() -> None:
    assert {"filesystem", "memory"} <= {*l2_types()}


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
