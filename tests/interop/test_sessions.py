"""What belongs to a request: its lookups, its leases, its end; and what does not: the cached chunks."""

from __future__ import annotations

from collections.abc import Callable

from tests.interop.client import Engine, fresh, prompt
from tests.interop.kv import CHUNK, differing
from tests.support.server import ServerProcess

MakeEngine = Callable[..., Engine]


def stored_prompt(engine: Engine, chunks: int) -> tuple[list[int], list[bytes]]:
    """A prompt that is in the cache, and the bytes of its blocks."""
    tokens, blocks = prompt(chunks * CHUNK), engine.blocks(chunks)
    contents = engine.worker.fill(blocks)
    assert engine.worker.store(fresh("request"), tokens, blocks)
    return tokens, contents


def test_salts_are_caches_of_their_own(engine: Engine) -> None:
    tokens, blocks, target = prompt(2 * CHUNK), engine.blocks(2), engine.blocks(2, first=20)
    stored = {}
    for salt in ("", "tenant-a", "tenant-b"):
        assert engine.scheduler.peek(tokens, salt) == 0
        stored[salt] = engine.worker.fill(blocks)
        assert engine.worker.store(fresh("request"), tokens, blocks, salt=salt)

    for salt, contents in stored.items():
        request = fresh("request")
        assert engine.scheduler.lookup(request, tokens, salt) == 2 * CHUNK
        assert engine.worker.retrieve(request, tokens, target, salt=salt)
        assert differing(engine.worker.contents(target), contents) == []
    assert engine.scheduler.peek(tokens, "tenant-c") == 0


def test_request_configs_are_not_part_of_the_identity(engine: Engine) -> None:
    tokens, _ = stored_prompt(engine, 2)
    request = fresh("request")
    configs = {"lmcache.tag.user": "somebody"}
    engine.scheduler.adapter.maybe_submit_lookup_request(request, tokens, request_configs=configs)

    assert engine.scheduler.hits(request) == 2 * CHUNK


def test_a_store_after_the_end_of_its_session_works(engine: Engine) -> None:
    tokens, request = prompt(CHUNK), fresh("request")
    assert engine.scheduler.lookup(request, tokens) == 0
    engine.scheduler.end(request)
    engine.worker.fill(engine.blocks(1))
    assert engine.worker.store(request, tokens, engine.blocks(1))

    assert engine.scheduler.peek(tokens) == CHUNK


def test_a_preempted_request_looks_up_again(engine: Engine) -> None:
    tokens, contents = stored_prompt(engine, 2)
    request, target = fresh("request"), engine.blocks(2, first=20)
    assert engine.scheduler.lookup(request, tokens) == 2 * CHUNK
    engine.scheduler.adapter.cleanup_lookup_result(request)

    assert engine.scheduler.lookup(request, tokens) == 2 * CHUNK
    assert engine.worker.retrieve(request, tokens, target)
    assert differing(engine.worker.contents(target), contents) == []


def test_a_request_id_used_again_with_other_tokens_sees_those(engine: Engine) -> None:
    first, _ = stored_prompt(engine, 1)
    second, contents = stored_prompt(engine, 2)
    request, target = fresh("request"), engine.blocks(2, first=20)
    assert engine.scheduler.lookup(request, first) == CHUNK
    engine.scheduler.adapter.cleanup_lookup_result(request)

    assert engine.scheduler.lookup(request, second) == 2 * CHUNK
    assert engine.worker.retrieve(request, second, target)
    assert differing(engine.worker.contents(target), contents) == []
    engine.scheduler.adapter.cleanup_lookup_result(request)
    assert engine.scheduler.lookup(request, prompt(CHUNK)) == 0


def test_one_hit_serves_many_requests(engine: Engine) -> None:
    tokens, contents = stored_prompt(engine, 2)
    requests = [fresh("request") for _ in range(4)]
    assert [engine.scheduler.lookup(request, tokens) for request in requests] == [2 * CHUNK] * 4
    for request in requests:
        target = engine.blocks(2, first=20)
        engine.worker.fill(target)
        assert engine.worker.retrieve(request, tokens, target)
        assert differing(engine.worker.contents(target), contents) == []


def test_models_are_caches_of_their_own(make_engine: MakeEngine, mode: str) -> None:
    one, other = make_engine(mode), make_engine(mode)
    tokens, _ = stored_prompt(one, 2)

    assert one.scheduler.peek(tokens) == 2 * CHUNK
    assert other.scheduler.peek(tokens) == 0


def test_a_second_engine_of_the_model_loads_what_the_first_stored(make_engine: MakeEngine, mode: str) -> None:
    first = make_engine(mode)
    tokens, contents = stored_prompt(first, 2)
    second = make_engine(mode, model=first.model)
    request, target = fresh("request"), second.blocks(2, first=20)

    assert second.scheduler.lookup(request, tokens) == 2 * CHUNK
    assert second.worker.retrieve(request, tokens, target)
    assert differing(second.worker.contents(target), contents) == []


def test_the_cache_outlives_the_worker_that_filled_it(
    make_engine: MakeEngine, server: ServerProcess, mode: str
) -> None:
    first = Engine(server.url, mode)
    tokens, contents = stored_prompt(first, 2)
    first.close()
    second = make_engine(mode, model=first.model)
    request, target = fresh("request"), second.blocks(2, first=20)

    assert second.scheduler.lookup(request, tokens) == 2 * CHUNK
    assert second.worker.retrieve(request, tokens, target)
    assert differing(second.worker.contents(target), contents) == []


def test_a_model_without_workers_has_no_hits(server: ServerProcess, mode: str) -> None:
    engine = Engine(server.url, mode)
    tokens, _ = stored_prompt(engine, 2)
    engine.worker.close()

    assert engine.scheduler.peek(tokens) == 0
    engine.scheduler.close()
