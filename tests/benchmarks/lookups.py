"""A lookup and the query for its result, with the real client; the server's own share is what a stub does not need."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import zmq
from lmcache.v1.multiprocess.transport.factory import RequestClientFactory

from tests.benchmarks.figures import Row, Section, median
from tests.benchmarks.geometry import CHUNK
from tests.benchmarks.progress import say
from tests.benchmarks.servers import OURS, REFERENCE, running
from tests.benchmarks.stub import StubServer
from tests.interop.client import SERVER_COPIES, Engine, IPCCacheServerKey, answer, fresh
from tests.interop.kv import Layout
from tests.support.polling import until

STUB = "stub"
SIZES = (1, 32, 512)
MODEL = "lookup-model"
BLOCK_SIZE = 128
HIT, MISS, FRESH, HALF = "all hit", "all miss, seen before", "all miss, never seen", "half hit, half never seen"

# As little KV as a chunk can have: this is about keys, not about bytes.
SMALL = Layout("small", (1 + SIZES[-1] * CHUNK // BLOCK_SIZE, 1, BLOCK_SIZE, 2), layers=1, block_size=BLOCK_SIZE)

PROMPTS = {1: 60, 32: 30, 512: 8}
"""How many prompts of a size make up one round."""

_tokens = np.random.default_rng(512)


def random_tokens(chunks: int) -> list[int]:
    tokens: list[int] = _tokens.integers(1, 150_000, chunks * CHUNK).tolist()
    return tokens


def _aims(kind: str, chunks: int) -> float | None:
    """The part of the reference's share that ours may take."""
    if kind == HALF:
        return None
    return 0.35 if chunks < SIZES[-1] else 0.4 if kind == FRESH else 0.15


def lookup_and_status(rounds: int, wanted: Sequence[str]) -> Section:
    """All servers at once, their rounds interleaved."""
    section = Section("Lookup and the query for its result")
    section.notes.append("baseline: the whole time with a stub server; the others: the server's own share, without it")
    with running(wanted, 0.125) as servers, StubServer() as stub:
        engines = {name: Engine(server.url, SERVER_COPIES, SMALL, MODEL) for name, server in servers.items()}
        clients = {name: engine.scheduler.client for name, engine in engines.items()}
        context = zmq.Context()
        clients[STUB] = RequestClientFactory.create(stub.url, context=context)
        try:
            for chunks in SIZES:
                section.rows += _rows_of(chunks, engines, clients, rounds)
        finally:
            for engine in engines.values():
                engine.close()
            clients[STUB].close()
            context.term()
    return section


def _rows_of(chunks: int, engines: dict[str, Engine], clients: dict[str, Any], rounds: int) -> list[Row]:
    say(f"lookups of {chunks} chunks")
    stored, missing = random_tokens(chunks), random_tokens(chunks)
    for engine in engines.values():
        _store(engine, stored)
    half = chunks // 2
    kinds: dict[str, tuple[Callable[[], list[int]], int]] = {
        HIT: (lambda: stored, chunks),
        MISS: (lambda: missing, 0),
        FRESH: (lambda: random_tokens(chunks), 0),
    }
    if half:
        kinds[HALF] = (lambda: stored[: half * CHUNK] + random_tokens(chunks - half), half)
    prompts = rounds * PROMPTS[chunks]
    return [_row(kind, chunks, _times(clients, make, hits, prompts)) for kind, (make, hits) in kinds.items()]


def _store(engine: Engine, tokens: list[int]) -> None:
    worker = engine.worker
    worker.tensors["layer.0"].view(torch.int16).random_(-(1 << 15), 1 << 15)
    assert worker.store(fresh("request"), tokens, list(range(1, 1 + len(tokens) // BLOCK_SIZE)))
    until(lambda: engine.scheduler.peek(tokens) == len(tokens), "the stored prompt is found")


def _times(clients: dict[str, Any], make: Callable[[], list[int]], hits: int, prompts: int) -> dict[str, float]:
    """Median seconds by server. All are asked about every prompt, each of them first in turn; two do not count."""
    times: dict[str, list[float]] = {name: [] for name in clients}
    order = list(clients)
    for number in range(prompts + 2):
        tokens = make()
        for name in order:
            seconds, found = ask(clients[name], tokens)
            assert name == STUB or found == hits, f"{name} found {found} of {hits} chunks"
            if number > 1:
                times[name].append(seconds)
        order.append(order.pop(0))
    return {name: median(values) for name, values in times.items()}


def ask(client: Any, tokens: list[int], model: str = MODEL) -> tuple[float, int]:
    """One lookup as the scheduler does it: the key, its acknowledgement, its result; then, not timed, its end."""
    request, start = fresh("request"), time.perf_counter()
    key = IPCCacheServerKey(model, 1, None, tuple(tokens), 0, len(tokens), request, num_kv_readers=1)
    answer(client.lookup(key, 1))
    while (found := answer(client.query_prefetch_status(request))) is None:
        pass
    seconds = time.perf_counter() - start
    answer(client.free_lookup_locks(key, 1))
    answer(client.end_session(request))
    return seconds, found


def _row(kind: str, chunks: int, times: dict[str, float]) -> Row:
    shares = {name: 1000 * (seconds - times[STUB]) for name, seconds in times.items()}
    row = Row(f"{chunks} chunks, {kind}", "ms", shares.get(OURS), shares.get(REFERENCE), 1000 * times[STUB])
    if row.ours is not None and row.reference:
        row.to_reference = row.ours / row.reference
    aim = _aims(kind, chunks)
    if aim is not None:
        row.aim_of_reference(aim)
    return row
