"""Figures as rows of one table: ours, the reference's, the baseline of the same run, the ratios, the aim."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class Row:
    """One figure. Values are in ``unit``; a ratio is of two values taken in this run."""

    name: str
    unit: str
    ours: float | None = None
    reference: float | None = None
    baseline: float | None = None
    to_baseline: float | None = None
    """Ours divided by the baseline."""
    reference_to_baseline: float | None = None
    to_reference: float | None = None
    """Ours divided by the reference's."""
    aim: str = ""
    met: bool | None = None
    """Whether the aim is reached; None where there is none, or where it needs what was not measured."""

    def aim_at_least(self, ratio: float) -> None:
        """The aim is a share of the baseline's speed."""
        self.aim = f">= {ratio:g} of baseline"
        self.met = None if self.to_baseline is None else self.to_baseline >= ratio

    def aim_of_reference(self, ratio: float) -> None:
        """The aim is a part of the reference's time."""
        self.aim = f"<= {ratio:g} of reference"
        self.met = None if self.to_reference is None else self.to_reference <= ratio

    def aim_below(self, value: float) -> None:
        """The aim is a value."""
        self.aim = f"< {value:g} {self.unit}"
        self.met = None if self.ours is None else self.ours < value

    def aim_above(self, value: float) -> None:
        """The aim is at least a value."""
        self.aim = f">= {value:g} {self.unit}"
        self.met = None if self.ours is None else self.ours >= value


@dataclass
class Section:
    """Rows that were measured together, and how."""

    title: str
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


HEADINGS = ("", "unit", "kvkeep", "reference", "baseline", "kvkeep/base", "ref/base", "kvkeep/ref", "aim", "met")


def render(section: Section) -> str:
    """The section as text, columns aligned; columns without any value are left out."""
    lines = [HEADINGS, *(_cells(row) for row in section.rows)]
    used = [index for index in range(len(HEADINGS)) if any(line[index] for line in lines[1:])]
    widths = {index: max(len(line[index]) for line in lines) for index in used}
    table = ["  ".join(_aligned(line[index], widths[index], index) for index in used).rstrip() for line in lines]
    rule = "-" * max(map(len, table), default=0)
    return "\n".join(["", section.title, rule, table[0], rule, *table[1:], *section.notes])


def _aligned(text: str, width: int, index: int) -> str:
    return text.ljust(width) if index in (0, 1, 8, 9) else text.rjust(width)


def _cells(row: Row) -> tuple[str, ...]:
    values = (row.ours, row.reference, row.baseline, row.to_baseline, row.reference_to_baseline, row.to_reference)
    met = "" if row.met is None else ("yes" if row.met else "NO")
    return (row.name, row.unit, *map(_number, values), row.aim, met)


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}" if abs(value) < 0.1 else f"{value:.2f}"


def median(values: Sequence[float]) -> float:
    return statistics.median(values)
