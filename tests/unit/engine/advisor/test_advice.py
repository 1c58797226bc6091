"""One sentence that says what to do."""

from __future__ import annotations

from dataclasses import replace

import pytest

from engine import GIB, MIB
from engine.advisor.advice import advise, size_text
from engine.advisor.report import FACTORS, AdvisorReport, Estimate

RATIOS = {"lru": (0.20, 0.25, 0.28, 0.29, 0.295, 0.299), "hit_density": (0.20, 0.25, 0.28, 0.29, 0.295, 0.299)}
ENOUGH = AdvisorReport(True, 60.0, "lru", 4 * GIB, 100_000, 0, 10_000, 900, 0.1, 0.28, ())


def report(size: int = 4 * GIB, **ratios: tuple[float, ...]) -> AdvisorReport:
    estimates = tuple(
        Estimate(policy, factor, int(size * factor), ratio, True)
        for policy, found in (RATIOS | ratios).items()
        for factor, ratio in zip(FACTORS, found, strict=True)
    )
    return replace(ENOUGH, l1_size=size, estimates=estimates)


def test_no_change() -> None:
    assert advise(report()) == (
        "no change: hits are at 28 %, doubling L1 to 8 GiB would add 1.0 points, and no other policy adds 1."
    )


def test_growth_that_brings_two_points() -> None:
    assert advise(report(lru=(0.2, 0.25, 0.28, 0.30, 0.31, 0.32))) == (
        "doubling L1 to 8 GiB would raise hits from 28 % to 30 %."
    )


def test_growth_of_which_only_more_brings_two_points() -> None:
    assert advise(report(lru=(0.2, 0.25, 0.28, 0.29, 0.35, 0.40))) == (
        "growing L1 fourfold to 16 GiB would raise hits from 28 % to 35 %."
    )
    assert advise(report(lru=(0.2, 0.25, 0.28, 0.28, 0.28, 0.40))) == (
        "growing L1 eightfold to 32 GiB would raise hits from 28 % to 40 %."
    )


def test_a_policy_that_brings_a_point() -> None:
    assert advise(report(hit_density=(0.2, 0.25, 0.29, 0.29, 0.295, 0.299))) == (
        "switching to hit_density would raise hits from 28 % to 29 %."
    )


def test_both() -> None:
    found = report(lru=(0.2, 0.25, 0.28, 0.35, 0.36, 0.37), hit_density=(0.2, 0.25, 0.30, 0.36, 0.37, 0.38))
    assert advise(found) == (
        "doubling L1 to 8 GiB would raise hits from 28 % to 35 %; switching to hit_density would raise them to 30 %, "
        "and both to 36 %."
    )


def test_half_of_it_would_do() -> None:
    assert advise(report(lru=(0.2, 0.277, 0.28, 0.285, 0.285, 0.285))) == (
        "L1 could be halved to 2 GiB at a loss of 0.3 points: hits are at 28 %, and doubling L1 would add 0.5."
    )
    assert advise(report(lru=(0.2, 0.275, 0.28, 0.285, 0.285, 0.285))).startswith("no change")


def test_a_small_sample_is_no_evidence() -> None:
    assert advise(replace(report(), sampled_references=9_999)) == (
        "no advice yet: the sample has 9,999 of the 10,000 references that it needs."
    )


def test_traffic_that_was_not_looked_at_is_no_evidence() -> None:
    assert advise(replace(report(), dropped_references=5_000)).startswith("no change")
    assert advise(replace(report(), dropped_references=5_001)) == (
        "no advice yet: 5,001 references were dropped, since the traffic is more than there is time for."
    )


def test_an_l1_that_was_never_full_is_no_evidence() -> None:
    estimates = tuple(replace(each, has_been_full=False) for each in report().estimates)
    assert advise(replace(report(), estimates=estimates)) == (
        "no advice yet: L1 of 4 GiB has not been filled once by this traffic."
    )
    assert advise(replace(report(), estimates=estimates, sampled_references=0)) == (
        "no advice yet: the sample has 0 of the 10,000 references that it needs "
        "and L1 of 4 GiB has not been filled once by this traffic."
    )


def test_an_advisor_that_is_off_says_so() -> None:
    assert advise(replace(report(), is_enabled=False)) == "no advice: the advisor is off (advisor.enabled)."


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (8 * GIB, "8 GiB"),
        (3 * GIB // 2, "1.5 GiB"),
        (512 * MIB, "512 MiB"),
        (256 << 10, "256 KiB"),
        (10**9, "953.67 MiB"),
    ],
)
def test_sizes_are_written_as_operators_write_them(size: int, text: str) -> None:
    assert size_text(size) == text
