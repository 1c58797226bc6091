"""More prompts than fit: old ones make room, and what is still said to be there loads with the right bytes."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import pytest

from tests.interop.client import Engine, fresh, prompt
from tests.interop.kv import CHUNK, LATENT, Layout, differing
from tests.support.server import Server, ServerProcess

MIB = 1 << 20
PROMPTS = 12
CHUNKS = 4

# 1 MiB a chunk: with 16 MiB of L1 a third of the prompts fit.
LARGE = Layout("large", (80, 16, 2, 2048), layers=4, hint="NHD")


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with Server("--chunk-size", str(CHUNK), l1_size_gb=16 / 1024) as running:
        yield running


@pytest.fixture
def engine(make_engine: Callable[..., Engine], mode: str) -> Engine:
    return make_engine(mode, LARGE)


def test_what_is_said_to_be_there_is_there(engine: Engine, server: ServerProcess) -> None:
    stored: dict[tuple[int, ...], list[bytes]] = {}
    for _ in range(PROMPTS):
        tokens = prompt(CHUNKS * CHUNK)
        stored[tuple(tokens)] = engine.worker.fill(engine.blocks(CHUNKS))
        assert engine.worker.store(fresh("request"), tokens, engine.blocks(CHUNKS))
        assert _used(server) <= 16 * MIB

    hits = {key: _load_and_compare(engine, list(key), contents) for key, contents in stored.items()}
    assert list(hits.values())[-1] == CHUNKS * CHUNK, "the newest prompt is whole"
    assert sum(hits.values()) <= 16 * CHUNK


@pytest.mark.parametrize("cleared", [False, True], ids=["stores", "clear and stores"])
def test_a_promised_prompt_outlives_what_comes_after(engine: Engine, cleared: bool) -> None:
    tokens, blocks, target = prompt(CHUNKS * CHUNK), engine.blocks(CHUNKS), engine.blocks(CHUNKS, first=40)
    contents = engine.worker.fill(blocks)
    assert engine.worker.store(fresh("request"), tokens, blocks)
    request = fresh("request")
    assert engine.scheduler.lookup(request, tokens) == CHUNKS * CHUNK
    assert not cleared or engine.scheduler.adapter.reset_cache()
    for _ in range(PROMPTS):
        engine.worker.fill(blocks)
        assert engine.worker.store(fresh("request"), prompt(CHUNKS * CHUNK), blocks)

    assert engine.worker.retrieve(request, tokens, target)
    assert differing(engine.worker.contents(target), contents) == []
    engine.scheduler.end(request)


def test_a_prompt_that_does_not_fit_is_stored_as_far_as_it_does(make_engine: Callable[..., Engine], mode: str) -> None:
    engine = make_engine(mode, LARGE)
    tokens = prompt(20 * CHUNK)
    blocks = list(range(1, 41))
    contents = engine.worker.fill(blocks)
    assert engine.worker.store(fresh("request"), tokens, blocks)

    assert 0 < _load_and_compare(engine, tokens, contents, first=41) <= 16 * CHUNK


def test_many_small_prompts_in_any_order(make_engine: Callable[..., Engine], mode: str) -> None:
    """Objects of another size take the places of the large ones."""
    engine, order = make_engine(mode, LATENT), random.Random(7)
    stored: list[tuple[list[int], list[bytes]]] = []
    for _ in range(60):
        if stored and order.random() < 0.5:
            tokens, contents = order.choice(stored)
            _load_and_compare(engine, tokens, contents)
            continue
        chunks = order.randrange(1, 5)
        tokens = prompt(chunks * CHUNK)
        contents = engine.worker.fill(engine.blocks(chunks))
        assert engine.worker.store(fresh("request"), tokens, engine.blocks(chunks))
        stored.append((tokens, contents))


def _load_and_compare(engine: Engine, tokens: list[int], contents: list[bytes], first: int = 20) -> int:
    """Load whatever of the prompt is a hit, check its bytes, and return how many tokens that was."""
    request = fresh("request")
    hit = engine.scheduler.lookup(request, tokens)
    count = hit // CHUNK * engine.blocks_per_chunk
    target = list(range(first, first + count))
    if hit:
        engine.worker.fill(target)
        assert engine.worker.retrieve(request, tokens, target, end=hit)
        assert differing(engine.worker.contents(target), contents[:count]) == []
    engine.scheduler.end(request)
    return hit


def _used(server: ServerProcess) -> int:
    return int(server.get("/api/status")[1]["storage_manager"]["l1_manager"]["memory_used_bytes"])
