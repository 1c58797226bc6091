"""Store, look up, load into other blocks: what comes back is what was stored, and nothing else changes."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.interop import kv
from tests.interop.client import DEADLINE, Engine, fresh, prompt
from tests.interop.kv import CHUNK, differing


def test_a_stored_prompt_comes_back_in_other_blocks(engine: Engine) -> None:
    tokens, stored_in, loaded_into = prompt(3 * CHUNK), engine.blocks(3), engine.blocks(3, first=20)
    assert engine.scheduler.peek(tokens) == 0
    stored = engine.worker.fill(stored_in)

    assert engine.worker.store(fresh("request"), tokens, stored_in)
    request = fresh("request")
    assert engine.scheduler.lookup(request, tokens) == 3 * CHUNK
    assert engine.worker.retrieve(request, tokens, loaded_into)
    engine.scheduler.end(request)

    assert differing(engine.worker.contents(loaded_into), stored) == []


def test_a_load_writes_its_own_blocks_only(engine: Engine) -> None:
    tokens, stored_in, loaded_into = prompt(2 * CHUNK), engine.blocks(2), engine.blocks(2, first=20)
    engine.worker.fill(stored_in)
    assert engine.worker.store(fresh("request"), tokens, stored_in)
    others = [block for block in range(engine.worker.layout.num_blocks) if block not in loaded_into]
    before = engine.worker.fill(others)

    request = fresh("request")
    assert engine.scheduler.lookup(request, tokens) == 2 * CHUNK
    assert engine.worker.retrieve(request, tokens, loaded_into)

    assert differing(engine.worker.contents(others), before) == []


@pytest.mark.parametrize(
    "layout",
    [kv.FUSED_HND, kv.FUSED_NHD, kv.SPLIT_NHD, kv.SPLIT_HND, kv.INTERLEAVED_NHD, kv.LATENT],
    ids=lambda layout: layout.name,
)
def test_every_tensor_layout_survives(make_engine: Callable[..., Engine], mode: str, layout: kv.Layout) -> None:
    engine = make_engine(mode, layout)
    tokens, stored_in, loaded_into = prompt(2 * CHUNK), engine.blocks(2), engine.blocks(2, first=20)
    stored = engine.worker.fill(stored_in)
    assert engine.worker.store(fresh("request"), tokens, stored_in)

    request = fresh("request")
    assert engine.scheduler.lookup(request, tokens) == 2 * CHUNK
    assert engine.worker.retrieve(request, tokens, loaded_into)

    assert differing(engine.worker.contents(loaded_into), stored) == []


def test_the_client_chooses_a_mode_that_works(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine(None)
    tokens, stored_in, loaded_into = prompt(CHUNK), engine.blocks(1), engine.blocks(1, first=20)
    stored = engine.worker.fill(stored_in)
    assert engine.worker.store(fresh("request"), tokens, stored_in)

    request = fresh("request")
    assert engine.scheduler.lookup(request, tokens) == CHUNK
    assert engine.worker.retrieve(request, tokens, loaded_into)
    assert differing(engine.worker.contents(loaded_into), stored) == []


def test_only_complete_chunks_count(engine: Engine) -> None:
    tokens = prompt(2 * CHUNK)
    engine.worker.fill(engine.blocks(2))
    assert engine.worker.store(fresh("request"), tokens, engine.blocks(2))

    assert engine.scheduler.peek(tokens + prompt(CHUNK - 1)) == 2 * CHUNK
    assert engine.scheduler.peek(tokens[: 2 * CHUNK - 1]) == CHUNK
    assert engine.scheduler.peek(tokens[: CHUNK - 1]) == 0


def test_a_partial_hit_is_the_leading_chunks_and_they_load(engine: Engine) -> None:
    shared, stored_in, loaded_into = prompt(2 * CHUNK), engine.blocks(2), engine.blocks(2, first=20)
    stored = engine.worker.fill(stored_in)
    assert engine.worker.store(fresh("request"), shared, stored_in)

    longer, request = shared + prompt(3 * CHUNK), fresh("request")
    assert engine.scheduler.lookup(request, longer) == 2 * CHUNK
    assert engine.worker.retrieve(request, longer, loaded_into, end=2 * CHUNK)
    engine.scheduler.end(request)

    assert differing(engine.worker.contents(loaded_into), stored) == []


def test_a_prompt_that_diverges_hits_up_to_there(engine: Engine) -> None:
    tokens = prompt(3 * CHUNK)
    engine.worker.fill(engine.blocks(3))
    assert engine.worker.store(fresh("request"), tokens, engine.blocks(3))

    other = list(tokens)
    other[CHUNK] += 1
    assert engine.scheduler.peek(other) == CHUNK


def test_later_chunks_of_a_prompt_are_stored_by_a_later_call(engine: Engine) -> None:
    tokens, stored_in, loaded_into = prompt(3 * CHUNK), engine.blocks(3), engine.blocks(3, first=20)
    stored, per_chunk, request = engine.worker.fill(stored_in), engine.blocks_per_chunk, fresh("request")
    assert engine.worker.store(request, tokens, stored_in[:per_chunk], end=CHUNK)
    assert engine.scheduler.peek(tokens) == CHUNK
    assert engine.worker.store(request, tokens, stored_in[per_chunk:], start=CHUNK)

    request = fresh("request")
    assert engine.scheduler.lookup(request, tokens) == 3 * CHUNK
    assert engine.worker.retrieve(request, tokens, loaded_into)
    assert differing(engine.worker.contents(loaded_into), stored) == []


def test_a_suffix_without_its_prefix_is_no_hit(engine: Engine) -> None:
    tokens = prompt(2 * CHUNK)
    engine.worker.fill(engine.blocks(1))
    assert engine.worker.store(fresh("request"), tokens, engine.blocks(1), start=CHUNK)

    assert engine.scheduler.peek(tokens) == 0


def test_storing_again_changes_nothing(engine: Engine) -> None:
    tokens, stored_in, loaded_into = prompt(2 * CHUNK), engine.blocks(2), engine.blocks(2, first=20)
    stored = engine.worker.fill(stored_in)
    assert engine.worker.store(fresh("request"), tokens, stored_in)
    engine.worker.fill(stored_in)
    assert engine.worker.store(fresh("request"), tokens, stored_in)

    request = fresh("request")
    assert engine.scheduler.lookup(request, tokens) == 2 * CHUNK
    assert engine.worker.retrieve(request, tokens, loaded_into)
    assert differing(engine.worker.contents(loaded_into), stored) == []


def test_extending_a_stored_prompt_adds_the_new_chunks_only(engine: Engine) -> None:
    tokens, stored_in, loaded_into = prompt(3 * CHUNK), engine.blocks(3), engine.blocks(3, first=20)
    per_chunk = engine.blocks_per_chunk
    first = engine.worker.fill(stored_in)[:per_chunk]
    assert engine.worker.store(fresh("request"), tokens[:CHUNK], stored_in[:per_chunk])
    second = engine.worker.fill(stored_in)[per_chunk:]
    assert engine.worker.store(fresh("request"), tokens, stored_in)

    request = fresh("request")
    assert engine.scheduler.lookup(request, tokens) == 3 * CHUNK
    assert engine.worker.retrieve(request, tokens, loaded_into)
    assert differing(engine.worker.contents(loaded_into), first + second) == []


def test_a_load_can_start_behind_what_the_engine_has(engine: Engine) -> None:
    """The head of the hit is in the engine's own prefix cache: it is released, the rest loaded."""
    tokens, stored_in, loaded_into = prompt(3 * CHUNK), engine.blocks(3), engine.blocks(2, first=20)
    stored, request = engine.worker.fill(stored_in), fresh("request")
    assert engine.worker.store(fresh("request"), tokens, stored_in)

    assert engine.scheduler.lookup(request, tokens) == 3 * CHUNK
    engine.scheduler.adapter.free_lookup_locks(tokens, 0, CHUNK, request)
    assert engine.worker.retrieve(request, tokens, loaded_into, start=CHUNK)

    assert differing(engine.worker.contents(loaded_into), stored[engine.blocks_per_chunk :]) == []


