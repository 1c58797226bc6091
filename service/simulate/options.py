"""What a simulation is asked for."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from engine import simulated_policies

ALL = "all"
"""Stands for every policy there is."""
DEFAULT_SIZES = ("1%", "2%", "5%", "10%", "20%", "50%")

_SIZE = re.compile(r"(?P<percent>[0-9]{1,9}(\.[0-9]{1,9})?)%|(?P<blocks>[0-9]{1,15})")


@dataclass(frozen=True, slots=True)
class CacheSize:
    """A cache's size as it was given: a share of the trace's unique blocks, such as `5%`, or a number of blocks."""

    text: str

    def blocks(self, unique: int) -> int:
        """For a trace with that many unique blocks; a share is rounded to the nearest, and is one block at least."""
        if not self.text.endswith("%"):
            return int(self.text)
        return max(1, int(Fraction(self.text[:-1]) * unique / 100 + Fraction(1, 2)))


@dataclass(frozen=True, slots=True)
class Simulation:
    """Each trace with each policy at each size. Nothing is named twice."""

    traces: tuple[str, ...]
    """Files."""
    policies: tuple[str, ...]
    sizes: tuple[CacheSize, ...]
    as_json: bool = False
    plot: str | None = None
    """The file for the picture."""


def parse_size(text: str) -> CacheSize:
    """Raises ValueError, with what a size looks like."""
    match = _SIZE.fullmatch(text)
    if match is not None and match["percent"] and 0 < Fraction(match["percent"]) <= 100:
        return CacheSize(text)
    if match is not None and match["blocks"] and int(match["blocks"]):
        return CacheSize(text)
    raise ValueError(f"{text!r} is not a part of the trace's unique blocks such as 5% or 0.5%, nor a number of blocks")


def parse_policy(text: str) -> str:
    """The name of a policy, in any case, or `all`. Raises ValueError, with the closest name."""
    known = (*simulated_policies(), ALL)
    name = text.lower()
    if name in known:
        return name
    close = difflib.get_close_matches(name.replace("-", "_"), known, n=1)
    hint = f", did you mean {close[0]!r}?" if close else ";"
    raise ValueError(f"{text!r} is no policy{hint} there are {', '.join(known)} (traces come before --policy)")


def expand(names: Sequence[str]) -> tuple[str, ...]:
    """The policies that the names stand for, in their order."""
    expanded = [each for name in names for each in (simulated_policies() if name == ALL else (name,))]
    return tuple(dict.fromkeys(expanded))
