"""What to do about the size and the policy of L1, in one sentence. Pure: equal numbers, equal sentence."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from engine.advisor.report import AdvisorReport, Estimate
from engine.settings import GIB, MIB

ENOUGH_REFERENCES: Final = 10_000
"""Sampled references without which an estimate may be off by more than two points."""
_DROPPED: Final = 0.05
"""Part of the references without which what is left tells nothing about the traffic."""
_GROWTH_POINTS: Final = 2.0
_SWITCH_POINTS: Final = 1.0
_LOSS_POINTS: Final = 0.5

_GROWING: Final = {2.0: "doubling L1", 4.0: "growing L1 fourfold", 8.0: "growing L1 eightfold"}


def advise(report: AdvisorReport) -> str:
    """The sentence for a report, which is not looked for in it."""
    if not report.is_enabled:
        return "no advice: the advisor is off (advisor.enabled)."
    missing = list(_missing(report))
    if missing:
        return f"no advice yet: {' and '.join(missing)}."
    return _Choice(report).sentence()


def _missing(report: AdvisorReport) -> Iterator[str]:
    """What an estimate needs and does not have."""
    if report.sampled_references < ENOUGH_REFERENCES:
        yield f"the sample has {report.sampled_references:,} of the {ENOUGH_REFERENCES:,} references that it needs"
    if report.dropped_references > _DROPPED * report.references:
        yield f"{report.dropped_references:,} references were dropped, since the traffic is more than there is time for"
    if not _at(report, report.policy, 1.0).has_been_full:
        yield f"L1 of {size_text(report.l1_size)} has not been filled once by this traffic"


class _Choice:
    """What is compared for a sentence."""

    def __init__(self, report: AdvisorReport) -> None:
        self._report = report
        self._present = _at(report, report.policy, 1.0)
        same_size = [each for each in report.estimates if each.factor == 1.0]
        best = max(same_size, key=lambda each: each.hit_ratio)
        self._switch = best if _gain(self._present, best) >= _SWITCH_POINTS else None
        self._growth = next((each for each in self._larger() if _gain(self._present, each) >= _GROWTH_POINTS), None)

    def sentence(self) -> str:
        growth, switch, present = self._growth, self._switch, self._present
        if growth and switch:
            both = _at(self._report, switch.policy, growth.factor)
            return (
                f"{_growing(growth)} would raise hits {_from_to(present, growth)}; "
                f"switching to {switch.policy} would raise them to {_percent(switch)}, and both to {_percent(both)}."
            )
        if growth:
            return f"{_growing(growth)} would raise hits {_from_to(present, growth)}."
        if switch:
            return f"switching to {switch.policy} would raise hits {_from_to(present, switch)}."
        return self._stay()

    def _stay(self) -> str:
        half, double = _at(self._report, self._report.policy, 0.5), _at(self._report, self._report.policy, 2.0)
        loss = max(0.0, _gain(half, self._present))
        if loss < _LOSS_POINTS:
            return (
                f"L1 could be halved to {size_text(half.size)} at a loss of {loss:.1f} points: hits are at "
                f"{_percent(self._present)}, and doubling L1 would add {max(0.0, _gain(self._present, double)):.1f}."
            )
        return (
            f"no change: hits are at {_percent(self._present)}, {_growing(double)} would add "
            f"{max(0.0, _gain(self._present, double)):.1f} points, and no other policy adds {_SWITCH_POINTS:g}."
        )

    def _larger(self) -> Iterator[Estimate]:
        for each in sorted(self._report.estimates, key=lambda each: each.factor):
            if each.policy == self._report.policy and each.factor > 1.0:
                yield each


def size_text(size: int) -> str:
    """A size as operators write it: `8 GiB`, `1.5 GiB`, `512 MiB`."""
    unit, name = (GIB, "GiB") if size >= GIB else (MIB, "MiB") if size >= MIB else (1 << 10, "KiB")
    return f"{size / unit:.2f}".rstrip("0").rstrip(".") + f" {name}"


def _at(report: AdvisorReport, policy: str, factor: float) -> Estimate:
    return next(each for each in report.estimates if each.policy == policy and each.factor == factor)


def _gain(old: Estimate, new: Estimate) -> float:
    """In points, to the hundredth: so that 30.0 % is two points more than 28.0 %."""
    return round(100 * (new.hit_ratio - old.hit_ratio), 2)


def _growing(growth: Estimate) -> str:
    return f"{_GROWING[growth.factor]} to {size_text(growth.size)}"


def _percent(estimate: Estimate) -> str:
    return f"{100 * estimate.hit_ratio:.0f} %"


def _from_to(old: Estimate, new: Estimate) -> str:
    return f"from {_percent(old)} to {_percent(new)}"