def test_skipped_tokens_are_not_written(engine: Engine) -> None:
    """Those blocks are shared with requests that read them now."""
    tokens, stored_in, loaded_into = prompt(2 * CHUNK), engine.blocks(2), engine.blocks(2, first=20)
    stored, untouched = engine.worker.fill(stored_in), engine.worker.fill(loaded_into)
    assert engine.worker.store(fresh("request"), tokens, stored_in)

    request = fresh("request")
    assert engine.scheduler.lookup(request, tokens) == 2 * CHUNK
    assert engine.worker.retrieve(request, tokens, loaded_into, skip=kv.BLOCK_SIZE)

    assert differing(engine.worker.contents(loaded_into), untouched[:1] + stored[1:]) == []


def test_a_prompt_that_was_never_stored_does_not_load(engine: Engine) -> None:
    tokens, loaded_into = prompt(CHUNK), engine.blocks(1, first=20)
    before, request = engine.worker.fill(loaded_into), fresh("request")

    assert engine.scheduler.lookup(request, tokens) == 0
    engine.worker.submit_retrieve(request, tokens, loaded_into)
    engine.worker.finish_retrieve(request)

    assert engine.worker.adapter.get_block_ids_with_load_errors() == set(loaded_into)
    assert differing(engine.worker.contents(loaded_into), before) == []


def test_a_load_that_wants_more_than_there_is_fails_as_a_whole(engine: Engine) -> None:
    tokens = prompt(2 * CHUNK)
    engine.worker.fill(engine.blocks(1))
    assert engine.worker.store(fresh("request"), tokens, engine.blocks(1), end=CHUNK)

    request = fresh("request")
    assert engine.scheduler.lookup(request, tokens) == CHUNK
    assert not engine.worker.retrieve(request, tokens, engine.blocks(2, first=20))


def test_requests_in_flight_together_do_not_mix(engine: Engine) -> None:
    prompts = [prompt(CHUNK) for _ in range(5)]
    places = [[2 * index + 1, 2 * index + 2] for index in range(5)]
    targets = [[2 * index + 21, 2 * index + 22] for index in reversed(range(5))]
    stored = [engine.worker.fill(place) for place in places]
    stores = [fresh("request") for _ in prompts]
    for request, tokens, place in zip(stores, prompts, places, strict=True):
        engine.worker.submit_store(request, tokens, place)
    futures = [engine.worker.adapter.store_futures[request] for request in stores]
    assert all(future.result(timeout=DEADLINE) for future in futures)

    requests = [fresh("request") for _ in prompts]
    for request, tokens in zip(requests, prompts, strict=True):
        engine.scheduler.adapter.maybe_submit_lookup_request(request, tokens)
    assert [engine.scheduler.hits(request) for request in requests] == [CHUNK] * 5
    for request, tokens, target in zip(requests, prompts, targets, strict=True):
        engine.worker.submit_retrieve(request, tokens, target)
    engine.worker.finish_retrieve(*requests)

    assert not engine.worker.adapter.get_failed_request_ids()
    for target, contents in zip(targets, stored, strict=True):
        assert differing(engine.worker.contents(target), contents) == []
