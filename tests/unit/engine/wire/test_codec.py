"""Operations, their arguments and failure values."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.wire import messages as m
from engine.wire.codec import (
    BY_MESSAGE,
    OPERATIONS,
    DecodeError,
    Operation,
    decode,
    encode,
    encode_value,
    find_operation,
)
from tests.unit.engine.support import key, packed, register, register_engine_driven, unpacked

IDS = {
    1: "register_kv_cache",
    2: "unregister_kv_cache",
    3: "register_q_cache",
    4: "unregister_q_cache",
    5: "store_q",
    6: "store",
    7: "retrieve",
    8: "lookup",
    9: "query_prefetch_status",
    10: "wait_prefetch_status",
    12: "free_lookup_locks",
    13: "end_session",
    14: "register_kv_cache_engine_driven_context",
    15: "unregister_kv_cache_engine_driven_context",
    16: "prepare_store",
    17: "commit_store",
    18: "prepare_retrieve",
    19: "commit_retrieve",
    20: "clear",
    21: "get_chunk_size",
    22: "ping",
    23: "report_block_allocation",
    24: "noop",
    25: "cb_register_rope",
    26: "cb_unregister_rope",
    27: "cb_retrieve_pre_computed",
    28: "cb_unified_lookup",
    29: "p2p_lookup_and_lock",
    30: "p2p_query_lookup_results",
    31: "p2p_unlock_objects",
    32: "get_experimental",
    33: "cb_protocol_handshake",
}
"""The protocol's table."""

NO_SLOTS = {"context": {"slots": [], "chunk_indices": []}}
FAILURES: dict[str, Any] = {
    "store": [b"", False],
    "retrieve": [b"", False],
    "store_q": [b"", False],
    "cb_retrieve_pre_computed": [b"", False],
    "query_prefetch_status": 0,
    "wait_prefetch_status": 0,
    "prepare_store": NO_SLOTS,
    "commit_store": False,
    "commit_retrieve": False,
    "prepare_retrieve": {"success": False, "data": b"", "context": {}},
    "register_kv_cache_engine_driven_context": {"shm_name": "", "pool_size": 0},
    "subscribe_kv_events": {"enabled": False, "incarnation": 0, "next_cursor": 0, "lost": False, "events": []},
    "ping": False,
    "noop": "OK",
    "get_experimental": [],
}
"""The protocol's table; what is not in it fails without a value."""

MESSAGES: list[m.Message] = [
    m.GetChunkSize(),
    m.GetExperimental(),
    m.Noop(),
    m.Ping(None),
    m.Ping(2**63 - 1),
    register(1, []),
    m.UnregisterKVCache(2**62),
    m.Lookup(key(range(40), cache_salt="s"), packed(1)),
    m.QueryPrefetchStatus("ü"),
    m.WaitPrefetchStatus("r", 0.5),
    m.FreeLookupLocks(key(range(40)), packed(8)),
    m.EndSession("r"),
    m.Store(key(range(32), worker_id=0), 7, [[1, 2], [3]], b"handle"),
    m.Retrieve(key([], worker_id=1, world_size=2), 7, [], b"", 8),
    m.ReportBlockAllocation(packed(1), packed("m"), packed([])),
    m.Clear(True),
    register_engine_driven(3),
    m.UnregisterEngineDriven(3),
    m.PrepareStore(key(range(32), worker_id=0), 3),
    m.CommitStore(key(range(32), worker_id=0), 3, b""),
    m.PrepareRetrieve(key(range(32), worker_id=0), 3),
    m.CommitRetrieve(key(range(32), worker_id=0), 3),
    m.SubscribeKVEvents(1, "m", 0, 1024),
]

UNREAD = {"kv_caches", "engine_type", "layout_hints", "engine_group_infos", "tp_size", "payload"}
"""Arguments that are read later, or never."""

