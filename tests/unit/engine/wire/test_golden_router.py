"""Recorded conversations, held again with a real server over real sockets: it answers the same, or better.

Each recording needs the state that earlier ones have left: what is stored, who is registered. So they are replayed in
one order, with what is not in any file (the registrations of tensor-parallel workers, a store or two) put in between.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from engine import MIB, EngineSettings, Runtime
from engine.wire import codec
from engine.wire import messages as m
from tests.unit.engine.support import HANDLE, cpu_tensor, group, key, packed, register, unpacked
from tests.unit.engine.wire.golden import NAMES, scenario
from tests.unit.engine.wire.replay import Answers, Replay, Step

WORKER = 2825981237921602104
"""The recorded instance of model m on socket c1."""


def register_two_shards(replay: Replay) -> None:
    for socket, instance_id in (("c16", 4507333229756214797), ("c17", 2486322521584688513)):
        tensors = [tensor(replay, f"{socket}-{layer}", [8, 2, 8, 8]) for layer in range(2)]
        replay.client(socket).ask(register(instance_id, tensors, model_name="tp2c", world_size=2))


def register_two_readers_of_one_shard(replay: Replay) -> None:
    for socket, instance_id in (("c19", 1862424653901992080), ("c20", 1544032187531966305)):
        tensors = [tensor(replay, f"{socket}-{layer}", [8, 8, 12]) for layer in range(2)]
        replay.client(socket).ask(register(instance_id, tensors, model_name="mlac", groups=[group([0, 1])]))


def tensor(replay: Replay, name: str, shape: list[int]) -> dict[str, Any]:
    body = cpu_tensor(shape)
    return body | {"shm_name": replay.segment(name, body["nbytes"]).name}


def store_what_was_still_loading(replay: Replay) -> None:
    stored = replay.client("c1").ask(m.Store(key(range(32), worker_id=0), WORKER, [[1, 2, 3, 4]], HANDLE))
    assert stored == [b"", True]


def look_up_again(replay: Replay) -> None:
    """The result of the lookup before this one has been collected."""
    replay.client("c1").ask(m.Lookup(key(range(32), request_id="a"), packed(1)))


SMALL: list[Step] = [
    "get_chunk_size",
    "get_experimental",
    "ping_none",
    "noop",
    "unknown_op_name",
    "unknown_op_int",
    "retired_op_11",
    "wrong_payload_count",
    "op_as_string_name_for_legacy",
    "uid_non_canonical_echo",
    "bad_payload_type",
    "bool_ping_true_as_instance",
    "lookup_unregistered_model",
    "register_kv_cache_cpu_shm",
    "register_kv_cache_again_same_instance",
    "ping_instance",
    "lookup_miss",
    "subscribe_kv_events_open",
    "store",
    "subscribe_kv_events_batch_from_store",
    "store_again_dedup",
    "store_later_chunk_start_gt_0",
    "subscribe_kv_events_batch_from_store_later_chunk_start_gt_0",
    "store_underflow_block_ids",
    "store_unregistered_instance",
    "end_session",
    "lookup_hit",
    "query_prefetch_status_done",
    "query_prefetch_status_second_time",
    "query_prefetch_status_unknown",
    "retrieve_ok",
    "lookup_then_wait_prefetch_status",
    "free_lookup_locks_head",
    "retrieve_tail_skip8",
    "end_session_r3",
    "retrieve_missing_chunk_fail",
    "retrieve_unregistered_instance",
    "lookup_partial_hit",
    "lookup_salt_is_isolated",
    "lookup_request_configs",
    "lookup_world_size_2_no_shard_rank1",
    "lookup_num_kv_readers_0_no_reply",
    "legacy_key_missing_new_fields",
    store_what_was_still_loading,
    "query_prefetch_status_pending",
    look_up_again,
    "wait_prefetch_status_timeout_then_done",
    "report_block_allocation",
    register_two_shards,
    "tp2_store_rank0_only_then_lookup",
    "tp2_store_rank1_then_lookup",
    "store_all_null_blocks_chunk",
    register_two_readers_of_one_shard,
    "mla_tp2_store_lookup_two_retrieves",
    "clear_force",
    "clear_noforce",
    "subscribe_kv_events_batch_from_clear_force",
    "subscribe_kv_events_cancel",
    "unregister_kv_cache",
    "unregister_kv_cache_unknown",
    "register_engine_driven_fused_hnd",
    "register_engine_driven_two_nb_nhd",
    "register_engine_driven_mla",
    "prepare_store",
    "commit_store",
    "prepare_store_all_cached",
    "commit_store_without_prepare",
    "engine_store_via_adapter",
    "engine_lookup_hit",
    "prepare_retrieve",
    "commit_retrieve",
    "commit_retrieve_twice",
    "prepare_retrieve_missing",
    "prepare_store_unregistered_no_reply",
    "prepare_store_mla",
    "unregister_engine_driven",
]
SERVER_COPIES: list[Step] = ["vllm_cpu_lmcache_driven_cold", "vllm_cpu_lmcache_driven_warm"]
ENGINE_COPIES: list[Step] = ["vllm_cpu_engine_driven_cold", "vllm_cpu_engine_driven_warm"]

SILENT = {"unknown_op_name", "unknown_op_int", "retired_op_11"}
"""Operations that nobody knows have no answer."""
STREAMS = {name for name in NAMES if name.startswith("subscribe_kv_events_") and name != "subscribe_kv_events_open"}
"""Words about a stream, and its items: kvkeep has said that there is none, and says nothing more."""

NOTHING: list[bytes] = []
NO_EVENTS = {"enabled": False, "incarnation": 0, "next_cursor": 0, "lost": False, "events": []}
NO_SLOTS = {"context": {"slots": [], "chunk_indices": []}}
VLLM_SLOT = {"offset": 0, "length": 4 * 256 * 256 * 2, "shape": [4, 256, 256], "dtype": "bfloat16"}
VLLM_SLOTS = {"success": True, "data": b"", "context": {"slots": [VLLM_SLOT] * 4}}
POOL = {"shm_name": "any", "pool_size": 1}

OTHERWISE: dict[tuple[str, str, str], list[bytes]] = {
    # Events are not announced, and who subscribes all the same is told to stop.
    ("get_experimental", "c0", "01"): [packed([])],
    ("vllm_cpu_lmcache_driven_cold", "c0", "01"): [packed([])],
    ("vllm_cpu_lmcache_driven_warm", "c2", "01"): [packed([])],
    ("vllm_cpu_engine_driven_cold", "c0", "01"): [packed([])],
    ("vllm_cpu_engine_driven_warm", "c2", "01"): [packed([])],
    ("subscribe_kv_events_open", "c1", "05"): [packed(NO_EVENTS)],
    # Where the recorded server was silent, a known operation has a failure value.
    ("bad_payload_type", "c2", "0a"): [packed(0)],
    ("bool_ping_true_as_instance", "c2", "0b"): [packed(False)],
    ("lookup_num_kv_readers_0_no_reply", "c0", "20"): NOTHING,
    ("prepare_store_unregistered_no_reply", "c3", "0e"): [packed(NO_SLOTS)],
    # A frame too many is a newer client's; what is there is enough for an answer.
    ("wrong_payload_count", "c2", "03"): [packed(16)],
    # Nothing is loaded behind a lookup yet, so its result is there at once, and once only.
    ("query_prefetch_status_pending", "c1", "01"): [packed(2)],
    ("wait_prefetch_status_timeout_then_done", "c1", "02"): [packed(2)],
    ("wait_prefetch_status_timeout_then_done", "c1", "03"): [packed(0)],
    # The recorded server had no pool, and sent the bytes through the socket.
    ("vllm_cpu_engine_driven_cold", "c0", "02"): [packed(POOL)],
    ("vllm_cpu_engine_driven_cold", "c0", "04"): [
        packed({"context": {"slots": [VLLM_SLOT] * 4, "chunk_indices": [0, 1, 2, 3]}})
    ],
    ("vllm_cpu_engine_driven_warm", "c2", "02"): [packed(POOL)],
    ("vllm_cpu_engine_driven_warm", "c2", "04"): [packed(VLLM_SLOTS)],
    ("vllm_cpu_engine_driven_warm", "c2", "06"): [packed(VLLM_SLOTS)],
    # The recording ends before the answer.
    ("vllm_cpu_lmcache_driven_warm", "c3", "09"): NOTHING,
}
"""The values of answers that differ from the recorded ones or are not recorded, by scenario, socket and uid."""


def wanted(name: str, place: tuple[str, str], recorded: Answers) -> list[bytes]:
    """The value frames that the answer to a request shall have, masked."""
    if (name, *place) in OTHERWISE:
        return [masked("", value) for value in OTHERWISE[name, *place]]
    return values(recorded.recorded[place])


def values(reply: list[bytes]) -> list[bytes]:
    operation = codec.find_operation(reply[1])
    assert operation is not None
    return [masked(operation.name, value) for value in reply[2:]]


def masked(operation: str, value: bytes) -> bytes:
    """The value without what differs from run to run: event handles, offsets of slots, and the pool."""
    match unpacked(value):
        case [bytes(), bool() as ok] if operation in ("store", "retrieve"):
            return packed([b"", ok])
        case {"shm_name": str() as name, "pool_size": int() as size}:
            return packed({"shm_name": bool(name), "pool_size": size > 0})
        case {"context": {"slots": list() as slots} as context} as whole:
            return packed(whole | {"context": context | {"slots": [slot | {"offset": 0} for slot in slots]}})
        case _:
            return value


def replayed(steps: list[Step], chunk_size: int, l1_size: int) -> Replay:
    server = Runtime(EngineSettings(port=0, chunk_size=chunk_size, l1_size=l1_size), on_death=pytest.fail)
    try:
        with Replay(server) as replay:
            replay.run(*steps)
            return replay
    finally:
        server.stop()


@pytest.fixture(scope="module")
def small() -> Replay:
    return replayed(SMALL, 16, 4 * MIB)


@pytest.fixture(scope="module")
def server_copies() -> Replay:
    return replayed(SERVER_COPIES, 256, 16 * MIB)


@pytest.fixture(scope="module")
def engine_copies() -> Replay:
    return replayed(ENGINE_COPIES, 256, 16 * MIB)


def check(name: str, answers: Answers) -> None:
    """Every request that is due an answer has the right one, and no other."""
    assert answers.unasked == []
    if name in SILENT | STREAMS:
        assert answers.given == {}
        return
    assert answers.given.keys() == answers.asked.keys()
    for place, reply in answers.given.items():
        assert reply[:2] == answers.asked[place][:2], "the request's own uid and op are echoed"
        assert values(reply) == wanted(name, place, answers), f"{name}: the request {place[1]} of {place[0]}"


@pytest.mark.parametrize("name", [step for step in SMALL if isinstance(step, str)])
def test_a_recorded_scenario_is_answered_as_recorded(small: Replay, name: str) -> None:
    check(name, small.answers[name])


@pytest.mark.parametrize("name", SERVER_COPIES)
def test_a_real_vllm_whose_blocks_the_server_copies_is_answered_as_recorded(server_copies: Replay, name: str) -> None:
    check(name, server_copies.answers[name])


@pytest.mark.parametrize("name", ENGINE_COPIES)
def test_a_real_vllm_that_copies_by_itself_is_answered_as_recorded(engine_copies: Replay, name: str) -> None:
    check(name, engine_copies.answers[name])


def test_every_recording_is_replayed_once() -> None:
    steps = [step for step in SMALL + SERVER_COPIES + ENGINE_COPIES if isinstance(step, str)]
    assert sorted(steps) == NAMES


def test_every_answer_that_is_expected_to_differ_belongs_to_a_request() -> None:
    requests = {(name, x.socket, x.hex[0]) for name in NAMES for x in scenario(name) if x.is_request}
    assert OTHERWISE.keys() <= requests


def test_slots_lent_in_the_recordings_are_apart_and_aligned(small: Replay) -> None:
    lent = [
        slot["offset"]
        for name in ("prepare_store", "engine_store_via_adapter", "prepare_store_mla")
        for reply in small.answers[name].given.values()
        if len(reply) > 2 and isinstance(value := unpacked(reply[2]), dict)
        for slot in value["context"]["slots"]
    ]
    assert len(lent) == len(set(lent)) == 5
    assert all(offset % 4096 == 0 for offset in lent)


def blocks(replay: Replay, after: str) -> np.ndarray:
    """The blocks of both layers of model m after a scenario: [layer, block, bytes]."""
    segments = replay.snapshots[after]
    return np.stack([segments[f"/lmcache_kv_15537_{layer}"].reshape(8, 256) for layer in range(2)])


def test_the_recorded_retrieve_moves_the_stored_blocks(small: Replay) -> None:
    before, after = blocks(small, "store"), blocks(small, "retrieve_ok")
    assert np.array_equal(after[:, [5, 6, 7, 4]], before[:, [1, 2, 3, 4]])
    assert np.array_equal(after[:, :5], before[:, :5])


def test_the_recorded_retrieve_of_a_tail_leaves_the_skipped_block_alone(small: Replay) -> None:
    """Chunk 1 was stored from blocks 3 and 4, chunk 2 from 5 and 6; they go to 3 (skipped), 4, 5 and 6."""
    before, after = blocks(small, "store_later_chunk_start_gt_0"), blocks(small, "retrieve_tail_skip8")
    assert np.array_equal(after[:, 4:7], before[:, [4, 5, 6]])
    assert np.array_equal(after[:, :4], before[:, :4])


def test_both_readers_of_a_recorded_shard_get_its_bytes(small: Replay) -> None:
    after = small.snapshots["mla_tp2_store_lookup_two_retrieves"]
    for layer in range(2):
        one, other = (after[f"{socket}-{layer}"].reshape(8, -1) for socket in ("c19", "c20"))
        assert np.array_equal(one[[5, 6, 7]], one[[1, 2, 3]])
        assert np.array_equal(other[[5, 6, 7, 4]], one[[1, 2, 3, 4]])


def test_the_warm_vllm_gets_the_bytes_of_the_cold_one(server_copies: Replay) -> None:
    """Both prompts: the second goes to other blocks than the first, and over a part of them."""
    cold, warm = server_copies.first_blocks.values()
    assert np.array_equal(warm[:, [1, 2, 3, 4, 5, 6]], cold[:, [1, 2, 3, 4, 5, 6]])
