"""Every recorded frame is understood, and written back as it was."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from engine.hashing import TokenArray
from engine.layouts import EngineDrivenPayload, read_kv_layout, slot_layout
from engine.wire import codec
from engine.wire import messages as m
from tests.unit.engine.support import packed
from tests.unit.engine.wire.golden import NAMES, Recorded, from_aid, scenario

REPLIES: dict[str, Any] = {
    "register_kv_cache_engine_driven_context": m.RegisterEngineDrivenReply,
    "store": m.TransferReply,
    "retrieve": m.TransferReply,
    "prepare_store": m.PrepareStoreReply,
    "prepare_retrieve": m.PrepareRetrieveReply,
    "commit_store": bool,
    "commit_retrieve": bool,
    "ping": bool,
    "query_prefetch_status": int,
    "wait_prefetch_status": int,
    "get_chunk_size": int,
    "get_experimental": list[str],
    "noop": str,
    "subscribe_kv_events": m.KVEventBatch,
}
"""What a reply's value is; the other operations have none."""

UNKNOWN = {"unknown_op_int", "unknown_op_name", "retired_op_11"}
REFUSED = {"bad_payload_type", "bool_ping_true_as_instance"}
EXTRA_FRAMES = {"wrong_payload_count"}
"""A frame more than the operation has arguments, which is left alone: it may be a newer client's."""
OLDER_KEYS = {"legacy_key_missing_new_fields"}
"""Keys with fields missing and added; what is missing is written with its default, what is unknown is not."""
SHORTER_REPLIES = {("vllm_cpu_engine_driven_cold", "prepare_store")}
"""`{"context": {}}`, said by a server that has no pool to lend; kvkeep writes both lists, empty."""


def messages(*, requests: bool, cut: bool = False) -> list[Any]:
    """The recorded requests or replies whose frames are all there, or those with a frame that was cut."""
    return [
        pytest.param(name, message, id=f"{name}-{index}")
        for name in NAMES
        for index, message in enumerate(scenario(name))
        if message.is_request == requests and not message.is_control and bool(message.cut) == cut
    ]


def known(message: Recorded) -> codec.Operation:
    operation = codec.find_operation(message.frames[1])
    assert operation is not None
    assert operation.name == message.decoded["operation"]
    return operation


@pytest.mark.parametrize(("name", "request_"), messages(requests=True))
def test_a_recorded_request_decodes_and_encodes_back(name: str, request_: Recorded) -> None:
    if name in UNKNOWN:
        assert codec.find_operation(request_.frames[1]) is None
        return
    operation, payload = known(request_), request_.frames[2:]
    if name in REFUSED:
        with pytest.raises(codec.DecodeError):
            codec.decode(operation, payload)
        return
    message = codec.decode(operation, payload)
    written = codec.encode(message)
    if name in EXTRA_FRAMES:
        payload = payload[: len(operation.arguments)]
    if name not in OLDER_KEYS:
        assert written == payload
    assert codec.decode(operation, written) == message


@pytest.mark.parametrize(("name", "reply"), messages(requests=False))
def test_a_recorded_reply_decodes_and_encodes_back(name: str, reply: Recorded) -> None:
    operation, values = known(reply), reply.frames[2:]
    assert bool(values) == (reply.decoded["value"] != "<no value frame>")
    for value in values:
        decoded = msgspec.msgpack.decode(value, type=REPLIES[operation.name])
        if (name, operation.name) in SHORTER_REPLIES:
            assert decoded == operation.failure
        else:
            assert codec.encode_value(decoded) == value


@pytest.mark.parametrize(("name", "request_"), messages(requests=True))
def test_a_decoded_key_says_what_the_recording_says(name: str, request_: Recorded) -> None:
    for frame, aid in zip(request_.frames[2:], request_.decoded["payloads"], strict=True):
        if isinstance(aid, dict) and "token_ids" in aid:
            found = msgspec.msgpack.decode(frame, type=m.Key)
            tokens = msgspec.msgpack.decode(found.token_ids)
            for field in ("model_name", "world_size", "worker_id", "start", "end", "request_id", "num_kv_readers"):
                assert getattr(found, field) == aid[field]
            assert found.cache_salt == aid.get("cache_salt", "")
            assert msgspec.msgpack.decode(found.request_configs) == aid.get("request_configs")
            assert TokenArray.parse(bytes(found.token_ids)).length == len(tokens) == len(from_aid(aid["token_ids"]))
            assert isinstance(aid["token_ids"], str) or tokens == aid["token_ids"]