MALFORMED = [
    pytest.param(b"", id="empty"),
    pytest.param(b"\xc1", id="malformed"),
    pytest.param(b"\xa5ab", id="too short"),
    pytest.param(b"\x01\x02", id="two values"),
    pytest.param(b"\xa2\xff\xfe", id="no UTF-8"),
    pytest.param(b"\x91" * 100_000 + b"\xc0", id="nested lists"),
    pytest.param(b"\x81\x01" * 100_000 + b"\xc0", id="nested maps"),
    pytest.param(b"\x81\x80\xc0", id="a map as a map's key"),
    pytest.param(b"\xc7\x0c\xff" + b"\xff" * 12, id="an impossible time"),
    pytest.param(b"\xdd\xff\xff\xff\xff", id="four thousand million items"),
    pytest.param(b"\xc6\xff\xff\xff\xff", id="four gigabytes"),
]


def operation(name: str) -> Operation:
    found = find_operation(packed(name))
    assert found is not None
    return found


def test_the_operations_are_those_of_the_protocol() -> None:
    named = {"subscribe_kv_events", "cb_reorder_plan", "server_module_call"}
    assert {op.id: op.name for op in OPERATIONS if op.id is not None} == IDS
    assert {op.name for op in OPERATIONS if op.id is None} == named


@pytest.mark.parametrize(("number", "name"), IDS.items())
def test_an_operation_is_found_by_id_and_by_name(number: int, name: str) -> None:
    assert find_operation(packed(number)) is find_operation(packed(name)) is operation(name)


@pytest.mark.parametrize("value", [0, 11, 34, -1, 2**64 - 1, "store ", "STORE", "", None, True, 6.0, [6], {"store": 6}])
def test_whatever_else_is_named_is_unknown(value: object) -> None:
    assert find_operation(packed(value)) is None


@pytest.mark.parametrize("frame", MALFORMED)
def test_a_malformed_name_is_unknown(frame: bytes) -> None:
    assert find_operation(frame) is None


@given(st.binary(max_size=40))
@settings(max_examples=300, deadline=None)
def test_random_bytes_name_an_operation_or_none(frame: bytes) -> None:
    found = find_operation(frame)
    assert found is None or unpacked(frame) in (found.id, found.name)


@pytest.mark.parametrize("op", OPERATIONS, ids=lambda op: op.name)
def test_every_operation_fails_as_the_protocol_says(op: Operation) -> None:
    assert unpacked(encode_value(op.failure)) == FAILURES.get(op.name)


def test_only_what_no_client_could_take_is_left_unanswered() -> None:
    silent = {op.name for op in OPERATIONS if not op.answers}
    assert silent == {name for name in IDS.values() if name.startswith(("cb_", "p2p_"))} - {
        "cb_retrieve_pre_computed"
    } | {"cb_reorder_plan", "server_module_call"}


def test_every_operation_that_is_served_is_written_and_read_here() -> None:
    assert {type(message) for message in MESSAGES} == set(BY_MESSAGE)


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_what_is_written_is_read_back(message: m.Message) -> None:
    assert decode(BY_MESSAGE[type(message)], encode(message)) == message


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_a_missing_argument_is_refused_and_a_further_one_is_not(message: m.Message) -> None:
    op, payload = BY_MESSAGE[type(message)], encode(message)
    assert decode(op, [*payload, b"\xc1"]) == message
    if payload:
        with pytest.raises(DecodeError, match=f"{op.name} takes {len(payload)} arguments, not {len(payload) - 1}"):
            decode(op, payload[:-1])


@pytest.mark.parametrize("frame", MALFORMED)
@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_a_malformed_argument_is_refused_by_name_or_kept_unread(message: m.Message, frame: bytes) -> None:
    op, payload = BY_MESSAGE[type(message)], encode(message)
    for index in range(len(payload)):
        changed = [*payload[:index], frame, *payload[index + 1 :]]
        if isinstance(message, m.ReportBlockAllocation) or message.__struct_fields__[index] in UNREAD:
            assert msgspec.structs.astuple(decode(op, changed))[index] == frame
        else:
            with pytest.raises(DecodeError, match=f"argument {index} of {op.name}"):
                decode(op, changed)


@given(st.sampled_from([op for op in OPERATIONS if op.message]), st.lists(st.binary(max_size=30), max_size=7))
@settings(max_examples=300, deadline=None)
def test_random_arguments_are_read_or_refused_and_nothing_else(op: Operation, payload: list[bytes]) -> None:
    with suppress(DecodeError):
        assert isinstance(decode(op, payload), m.Message)


