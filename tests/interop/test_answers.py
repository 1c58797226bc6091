"""Every call of the typed client gets an answer of its type: also the ones nobody waits for, and the ones that fail."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from lmcache.v1.multiprocess.custom_types import BlockAllocationRecord
from lmcache.v1.multiprocess.transfer_context.shm import EngineDrivenContextShm

from tests.interop.client import ENGINE_COPIES, SERVER_COPIES, Engine, answer, fresh, prompt
from tests.interop.kv import CHUNK
from tests.support.polling import until

MakeEngine = Callable[..., Engine]

NOBODY = 4711
"""An instance id that no worker has."""


@pytest.fixture
def copied(make_engine: MakeEngine) -> Engine:
    """An engine whose bytes the server copies."""
    return make_engine(SERVER_COPIES)


@pytest.fixture
def lent(make_engine: MakeEngine) -> Engine:
    """An engine that copies into slots the server lends it."""
    return make_engine(ENGINE_COPIES)


def test_the_handshake(copied: Engine) -> None:
    client = copied.scheduler.client
    assert answer(client.get_chunk_size()) == CHUNK
    assert answer(client.get_experimental()) == []
    assert answer(client.noop()) == "OK"


def test_pings(copied: Engine) -> None:
    """A worker that is registered is known; one that is not is told so exactly once."""
    worker, unknown = copied.worker, copied.worker.instance_id ^ 1
    assert answer(worker.client.ping(None)) is True
    assert answer(worker.client.ping(worker.instance_id)) is True
    assert [answer(worker.client.ping(unknown)) for _ in range(3)] == [False, True, True]


def test_calls_nobody_waits_for_are_answered(copied: Engine) -> None:
    """The client keeps a table of calls without an answer, which must not grow."""
    client, worker, tokens = copied.scheduler.client, copied.worker, prompt(2 * CHUNK)
    key = worker.key(tokens, worker_id=None)
    assert answer(client.lookup(key, 1)) is None
    assert answer(client.free_lookup_locks(key, 1)) is None
    assert answer(client.end_session(key.request_id)) is None
    assert answer(client.end_session(fresh("request"))) is None
    assert answer(client.report_block_allocation(1, worker.adapter.model_name, [])) is None


def test_block_allocation_reports_are_accepted(copied: Engine) -> None:
    records = [BlockAllocationRecord(fresh("request"), [1, 2, 3], prompt(3 * CHUNK))]
    copied.scheduler.adapter.report_block_allocations(records)
    assert answer(copied.scheduler.client.report_block_allocation(1, copied.model, records)) is None


def test_the_result_of_a_lookup_is_given_once(copied: Engine) -> None:
    client, worker, tokens = copied.scheduler.client, copied.worker, prompt(2 * CHUNK)
    worker.fill(copied.blocks(2))
    assert worker.store(fresh("request"), tokens, copied.blocks(2))
    key = worker.key(tokens, worker_id=None)
    answer(client.lookup(key, 1))

    assert _status(client, key.request_id) == 2
    assert _status(client, key.request_id) == 0
    assert _status(client, fresh("request")) == 0


def test_a_lookup_can_be_waited_for(copied: Engine) -> None:
    client, worker, tokens = copied.scheduler.client, copied.worker, prompt(2 * CHUNK)
    worker.fill(copied.blocks(2))
    assert worker.store(fresh("request"), tokens, copied.blocks(2))
    key = worker.key(tokens, worker_id=None)
    answer(client.lookup(key, 1))

    assert answer(client.wait_prefetch_status(key.request_id, 5.0)) == 2


def test_a_lookup_that_names_no_readers_counts_as_one(copied: Engine) -> None:
    client, worker, tokens = copied.scheduler.client, copied.worker, prompt(CHUNK)
    worker.fill(copied.blocks(1))
    assert worker.store(fresh("request"), tokens, copied.blocks(1))
    key = worker.key(tokens, worker_id=None, num_kv_readers=0)

    assert answer(client.lookup(key, 1)) is None
    assert _status(client, key.request_id) == 1


@pytest.mark.parametrize(
    "changed",
    [{"worker_id": None}, {"worker_id": 1}, {"start": 1}, {"end": CHUNK + 1}, {"end": 3 * CHUNK}],
    ids=["no shard", "no such shard", "odd start", "odd end", "past the tokens"],
)
def test_transfers_with_a_wrong_key_fail(copied: Engine, changed: dict[str, Any]) -> None:
    worker, tokens = copied.worker, prompt(2 * CHUNK)
    key, lists = worker.key(tokens, **changed), [copied.blocks(2)]

    assert answer(worker.client.store(key, worker.instance_id, lists, b"")) == (b"", False)
    assert answer(worker.client.retrieve(key, worker.instance_id, lists, b"", 0)) == (b"", False)


def test_transfers_of_a_worker_that_is_not_registered_fail(copied: Engine) -> None:
    client, key = copied.worker.client, copied.worker.key(prompt(CHUNK))
    assert answer(client.store(key, NOBODY, [copied.blocks(1)], b"")) == (b"", False)
    assert answer(client.retrieve(key, NOBODY, [copied.blocks(1)], b"", 0)) == (b"", False)
    assert answer(client.unregister_kv_cache(NOBODY)) is None
    assert answer(client.store_q(key, NOBODY, [copied.blocks(1)], b"")) == (b"", False)


def test_slots_for_a_worker_that_is_not_registered_are_not_lent(lent: Engine) -> None:
    client, key = lent.worker.client, lent.worker.key(prompt(CHUNK))
    assert answer(client.prepare_store(key, NOBODY)).context == {"slots": [], "chunk_indices": []}
    assert answer(client.commit_store(key, NOBODY, b"")) is False
    refused = answer(client.prepare_retrieve(key, NOBODY))
    assert (refused.success, refused.data, refused.context) == (False, b"", {})
    assert answer(client.unregister_kv_cache_engine_driven_context(NOBODY)) is None


def test_a_commit_without_slots_publishes_nothing(lent: Engine) -> None:
    worker, tokens = lent.worker, prompt(CHUNK)
    assert answer(worker.client.commit_store(worker.key(tokens), worker.instance_id, b"")) is False
    assert lent.scheduler.peek(tokens) == 0


def test_pickled_chunks_are_refused(lent: Engine) -> None:
    """A client that cannot open the pool sends pickles; nothing here ever reads one."""
    worker, tokens = lent.worker, prompt(CHUNK)
    key = worker.key(tokens)
    assert len(answer(worker.client.prepare_store(key, worker.instance_id)).context["slots"]) == 1
    assert answer(worker.client.commit_store(key, worker.instance_id, b"\x80\x04N.")) is False
    assert lent.scheduler.peek(tokens) == 0


def test_slots_are_lent_once_and_seen_only_when_committed(make_engine: MakeEngine, lent: Engine) -> None:
    worker, other, tokens = lent.worker, make_engine(ENGINE_COPIES, model=lent.model).worker, prompt(2 * CHUNK)
    key = worker.key(tokens)
    context = answer(worker.client.prepare_store(key, worker.instance_id)).context
    assert context["chunk_indices"] == [0, 1]
    assert [slot["offset"] % 4096 for slot in context["slots"]] == [0, 0]
    assert lent.scheduler.peek(tokens) == 0
    again = answer(other.client.prepare_store(other.key(tokens), other.instance_id))
    assert again.context == {"slots": [], "chunk_indices": []}

    assert answer(worker.client.commit_store(key, worker.instance_id, b"")) is True
    assert lent.scheduler.peek(tokens) == 2 * CHUNK


def test_a_load_of_less_than_everything_lends_nothing(lent: Engine) -> None:
    worker, tokens = lent.worker, prompt(2 * CHUNK)
    worker.fill(lent.blocks(1))
    assert worker.store(fresh("request"), tokens, lent.blocks(1), end=CHUNK)

    answered = answer(worker.client.prepare_retrieve(worker.key(tokens), worker.instance_id))
    assert answered.success is False
    assert answer(worker.client.commit_retrieve(worker.key(tokens), worker.instance_id)) is True


def test_events_are_refused_without_a_storm_of_new_subscriptions(copied: Engine) -> None:
    """Ending the stream would make the client subscribe again at once, hundreds of times a second."""
    stream = copied.worker.client.subscribe_kv_events(copied.worker.instance_id, copied.model, 0, 1024)
    batch = next(stream)
    assert (batch.enabled, batch.events) == (False, [])
    stream.close()
    assert answer(copied.worker.client.noop()) == "OK"


def test_a_client_that_wants_events_reports_its_own_stores(make_engine: MakeEngine, mode: str) -> None:
    engine = make_engine(mode, kv_events=True)
    tokens = prompt(2 * CHUNK)
    engine.worker.fill(engine.blocks(2))
    assert engine.worker.store(fresh("request"), tokens, engine.blocks(2))

    events = engine.worker.adapter.get_kv_events()
    assert [event.token_ids for event in events] == [tokens[:CHUNK], tokens[CHUNK:]]


def test_the_pool_is_shared_memory(lent: Engine) -> None:
    assert isinstance(lent.worker.adapter.transfer_ctx.engine_driven_context, EngineDrivenContextShm)


def _status(client: Any, request: str) -> int:
    """Ask for the result of a lookup until it is not None any more."""
    results: list[int] = []

    def asked() -> bool:
        hit = answer(client.query_prefetch_status(request))
        results.extend([] if hit is None else [hit])
        return bool(results)

    until(asked, f"the result of {request}")
    return results[0]