def cut_frames(*, requests: bool) -> list[Any]:
    return [
        pytest.param(name, message, index, id=f"{name}-{message.decoded['operation']}-{index}")
        for name, message in (param.values for param in messages(requests=requests, cut=True))
        for index in message.cut
    ]


def full_length(message: Recorded, index: int) -> int:
    """The length that a cut frame had."""
    return int(message.hex[index].rpartition("...")[2].strip("( bytes)"))


def integers(encoded: bytes) -> list[int]:
    """The whole msgpack integers at the beginning of these bytes."""
    found, position = [], 0
    while position < len(encoded):
        end = position + {0xCC: 2, 0xCD: 3, 0xCE: 5}.get(encoded[position], 1)
        if end <= len(encoded):
            found.append(int(msgspec.msgpack.decode(encoded[position:end], type=int)))
        position = end
    return found


@pytest.mark.parametrize(("name", "request_", "index"), cut_frames(requests=True))
def test_a_cut_request_frame_decodes_as_far_as_it_goes(name: str, request_: Recorded, index: int) -> None:
    frame, aid = request_.frames[index], request_.decoded["payloads"][index - 2]
    if isinstance(aid, str):  # the data of a commit: one piece of bytes, of which only the header says anything
        assert frame[0] == 0xC6
        assert int.from_bytes(frame[1:5], "big") == full_length(request_, index) - 5
        return
    whole = packed(from_aid(aid))
    tokens_at = whole.index(b"token_ids") + len(b"token_ids")
    header = TokenArray.parse(whole[tokens_at:])
    assert frame[: tokens_at + header.start] == whole[: tokens_at + header.start]
    assert TokenArray.parse(frame[tokens_at:])[1:] == header[1:]
    found = integers(frame[tokens_at + header.start :])
    assert len(found) > 2
    assert max(found) < 32_000


@pytest.mark.parametrize(("name", "request_"), messages(requests=True, cut=True))
def test_a_request_that_lost_its_tail_is_refused_and_not_guessed(name: str, request_: Recorded) -> None:
    operation = known(request_)
    if operation.name == "report_block_allocation":
        codec.decode(operation, request_.frames[2:])  # nobody reads the content
    else:
        with pytest.raises(codec.DecodeError, match=rf"argument {request_.cut[0] - 2} of {operation.name}"):
            codec.decode(operation, request_.frames[2:])


@pytest.mark.parametrize(("name", "reply", "index"), cut_frames(requests=False))
def test_a_cut_reply_decodes_as_far_as_it_goes(name: str, reply: Recorded, index: int) -> None:
    """Both are retrieves without a pool, whose data are the bytes themselves; kvkeep never sends such."""
    head = codec.encode_value(m.PrepareRetrieveReply(True)).partition(b"\xc4\x00")[0]
    assert known(reply).name == "prepare_retrieve"
    assert reply.frames[index].startswith(head + b"\xc6")
    data = int.from_bytes(reply.frames[index][len(head) + 1 : len(head) + 5], "big")
    assert data == full_length(reply, index) - len(head) - 5 - len(packed("context") + packed({}))


@pytest.mark.parametrize(
    "name",
    ["register_kv_cache_cpu_shm", "vllm_cpu_lmcache_driven_cold", "vllm_cpu_lmcache_driven_warm"],
)
def test_a_recorded_registration_is_understood(name: str) -> None:
    [request] = [x for x in scenario(name) if x.is_request and x.decoded["operation"] == "register_kv_cache"]
    message = codec.decode(known(request), request.frames[2:])
    assert isinstance(message, m.RegisterKVCache)
    chunk_size = 16 if name == "register_kv_cache_cpu_shm" else 256
    layout = read_kv_layout(message.kv_caches, message.layout_hints, message.engine_group_infos, chunk_size)
    assert layout.unsupported is None
    assert layout.report.num_layers == len(request.decoded["payloads"][1])


@pytest.mark.parametrize("name", [name for name in NAMES if "engine_driven" in name and "unregister" not in name])
def test_a_recorded_engine_driven_registration_is_understood(name: str) -> None:
    [request] = [x for x in scenario(name) if x.is_request and x.decoded["operation"].startswith("register_")]
    [aid] = request.decoded["payloads"]
    payload = msgspec.msgpack.decode(request.frames[2], type=EngineDrivenPayload)
    assert msgspec.to_builtins(payload) == aid
    planes = [] if aid["use_mla"] else [2]
    shape = [*planes, aid["num_layers"], aid["num_physical_slots"], aid["hidden_dim_size"]]
    assert list(slot_layout(payload, 16).shape) == shape
