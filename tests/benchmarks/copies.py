"""Store and load of a long prompt, with the real client against real servers, each next to a plain copy."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tests.benchmarks.figures import Row, Section, median
from tests.benchmarks.geometry import CHUNK, CHUNK_BYTES, GIB, Case, cases, randomise
from tests.benchmarks.memcopy import Baseline, Segment
from tests.benchmarks.progress import say
from tests.benchmarks.servers import OURS, REFERENCE, running
from tests.interop.client import ENGINE_COPIES, SERVER_COPIES, Engine, fresh, prompt
from tests.support.polling import until

AIM = 0.85
TRANSFER_TIMEOUT = 300.0
"""Seconds: the first transfers of the reference touch all of its memory for the first time, which can take 20."""

Steps = dict[str, Callable[[], float]]


@dataclass
class Measured:
    """Rounds of one operation: its seconds, and those of a plain copy of as many bytes right before and after."""

    seconds: list[float] = field(default_factory=list)
    copies: list[float] = field(default_factory=list)

    @property
    def ratio(self) -> float:
        """The operation's speed as a share of the plain copy's, round by round; then the median."""
        return median([copy / own for own, copy in zip(self.seconds, self.copies, strict=True)])


def measure(steps: Steps, baseline: Baseline, rounds: int) -> dict[str, Measured]:
    """Run the steps in order, ``rounds`` times after one that does not count, with a plain copy around every step."""
    measured = {name: Measured() for name in steps}
    for number in range(rounds + 1):
        before = baseline.seconds()
        for name, step in steps.items():
            own, after = step(), baseline.seconds()
            if number:
                measured[name].seconds.append(own)
                measured[name].copies.append((before + after) / 2)
            before = after
    return measured


def end_to_end(tokens: int, rounds: int, wanted: Sequence[str]) -> list[Section]:
    """Both transfer modes over the wire."""
    size = tokens // CHUNK * CHUNK_BYTES
    with (
        Segment("source", size) as source,
        Segment("target", size) as target,
        running(wanted, 1.375 * size / GIB) as servers,
    ):
        baseline = Baseline(source, target, CHUNK_BYTES)
        sections = []
        for mode, title in ((SERVER_COPIES, "the server copies"), (ENGINE_COPIES, "the engine copies")):
            section = Section(f"Store and load over the wire, {title}: {tokens:,} tokens, {size / GIB:.2f} GiB")
            for case in cases(tokens):
                measured = {
                    name: _with_client(server.url, mode, case, baseline, rounds) for name, server in servers.items()
                }
                section.rows += _rows(case, measured, aimed=mode == SERVER_COPIES)
            sections.append(section)
    return sections


def _with_client(url: str, mode: str, case: Case, baseline: Baseline, rounds: int) -> dict[str, Measured]:
    say(f"{mode}, {case.name}, {url}")
    engine = Engine(url, mode, case.layout)
    try:
        return measure(_client_steps(engine, case), baseline, rounds)
    finally:
        engine.close()
        # The client's objects refer to each other in circles, and a gigabyte of tensors hangs on them.
        del engine
        gc.collect()


def _client_steps(engine: Engine, case: Case) -> Steps:
    """Store a new prompt, then load it into other blocks. Clearing, lookups and checks of the bytes are not timed."""
    worker, scheduler = engine.worker, engine.scheduler
    randomise(list(worker.tensors.values()))
    stored_in, loaded_into = case.scattered(1), case.scattered(2)
    state: dict[str, list[int]] = {}

    def store() -> float:
        assert scheduler.adapter.reset_cache()
        tokens = state["tokens"] = prompt(case.tokens)
        request, start = fresh("request"), time.perf_counter()
        worker.submit_store(request, tokens, stored_in)
        assert worker.adapter.store_futures[request].result(timeout=TRANSFER_TIMEOUT)
        seconds = time.perf_counter() - start
        worker.adapter.get_finished({request})
        return seconds

    def load() -> float:
        tokens, request, sample = state["tokens"], fresh("request"), slice(None, None, case.blocks // 8)
        expected = worker.contents(stored_in[sample])
        # The reference may answer a store before what it stored can be found.
        until(lambda: scheduler.peek(tokens) == case.tokens, "the stored prompt is found")
        assert scheduler.lookup(request, tokens) == case.tokens
        start = time.perf_counter()
        worker.submit_retrieve(request, tokens, loaded_into)
        future, _ = worker.adapter.retrieve_futures[request]
        assert future.result(timeout=TRANSFER_TIMEOUT)
        seconds = time.perf_counter() - start
        worker.finish_retrieve(request)
        scheduler.end(request)
        assert worker.contents(loaded_into[sample]) == expected, "other bytes were loaded than were stored"
        return seconds

    return {"store": store, "load": load}


def _rows(case: Case, measured: dict[str, dict[str, Measured]], *, aimed: bool) -> list[Row]:
    return [_row(f"{step}, {case.name}", step, case.bytes, measured, aimed=aimed) for step in ("store", "load")]


def _row(name: str, step: str, size: int, measured: dict[str, dict[str, Measured]], *, aimed: bool) -> Row:
    """Speeds are medians; ratios are medians of each round's own ratio, so they do not drift with the machine."""
    row = Row(name, "GB/s")
    ours, reference = measured.get(OURS), measured.get(REFERENCE)
    copies = [second for server in measured.values() for second in server[step].copies]
    row.baseline = size / 1e9 / median(copies)
    if ours is not None:
        row.ours, row.to_baseline = size / 1e9 / median(ours[step].seconds), ours[step].ratio
    if reference is not None:
        row.reference = size / 1e9 / median(reference[step].seconds)
        row.reference_to_baseline = reference[step].ratio
    if row.to_baseline and row.reference_to_baseline:
        row.to_reference = row.to_baseline / row.reference_to_baseline
    if aimed:
        row.aim_at_least(AIM)
    return row


def single(case: Case, steps: Steps, baseline: Baseline, rounds: int) -> list[Row]:
    """Rows of something of ours that has no counterpart in the reference."""
    return _rows(case, {OURS: measure(steps, baseline, rounds)}, aimed=True)
