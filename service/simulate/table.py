"""Results as tables for people."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from engine import OPTIMAL, HitRatios
from service.simulate.results import TraceResults

BEST = "*"


def tables(found: TraceResults) -> list[str]:
    """The lines about one trace: what is in it, and the hit ratios of blocks and of bytes."""
    trace = found.trace
    return [
        f"{found.file}: {len(trace.requests):,} requests for {trace.references:,} blocks, {trace.unique:,} unique; "
        f"{_percent(found.most_hits)} % of them asked for before",
        "",
        *_table("hit ratio of blocks, %", found, lambda ratios: ratios.blocks),
        "",
        *_table("hit ratio of bytes, %", found, lambda ratios: ratios.tokens),
        *_legend(found.policies),
    ]


def _table(title: str, found: TraceResults, ratio: Callable[[HitRatios], float]) -> list[str]:
    policies = found.policies
    cells = {name: [_percent(ratio(result.ratios)) for result in found.of(name)] for name in policies}
    sizes = [result.size.text for result in found.of(policies[0])]
    capacities = [f"{result.capacity:,}" for result in found.of(policies[0])]
    rows = [[title, *sizes], ["(size in blocks)", *capacities]]
    return _aligned([*rows, *([name, *_marked(cells, name)] for name in policies)])


def _marked(cells: dict[str, list[str]], name: str) -> list[str]:
    """A policy's cells, with a mark where no other one that a server can have is better."""
    rivals = _rivals(list(cells))
    if name not in rivals:
        return cells[name]
    best = [max(float(cells[rival][column]) for rival in rivals) for column in range(len(cells[name]))]
    return [f"{BEST}{cell}" if float(cell) == top else cell for cell, top in zip(cells[name], best, strict=True)]


def _rivals(policies: Sequence[str]) -> list[str]:
    real = [name for name in policies if name != OPTIMAL]
    return real if len(real) > 1 else []


def _legend(policies: Sequence[str]) -> list[str]:
    marks = [f"{BEST} the best of the server's policies"] if _rivals(policies) else []
    optimum = [f"{OPTIMAL}: the best that is possible, knowing all requests to come"] if OPTIMAL in policies else []
    return ["", "; ".join([*marks, *optimum])] if marks or optimum else []


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    columns = list(zip(*rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    return ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]


def _percent(part: float) -> str:
    return f"{100 * part:.1f}"
