"""What one client may have at once; beyond it, it is refused with a value it understands, and others are served."""

from __future__ import annotations

import msgspec
import pytest

from engine.l1.cache import L1Cache
from engine.wire import codec, limits
from engine.wire import messages as m
from tests.unit.engine.driver import Driver
from tests.unit.engine.support import cpu_tensor, key, packed, register, register_engine_driven, unpacked

TOKENS = list(range(48))


@pytest.fixture
def driver() -> Driver:
    made = Driver()
    made.register()
    return made


def longest_text(limit: int) -> bytes:
    """A msgpack text that is one byte too long."""
    return packed("x" * (limit - 2))


@pytest.mark.parametrize(
    ("operation", "payload", "which"),
    [
        ("end_session", [longest_text(limits.NAME)], 0),
        ("unregister_kv_cache", [b"\x00" * 17], 0),
        ("store", [packed({}), b"\x01", b"\x90" + bytes(limits.BLOCK_IDS), b"\xc4\x00"], 0),
        ("register_kv_cache", [b"\x01", bytes(limits.DESCRIPTORS + 1), *[b""] * 5], 1),
    ],
)
def test_an_argument_that_is_too_large_is_refused_unread(operation: str, payload: list[bytes], which: int) -> None:
    found = codec.find_operation(packed(operation))
    assert found is not None
    with pytest.raises(codec.DecodeError, match=f"argument {which} of {operation}"):
        codec.decode(found, payload)


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("field", ["model_name", "request_id", "request_configs"])
def test_a_key_has_room_for_tokens_and_not_for_texts(field: str, order: int) -> None:
    """In whatever order its fields stand."""
    fields = unpacked(packed(key(TOKENS))) | {"token_ids": TOKENS, "request_configs": None}
    fields[field] = "x" * limits.KEY_TEXTS
    frame = packed(dict(list(fields.items())[::order]))
    found = codec.find_operation(packed("prepare_store"))
    assert found is not None
    with pytest.raises(codec.DecodeError, match="bytes besides the tokens"):
        codec.decode(found, [frame, b"\x01"])


def test_a_name_of_an_operation_is_not_read_if_it_is_too_long() -> None:
    assert codec.find_operation(longest_text(limits.NAME)) is None


def test_a_prompt_of_too_many_tokens_is_refused_before_any_is_read(driver: Driver) -> None:
    count = limits.MAX_TOKENS + 1
    claimed = msgspec.structs.replace(key(TOKENS), token_ids=msgspec.Raw(b"\xdd" + count.to_bytes(4, "big")), end=count)
    assert driver.ask(m.Lookup(claimed, b"\x01")) is None
    assert driver.query() == 0
    assert driver.report().failed_requests == 1


def test_requests_that_are_never_ended_are_refused_at_some_time(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.lookups._MOST_SESSIONS", 3)
    driver.store(TOKENS)
    for number in range(3):
        assert driver.lookup(TOKENS, request_id=str(number)) == 3
    assert driver.lookup(TOKENS, request_id="one more") == 0
    assert driver.lookup(TOKENS, request_id="2") == 3
    assert driver.lookup(TOKENS, request_id="r", client=b"another") == 3
    driver.end("0")
    assert driver.lookup(TOKENS, request_id="one more") == 3
    assert driver.report().active_sessions == 4


def test_retrieves_that_are_never_committed_are_refused_at_some_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.lending._MOST_PINS", 2)
    driver = Driver()
    driver.ask(register_engine_driven(1))
    wanted = key(TOKENS[:16], worker_id=0)
    driver.ask(m.PrepareStore(wanted, 1))
    driver.ask(m.CommitStore(wanted, 1, b""))
    answers = [driver.ask(m.PrepareRetrieve(wanted, 1))["success"] for _ in range(3)]
    assert answers == [True, True, False]
    assert driver.ask(m.CommitRetrieve(wanted, 1)) is True
    assert driver.ask(m.PrepareRetrieve(wanted, 1))["success"] is True


def test_more_workers_than_can_be_are_answered_and_not_remembered(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.registration._MOST_WORKERS", 1)
    assert driver.ask(register(2, [cpu_tensor([8, 2, 8, 4])])) is None
    assert driver.ask(register_engine_driven(3)) == {"shm_name": "", "pool_size": 0}
    assert [worker.instance_id for worker in driver.report().workers] == [1]
    driver.register()
    assert driver.report().workers[0].state == "ready"


def test_what_a_registration_says_is_not_quoted_without_end(driver: Driver) -> None:
    driver.ask(register(2, [cpu_tensor([8, 2, 8, 4])], kv_layout="x" * 100_000))
    [problem] = [worker.problem for worker in driver.report().workers if worker.instance_id == 2]
    assert problem is not None
    assert len(problem) == 500


def test_an_object_that_is_larger_than_everything_is_refused_and_nothing_is_evicted_for_it() -> None:
    driver = Driver()
    driver.ask(register_engine_driven(1, num_layers=2**60, hidden_dim_size=2**60))
    prepared = driver.ask(m.PrepareStore(key(TOKENS, worker_id=0), 1))
    assert prepared == {"context": {"slots": [], "chunk_indices": []}}
    assert isinstance(driver.cache, L1Cache)
    assert driver.cache.used == 0
