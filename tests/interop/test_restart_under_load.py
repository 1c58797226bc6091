"""The server ends while real clients work in both modes, and comes back: they go on by themselves, with right bytes."""

from __future__ import annotations

import random
import signal
from collections.abc import Callable, Iterator

import pytest

from tests.interop.client import Engine, fresh, prompt
from tests.interop.kv import CHUNK, differing
from tests.support.polling import until
from tests.support.server import Server, ServerProcess
from tests.support.shm import segments_of

HEARTBEAT = 0.5
CHUNKS = 2


@pytest.fixture
def server() -> Iterator[ServerProcess]:
    with Server("--chunk-size", str(CHUNK), l1_size_gb=0.125) as running:
        yield running


class Work:
    """Prompts with the bytes that were stored for them, and an engine that stores and loads them."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.stored: dict[tuple[int, ...], list[bytes]] = {}
        self.loaded = 0

    def turn(self, chance: random.Random) -> None:
        """One request; whatever becomes of it, no byte is wrong and it ends."""
        if self.stored and chance.random() < 0.5:
            self._load(chance.choice(list(self.stored)))
            return
        tokens, blocks = prompt(CHUNKS * CHUNK), self.engine.blocks(CHUNKS)
        contents = self.engine.worker.fill(blocks)
        request = fresh("request")
        self.engine.worker.submit_store(request, tokens, blocks)
        # The client gives the blocks free when the store is answered, or when it knows that it never will be.
        until(lambda: self._is_over(request), "the store is over")
        self.stored[tuple(tokens)] = contents

    def _is_over(self, request: str) -> bool:
        future = self.engine.worker.adapter.store_futures.get(request)
        if future is None or future.query():
            self.engine.worker.adapter.get_finished({request})
            return True
        return request in (self.engine.worker.adapter.get_finished({request})[0] or ())

    def _load(self, tokens: tuple[int, ...]) -> None:
        request, count = fresh("request"), self.engine.blocks_per_chunk
        hit = self.engine.scheduler.lookup(request, list(tokens))
        blocks = self.engine.blocks(CHUNKS, first=20)[: hit // CHUNK * count]
        if hit and self.engine.worker.retrieve(request, list(tokens), blocks, end=hit):
            assert differing(self.engine.worker.contents(blocks), self.stored[tokens][: len(blocks)]) == []
            self.loaded += 1
        self.engine.scheduler.end(request)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["told", "killed"])
def test_real_clients_live_through_a_restart_while_they_work(
    server: ServerProcess, make_engine: Callable[..., Engine], mode: str, number: signal.Signals
) -> None:
    chance = random.Random(number)
    engine = make_engine(mode, url=server.url, heartbeat=HEARTBEAT)
    work = Work(engine)
    for _ in range(chance.randrange(5, 15)):
        work.turn(chance)
    assert server.process is not None
    dead = server.pid
    server.process.send_signal(number)
    work.turn(chance)
    assert server.process.wait(30) == (0 if number is signal.SIGTERM else -number)
    server.start()
    assert segments_of(dead) == []
    before = work.loaded

    def is_back(before: int = before) -> bool:
        work.turn(chance)
        return work.loaded > before

    until(is_back, "what is stored is loaded again", 60)
    adapters = (engine.worker.adapter, engine.scheduler.adapter)
    until(lambda: all(adapter.is_healthy for adapter in adapters), "both are healthy")
