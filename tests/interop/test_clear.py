"""A clear, over the wire and by HTTP: everything is gone at once, and no promise given before is broken."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.interop.client import DEADLINE, Engine, fresh, prompt
from tests.interop.kv import CHUNK, differing
from tests.support.polling import until
from tests.support.server import ServerProcess

Clear = Callable[[Engine], bool]


@pytest.fixture(params=["wire", "forced", "http"])
def clear(request: pytest.FixtureRequest, server: ServerProcess) -> Clear:
    """One way of clearing: vLLM's reset, the forced request, the operator's call. All mean the same here."""

    def forced(engine: Engine) -> bool:
        return engine.scheduler.client.clear(force=True).result(timeout=DEADLINE) is None

    def over_http(_: Engine) -> bool:
        return server.post("/api/clear-cache") == (200, {"status": "ok"})

    ways: dict[str, Clear] = {"wire": lambda engine: engine.scheduler.adapter.reset_cache(), "forced": forced}
    return ways.get(request.param, over_http)


def stored_prompt(engine: Engine, chunks: int = 2) -> tuple[list[int], list[bytes]]:
    tokens, blocks = prompt(chunks * CHUNK), engine.blocks(chunks)
    contents = engine.worker.fill(blocks)
    assert engine.worker.store(fresh("request"), tokens, blocks)
    assert engine.scheduler.peek(tokens) == chunks * CHUNK
    return tokens, contents


def test_nothing_stored_before_is_a_hit(engine: Engine, clear: Clear) -> None:
    tokens, _ = stored_prompt(engine)
    assert clear(engine)

    assert engine.scheduler.peek(tokens) == 0


def test_the_same_prompt_can_be_stored_with_new_bytes(engine: Engine, clear: Clear) -> None:
    tokens, _ = stored_prompt(engine)
    assert clear(engine)
    blocks, target, request = engine.blocks(2), engine.blocks(2, first=20), fresh("request")
    contents = engine.worker.fill(blocks)
    assert engine.worker.store(fresh("request"), tokens, blocks)

    assert engine.scheduler.lookup(request, tokens) == 2 * CHUNK
    assert engine.worker.retrieve(request, tokens, target)
    assert differing(engine.worker.contents(target), contents) == []


def test_a_hit_promised_before_still_loads_its_bytes(engine: Engine, clear: Clear) -> None:
    """Also when the same prompt was stored again meanwhile, with other bytes: the lease is on the old ones."""
    tokens, contents = stored_prompt(engine)
    request, target = fresh("request"), engine.blocks(2, first=20)
    assert engine.scheduler.lookup(request, tokens) == 2 * CHUNK
    assert clear(engine)
    assert engine.scheduler.peek(tokens) == 0
    engine.worker.fill(engine.blocks(2))
    assert engine.worker.store(fresh("request"), tokens, engine.blocks(2))

    assert engine.worker.retrieve(request, tokens, target)
    assert differing(engine.worker.contents(target), contents) == []


def test_the_memory_is_free_again(engine: Engine, clear: Clear, server: ServerProcess) -> None:
    stored_prompt(engine)
    assert clear(engine)

    def nothing_counted() -> bool:
        manager = server.get("/api/status")[1]["storage_manager"]["l1_manager"]
        return (manager["total_object_count"], manager["memory_used_bytes"]) == (0, 0)

    until(nothing_counted, "an empty L1 in the status")


def test_workers_stay_registered(engine: Engine, clear: Clear, server: ServerProcess) -> None:
    assert clear(engine)

    _, status = server.get("/api/status")
    assert engine.worker.instance_id in status["registered_gpu_ids"]
