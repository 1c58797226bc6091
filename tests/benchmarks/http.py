"""What the HTTP API costs the engines: lookups and stores of the real client, with and without operators asking."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Sequence

from tests.benchmarks.figures import Row, Section, median
from tests.benchmarks.geometry import CHUNK
from tests.benchmarks.http_load import Load, load
from tests.benchmarks.lookups import ask, random_tokens
from tests.benchmarks.progress import say
from tests.benchmarks.servers import OURS, running
from tests.interop.client import SERVER_COPIES, Engine, fresh
from tests.interop.kv import Layout
from tests.support.polling import until
from tests.support.server import Spawned

CHUNKS = 32
RISES = {100: 1.0, 1000: 6.0}
"""By requests a second: how many milliseconds the p99 of lookups may rise."""
STATUS_AIM = 1000.0
FIRST_ANSWER_AIM = 0.7
"""Seconds from the start of the process to the first answer of `/`."""
LOOKUPS = 1000
"""Of one run. The tenth slowest of them is its p99."""
INTERVAL = 0.005
"""Seconds from one lookup to the next."""
LOOKUPS_PER_STORE = 10
STORED_CHUNKS = 4
BLOCK_SIZE = 128
ALTERNATELY = ("/api/status", "/metrics")

# 1 MiB for each chunk.
LAYOUT = Layout("asked", (1 + CHUNKS * CHUNK // BLOCK_SIZE, 8, BLOCK_SIZE, 64), layers=4, block_size=BLOCK_SIZE)


def http(rounds: int, wanted: Sequence[str]) -> list[Section]:
    """`rounds` runs without requests, with few and with many, one after the other; then the status alone."""
    if OURS not in wanted:
        return []
    with running([OURS], 1.0) as servers:
        server = servers[OURS]
        engine = Engine(server.url, SERVER_COPIES, LAYOUT, "asked-model")
        try:
            section = _lookups(engine, server.http_url, rounds)
        finally:
            engine.close()
        section.rows.append(_status_alone(server.http_url))
    section.rows.append(_first_answer(rounds))
    return [section]


def _lookups(engine: Engine, url: str, rounds: int) -> Section:
    tokens = _stored(engine)
    p99: dict[int, list[float]] = {rate: [] for rate in (0, *RISES)}
    order, seen = list(p99), {rate: Load() for rate in RISES}
    for number in range(rounds + 1):
        for rate in order:
            say(f"run {number}: lookups while {rate} requests are made each second")
            value = _p99(engine, tokens) if not rate else _p99_under(engine, tokens, url, rate, seen[rate])
            if number:
                p99[rate].append(value)
        order.append(order.pop(0))
    section = Section(f"Lookups of {CHUNKS} chunks, and stores, while the HTTP API is asked")
    section.rows = [_quiet(p99[0]), *(_rise(rate, p99) for rate in RISES)]
    rates = ", ".join(f"{load.rate:.0f}" for load in seen.values())
    section.notes.append(f"median of {rounds} runs; {' and '.join(ALTERNATELY)} in turn; really made: {rates} a second")
    return section


def _stored(engine: Engine) -> list[int]:
    tokens = random_tokens(CHUNKS)
    assert engine.worker.store(fresh("request"), tokens, list(range(1, LAYOUT.num_blocks)))
    until(lambda: engine.scheduler.peek(tokens) == len(tokens), "the stored prompt is found")
    return tokens


def _p99_under(engine: Engine, tokens: list[int], url: str, rate: int, total: Load) -> float:
    with load(url, ALTERNATELY, rate) as one:
        value = _p99(engine, tokens)
    total.requests += one.requests
    total.seconds += one.seconds
    return value


def _p99(engine: Engine, tokens: list[int]) -> float:
    """In milliseconds. The client's own garbage collection is none of the server's business."""
    gc.collect()
    gc.disable()
    try:
        times = [_one(engine, tokens, number, time.perf_counter() + INTERVAL) for number in range(LOOKUPS)]
    finally:
        gc.enable()
    return 1000 * statistics.quantiles(times, n=100)[98]


def _one(engine: Engine, tokens: list[int], number: int, until_then: float) -> float:
    """One lookup, with a store that begins just before it every now and then, and then a pause."""
    request = fresh("store") if number % LOOKUPS_PER_STORE == 0 else None
    if request:
        blocks = list(range(1, 1 + STORED_CHUNKS * CHUNK // BLOCK_SIZE))
        engine.worker.submit_store(request, random_tokens(STORED_CHUNKS), blocks)
    seconds, found = ask(engine.scheduler.client, tokens, engine.model)
    assert found == CHUNKS, f"{found} of {CHUNKS} chunks were found"
    if request:
        assert engine.worker.adapter.store_futures[request].result(timeout=10)
        engine.worker.adapter.get_finished({request})
    time.sleep(max(0.0, until_then - time.perf_counter()))
    return seconds


def _quiet(values: list[float]) -> Row:
    return Row("p99 of a lookup, nobody asks", "ms", median(values))


def _rise(rate: int, p99: dict[int, list[float]]) -> Row:
    rises = [loaded - quiet for loaded, quiet in zip(p99[rate], p99[0], strict=True)]
    row = Row(f"rise of the p99, {rate} requests a second", "ms", median(rises))
    row.aim_below(RISES[rate])
    return row


def _status_alone(url: str) -> Row:
    say("the status as often as it is answered")
    with load(url, ALTERNATELY[:1], 0) as seen:
        time.sleep(3)
    row = Row(f"{ALTERNATELY[0]} alone", "1/s", seen.rate)
    row.aim_above(STATUS_AIM)
    return row


def _first_answer(rounds: int) -> Row:
    say("starts of the server")
    times = []
    for _ in range(rounds):
        began = time.monotonic()
        with Spawned() as server:
            times.append(server.seconds_to("/", began))
    row = Row("first answer of a start", "s", median(times))
    row.aim_below(FIRST_ANSWER_AIM)
    return row