def test_an_operation_that_is_not_served_is_refused() -> None:
    with pytest.raises(DecodeError, match="store_q is not served"):
        decode(operation("store_q"), [])


def altered(message: m.Message, index: int, value: object) -> m.Message:
    payload = encode(message)
    payload[index] = packed(value)
    return decode(BY_MESSAGE[type(message)], payload)


@pytest.mark.parametrize(("value", "read"), [(True, True), (False, False), (1, True), (0, False), (5, True)])
def test_a_flag_may_be_a_number(value: object, read: bool) -> None:
    assert altered(m.Clear(True), 0, value) == m.Clear(read)


@pytest.mark.parametrize(("value", "read"), [(True, 1), (7, 7), (-1, -1)])
def test_a_number_may_be_a_flag(value: object, read: int) -> None:
    assert altered(m.UnregisterKVCache(1), 0, value) == m.UnregisterKVCache(read)


@pytest.mark.parametrize("value", [1.0, "1", None, [1], b"1"])
@pytest.mark.parametrize("message", [m.Clear(True), m.UnregisterKVCache(1)], ids=["flag", "number"])
def test_a_number_or_flag_may_be_nothing_else(message: m.Message, value: object) -> None:
    with pytest.raises(DecodeError):
        altered(message, 0, value)


@pytest.mark.parametrize("value", [True, False, 1.0, "1", [1]])
def test_the_instance_of_a_ping_is_a_number_or_nil(value: object) -> None:
    with pytest.raises(DecodeError):
        altered(m.Ping(1), 0, value)


STORE = m.Store(key(range(32), worker_id=0), 7, [[1, 2]], b"")


def test_a_flat_list_of_blocks_is_the_only_groups() -> None:
    read = altered(STORE, 2, [3, 4, 5])
    assert isinstance(read, m.Store)
    assert read.block_ids == [[3, 4, 5]]


@pytest.mark.parametrize("value", [7, None, [1.0], [[1.0]], [[True]], ["x"], [[1], 2], [1, [2]], {"a": 1}])
def test_block_ids_are_lists_of_whole_numbers(value: object) -> None:
    with pytest.raises(DecodeError):
        altered(STORE, 2, value)


@pytest.mark.parametrize("handle", [None, "text", 5])
def test_an_event_handle_is_bytes(handle: object) -> None:
    with pytest.raises(DecodeError):
        altered(STORE, 3, handle)


def key_map(**changes: object) -> dict[str, object]:
    """A key as a map."""
    plain: dict[str, object] = unpacked(packed(key([1, 2])))
    return plain | changes


@pytest.mark.parametrize("missing", ["cache_salt", "request_configs", "num_kv_readers"])
def test_a_key_of_an_older_client_has_defaults(missing: str) -> None:
    older = {name: value for name, value in key_map().items() if name != missing}
    read = altered(m.Lookup(key([]), packed(1)), 0, older)
    assert isinstance(read, m.Lookup)
    assert (read.key.cache_salt, read.key.request_configs) == ("", m.NIL)


def test_a_key_of_a_newer_client_may_say_more() -> None:
    assert isinstance(altered(m.Lookup(key([]), packed(1)), 0, key_map(newer={"a": [1]})), m.Lookup)


@pytest.mark.parametrize(
    "changes",
    [
        {"model_name": None},
        {"world_size": "1"},
        {"world_size": True},
        {"start": 1.5},
        {"request_id": 7},
        {"cache_salt": None},
        {"num_kv_readers": None},
        {"worker_id": "0"},
    ],
)
def test_a_key_with_a_field_of_another_type_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(DecodeError):
        altered(m.Lookup(key([]), packed(1)), 0, key_map(**changes))


@pytest.mark.parametrize(
    "missing", ["model_name", "world_size", "worker_id", "token_ids", "start", "end", "request_id"]
)
def test_a_key_without_what_it_needs_is_refused(missing: str) -> None:
    with pytest.raises(DecodeError, match=missing):
        altered(m.Lookup(key([]), packed(1)), 0, {name: v for name, v in key_map().items() if name != missing})


