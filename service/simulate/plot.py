"""Hit ratio over cache size as a picture. matplotlib is an extra, imported only when a picture is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine import OPTIMAL, simulated_policies
from service.simulate.options import CacheSize
from service.simulate.results import TraceResults

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLUMNS = 2
"""Panels beside each other."""
_LEGEND_COLUMNS = 4
"""Below each of them."""
_PANEL = (6.4, 4.4)
"""Width and height of one, in inches."""
_DPI = 144
_MOST_TICKS = 12
"""That can be read beside each other."""

# Okabe and Ito's colours, which people with colour-blindness can tell apart too; markers for prints in grey.
_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")


class PlotError(Exception):
    """The picture cannot be made; says why and what to do."""


def check_plot(file: str) -> None:
    """Finds out before a long run what would be in the way after it. Raises PlotError."""
    path = Path(file)
    if path.suffix.lower() != ".png":
        raise PlotError(f"{file}: the picture's name must end in .png")
    if not path.parent.is_dir():
        raise PlotError(f"{file}: there is no folder {path.parent}")
    try:
        import matplotlib.figure  # noqa: F401  # only whether it can be had
    except ImportError as error:
        remedy = "pip install 'kvkeep[plot]'"
        raise PlotError(f"--plot needs matplotlib, which cannot be imported ({error}): {remedy}") from None


def draw(found: Sequence[TraceResults], file: str) -> None:
    """Writes the picture. Raises PlotError if the file cannot be written."""
    try:
        picture(found).savefig(file, format="png", dpi=_DPI)
    except OSError as error:
        raise PlotError(f"{file}: cannot be written: {error.strerror}") from None


def picture(found: Sequence[TraceResults]) -> Figure:
    """One panel for each trace, one line for each policy."""
    figure, panels = _panels(len(found))
    for axes, results in zip(panels, found, strict=True):
        _draw_trace(axes, results)
    figure.suptitle("Hit ratio over cache size")
    handles, labels = panels[0].get_legend_handles_labels()
    columns = _LEGEND_COLUMNS * min(len(found), _COLUMNS)
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False)
    return figure


def _panels(count: int) -> tuple[Figure, list[Axes]]:
    # NOTE: Not pyplot, which looks for a display and keeps what it draws. A figure by itself is drawn by Agg.
    from matplotlib.figure import Figure

    columns = min(count, _COLUMNS)
    rows = -(-count // columns)
    figure = Figure(figsize=(_PANEL[0] * columns, _PANEL[1] * rows + 0.6), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).flatten().tolist()
    for spare in grid[count:]:
        spare.remove()
    return figure, grid[:count]


def _draw_trace(axes: Axes, found: TraceResults) -> None:
    unique = found.trace.unique
    for policy in found.policies:
        points = sorted((100 * result.capacity / unique, 100 * result.ratios.blocks) for result in found.of(policy))
        axes.plot(*zip(*points, strict=True), label=policy, **_style(policy))
    axes.axhline(100 * found.most_hits, color="0.6", linewidth=1, linestyle=":", label="unlimited cache", zorder=1)
    axes.set_title(f"{Path(found.file).name} ({unique:,} unique blocks)", fontsize="medium")
    _scale(axes, found)


def _style(policy: str) -> dict[str, Any]:
    """The same for a policy in all pictures."""
    if policy == OPTIMAL:
        return {"color": "black", "linestyle": "--", "linewidth": 1.4, "marker": "."}
    index = simulated_policies().index(policy)
    colour, marker = _COLOURS[index % len(_COLOURS)], _MARKERS[index % len(_MARKERS)]
    return {"color": colour, "marker": marker, "markersize": 4.5, "linewidth": 1.6}


def _scale(axes: Axes, found: TraceResults) -> None:
    """Cache sizes on a logarithmic axis that names those that were asked for, as far as they can be read."""
    named = _apart({100 * result.capacity / found.trace.unique: _name(result.size) for result in found.results})
    axes.set_xscale("log")
    axes.minorticks_off()
    axes.set_xticks([*named], [*named.values()])
    axes.set_xlabel("cache size (% of the unique blocks, logarithmic)")
    axes.set_ylabel("hit ratio of blocks, %")
    axes.set_ylim(bottom=0)
    axes.grid(color="0.9")
    axes.set_axisbelow(True)


def _name(size: CacheSize) -> str:
    return size.text if size.text.endswith("%") else f"{int(size.text):,}\nblocks"


def _apart(named: dict[float, str]) -> dict[float, str]:
    """Without those that are too near to the one before them."""
    least = max(1.05, (max(named) / min(named)) ** (1 / _MOST_TICKS))
    kept: dict[float, str] = {}
    last = 0.0
    for size in sorted(named):
        if size >= least * last:
            kept[size] = named[size]
            last = size
    return kept
