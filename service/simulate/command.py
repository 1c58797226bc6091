"""Reads the traces, runs the simulations, prints what they find."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import TextIO

from engine import Trace, TraceError, parse_trace, simulate
from service.simulate.options import Simulation
from service.simulate.plot import PlotError, check_plot, draw
from service.simulate.progress import Progress
from service.simulate.results import Result, TraceResults, as_json
from service.simulate.table import tables


class SimulationError(Exception):
    """The simulation cannot be run, or its picture not be written; says why."""


def run(asked: Simulation, output: TextIO, terminal: TextIO) -> None:
    """Prints tables, or one line of JSON for each result as soon as there is one, to `output`.

    Raises SimulationError, before anything is printed unless it is about writing the picture.
    """
    try:
        if asked.plot is not None:
            check_plot(asked.plot)
        traces = {file: read(file) for file in asked.traces}
        progress = Progress(terminal, _steps(asked, traces.values()))
        with closing(progress):
            found = _run(asked, traces, output, progress)
        if asked.plot is not None:
            draw(found, asked.plot)
    except PlotError as error:
        raise SimulationError(str(error)) from None


def _steps(asked: Simulation, traces: Iterable[Trace]) -> int:
    return len(asked.policies) * len(asked.sizes) * sum(trace.references for trace in traces)


def read(file: str) -> Trace:
    """The trace in a file, which may be compressed by gzip. Raises SimulationError with file, line and key."""
    path = Path(file)
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as lines:
            return parse_trace(lines)
    except TraceError as error:
        place = file if error.line is None else f"{file}:{error.line}"
        raise SimulationError(f"{place}: {error}") from None
    except (OSError, EOFError, zlib.error) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise SimulationError(f"{file}: cannot be read: {reason}") from None


def _run(asked: Simulation, traces: dict[str, Trace], output: TextIO, progress: Progress) -> list[TraceResults]:
    found: list[TraceResults] = []
    for file, trace in traces.items():
        results = []
        for result in _results(asked, file, trace, progress):
            results.append(result)
            if asked.as_json:
                _print([as_json(file, result)], output, progress)
        found.append(TraceResults(file, trace, results))
        if not asked.as_json:
            separator = ["", ""] if len(found) > 1 else []
            _print([*separator, *tables(found[-1])], output, progress)
    return found


def _results(asked: Simulation, file: str, trace: Trace, progress: Progress) -> Iterator[Result]:
    for policy in asked.policies:
        for size in asked.sizes:
            progress.begin(f"{Path(file).name}, {policy}, {size.text}")
            capacity = size.blocks(trace.unique)
            yield Result(policy, size, capacity, simulate(trace, policy, capacity, progress.advance))


def _print(lines: Iterable[str], output: TextIO, progress: Progress) -> None:
    progress.close()
    print("\n".join(lines), file=output, flush=True)