NASTY = [
    "",
    "m",
    "\u00a9token_ids",
    "x\u00a9token_idsx",
    "\u00a5start",
    "x\u00a5startx",
    "\u00a9token_ids\u00a5start\x01",
]
"""Texts whose encoding holds the bytes that a field's name begins with."""
VALUES = st.sampled_from([0, "start", [1], b"\xa9token_ids", b"\xa5start"])


@given(
    texts=st.tuples(*[st.sampled_from(NASTY)] * 3),
    configs=st.none()
    | st.dictionaries(st.sampled_from([*NASTY, "start", "token_ids"]), st.sampled_from([0, "x", [1]])),
    tokens=st.lists(st.integers(0, 2**32 - 1), max_size=5),
    more=st.dictionaries(
        st.sampled_from(["newer", *NASTY]), st.sampled_from([0, "start", b"\xa9token_ids", b"\xa5start"])
    ),
    order=st.randoms(use_true_random=False),
)
@settings(max_examples=300, deadline=None)
def test_the_tokens_are_cut_out_of_a_key_and_nothing_else(
    texts: tuple[str, str, str], configs: object, tokens: list[int], more: dict[str, object], order: Any
) -> None:
    """Whatever else is in it, in whatever order, and though some of it looks like the tokens' neighbours."""
    fields = key_map(
        model_name=texts[0],
        request_id=texts[1],
        cache_salt=texts[2],
        request_configs=configs,
        token_ids=tokens,
    )
    items = [*(fields | more).items()]
    if order.random() < 0.5:
        order.shuffle(items)
    frame = packed(dict(items))
    read = decode(operation("lookup"), [frame, packed(1)])
    assert isinstance(read, m.Lookup)
    assert read.key == msgspec.msgpack.decode(frame, type=m.Key)
    assert unpacked(read.key.token_ids) == tokens


def test_a_salt_that_reads_like_the_rest_of_a_key_is_a_salt_all_the_same() -> None:
    """Taken for the fields behind the tokens, it would make a key without a salt, and show what others have cached."""
    salt = "\u00a5start\u0340\u00a3end\u0340\u00a3any\u0340\u00aarequest_id\u0640" + "\u00e9" * 64
    wanted = key(range(32), cache_salt=salt)
    read = decode(operation("lookup"), [packed(wanted), packed(1)])
    assert isinstance(read, m.Lookup)
    assert read.key == wanted


def test_fields_in_another_order_are_read_as_what_they_are() -> None:
    fields = key_map(cache_salt="x\u00a5startx")
    order = ["model_name", "world_size", "worker_id", "start", "end", "request_id", "token_ids", "cache_salt"]
    read = decode(operation("lookup"), [packed({name: fields[name] for name in order}), packed(1)])
    assert isinstance(read, m.Lookup)
    assert (read.key.start, read.key.cache_salt) == (0, "x\u00a5startx")


@pytest.mark.parametrize("second", [[7], [], None])
def test_of_tokens_that_are_there_twice_those_count_that_count_for_everybody_else(second: object) -> None:
    """The last ones; two readers of one key must not see two prompts."""
    once = packed(key_map())
    twice = bytes((once[0] + 1,)) + once[1:] + packed("token_ids") + packed(second)
    read = decode(operation("lookup"), [twice, packed(1)])
    assert isinstance(read, m.Lookup)
    assert unpacked(read.key.token_ids) == second


def test_the_replies_that_clients_are_strict_about() -> None:
    slot = m.Slot(4096, 64, (2, 16), "bfloat16")
    as_map = {"offset": 4096, "length": 64, "shape": [2, 16], "dtype": "bfloat16"}
    assert encode_value(m.TransferReply.DONE) == b"\x92\xc4\x00\xc3"
    assert encode_value(m.TransferReply.FAILED) == b"\x92\xc4\x00\xc2"
    assert unpacked(encode_value(m.PrepareStoreReply(m.StoreSlots([slot], [3])))) == {
        "context": {"slots": [as_map], "chunk_indices": [3]}
    }
    assert unpacked(encode_value(m.PrepareRetrieveReply(True, context=m.RetrieveSlots([slot])))) == {
        "success": True,
        "data": b"",
        "context": {"slots": [as_map]},
    }
