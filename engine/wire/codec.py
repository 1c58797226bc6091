"""Operations of the protocol: their ids, arguments, failure values, and the encoding of all of them.

Every known operation has a failure value, because the client waits without a time limit for some replies and the
protocol has no error frame: whatever goes wrong after the operation could be told, that value is the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import msgspec

from engine.wire import limits
from engine.wire import messages as m

_T = TypeVar("_T")

RETIRED_ID: Final = 11


class DecodeError(ValueError):
    """A payload that does not fit its operation; says which argument and why."""


@dataclass(frozen=True, slots=True)
class Argument:
    """One payload frame: how it is read and how it is written."""

    decode: Callable[[bytes], Any]
    encode: Callable[[Any], bytes]
    limit: int = limits.MAX_FRAME
    """Bytes; what is larger is refused before it is read."""


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation. `message` is None where kvkeep only answers the failure value."""

    name: str
    id: int | None
    message: Callable[..., m.Message] | None
    arguments: tuple[Argument, ...]
    failure: Any
    """Sent when anything is wrong with a request; None is sent as a reply without a value."""
    answers: bool = True
    """False where the protocol has no value that a client could take: such a request is dropped."""


_UNREADABLE: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""What the decoders raise: for malformed frames, for text that is no UTF-8, and for frames nested too deeply."""

_encoder = msgspec.msgpack.Encoder()
_untyped = msgspec.msgpack.Decoder()


def encode_value(value: object) -> bytes:
    """A reply's value frame."""
    return _encoder.encode(None if value is m.PENDING else value)


def _typed(kind: type[_T], limit: int) -> Argument:
    return Argument(msgspec.msgpack.Decoder(kind).decode, _encoder.encode, limit)


def _raw(limit: int) -> Argument:
    return Argument(_same, _same, limit)


def _integer(frame: bytes) -> int:
    value = _untyped.decode(frame)
    if not isinstance(value, bool | int):
        raise msgspec.ValidationError(f"Expected `int`, got `{type(value).__name__}`")
    return int(value)


def _truth(frame: bytes) -> bool:
    return bool(_integer(frame))


def _instance(frame: bytes) -> int | None:
    """An instance id or nil. A bool is refused: it is no instance, and `int(True)` would be one."""
    value = _untyped.decode(frame)
    if value is not None and type(value) is not int:
        raise msgspec.ValidationError(f"Expected `int | null`, got `{type(value).__name__}`")
    return value


_block_lists = msgspec.msgpack.Decoder(list[list[int]])
_flat_list = msgspec.msgpack.Decoder(list[int])


def _blocks(frame: bytes) -> list[list[int]]:
    """Block ids per group; old clients send one flat list for their only group."""
    try:
        return _block_lists.decode(frame)
    except msgspec.ValidationError:
        return [_flat_list.decode(frame)]


_TOKENS_NAME: Final = b"\xa9token_ids"
_NEXT_NAME: Final = b"\xa5start"
_NIL: Final = b"\xc0"
_whole_key = msgspec.msgpack.Decoder(m.Key).decode


def _key(frame: bytes) -> m.Key:
    """A key, with its tokens cut out unread.

    PERF: Finding the end of a hundred thousand integers costs more than all else in a lookup whose tokens were seen
    before, so the decoder gets the key without them. It refuses that if anything but the tokens stood where they were
    taken from, and is then given everything. Whoever reads the tokens checks what it reads.
    """
    start = frame.find(_TOKENS_NAME) + len(_TOKENS_NAME)
    end = frame.rfind(_NEXT_NAME)
    # NOTE: A second place that looks like the next field would be in a text, which may be an end user's: with it, a key
    # could be read that nobody has written, such as one with another salt. Of two token lists, the last counts.
    only = frame.find(_NEXT_NAME, 0, start) < 0 and frame.rfind(_NEXT_NAME, start, end) < 0
    only = only and frame.find(_TOKENS_NAME, end) < 0
    if len(_TOKENS_NAME) <= start < end and only:
        with suppress(*_UNREADABLE):
            key = _whole_key(_texts(frame[:start] + _NIL + frame[end:]))
            return msgspec.structs.replace(key, token_ids=msgspec.Raw(frame[start:end]))
    key = _whole_key(frame)
    _texts(frame[: len(frame) - len(bytes(key.token_ids))])
    return key


def _texts(frame: bytes) -> bytes:
    """Checks the size of all of a key but its tokens."""
    if len(frame) > limits.KEY_TEXTS:
        raise msgspec.ValidationError(f"{len(frame)} bytes besides the tokens; {limits.KEY_TEXTS} are possible")
    return frame


def _same(frame: bytes) -> bytes:
    return frame


_KEY = Argument(_key, _encoder.encode, limits.KEY)
_NAME = _typed(str, limits.NAME)
_HANDLE = _typed(bytes, limits.HANDLE)
_DATA = _typed(bytes, limits.MAX_FRAME)
_FLOAT = _typed(float, limits.NUMBER)
_INT = Argument(_integer, _encoder.encode, limits.NUMBER)
_BOOL = Argument(_truth, _encoder.encode, limits.NUMBER)
_INSTANCE = Argument(_instance, _encoder.encode, limits.NUMBER)
_BLOCKS = Argument(_blocks, _encoder.encode, limits.BLOCK_IDS)
_TENSORS = _raw(limits.DESCRIPTORS)
_GROUPS = _raw(limits.GROUPS)
_SMALL = _raw(limits.SMALL)
_UNREAD = _raw(limits.MAX_FRAME)


def _build() -> tuple[Operation, ...]:
    failed, no_slots, refused = m.TransferReply.FAILED, m.PrepareStoreReply(), m.PrepareRetrieveReply(False)
    pool = m.RegisterEngineDrivenReply()
    return (
        Operation(
            "register_kv_cache", 1, m.RegisterKVCache, (_INT, _TENSORS, _NAME, _INT, _SMALL, _SMALL, _GROUPS), None
        ),
        Operation("unregister_kv_cache", 2, m.UnregisterKVCache, (_INT,), None),
        Operation("register_q_cache", 3, None, (), None),
        Operation("unregister_q_cache", 4, None, (), None),
        Operation("store_q", 5, None, (), failed),
        Operation("store", 6, m.Store, (_KEY, _INT, _BLOCKS, _HANDLE), failed),
        Operation("retrieve", 7, m.Retrieve, (_KEY, _INT, _BLOCKS, _HANDLE, _INT), failed),
        Operation("lookup", 8, m.Lookup, (_KEY, _UNREAD), None),
        Operation("query_prefetch_status", 9, m.QueryPrefetchStatus, (_NAME,), 0),
        Operation("wait_prefetch_status", 10, m.WaitPrefetchStatus, (_NAME, _FLOAT), 0),
        Operation("free_lookup_locks", 12, m.FreeLookupLocks, (_KEY, _UNREAD), None),
        Operation("end_session", 13, m.EndSession, (_NAME,), None),
        Operation("register_kv_cache_engine_driven_context", 14, m.RegisterEngineDriven, (_SMALL,), pool),
        Operation("unregister_kv_cache_engine_driven_context", 15, m.UnregisterEngineDriven, (_INT,), None),
        Operation("prepare_store", 16, m.PrepareStore, (_KEY, _INT), no_slots),
        Operation("commit_store", 17, m.CommitStore, (_KEY, _INT, _DATA), False),
        Operation("prepare_retrieve", 18, m.PrepareRetrieve, (_KEY, _INT), refused),
        Operation("commit_retrieve", 19, m.CommitRetrieve, (_KEY, _INT), False),
        Operation("clear", 20, m.Clear, (_BOOL,), None),
        Operation("get_chunk_size", 21, m.GetChunkSize, (), None),
        Operation("ping", 22, m.Ping, (_INSTANCE,), False),
        Operation("report_block_allocation", 23, m.ReportBlockAllocation, (_UNREAD, _UNREAD, _UNREAD), None),
        Operation("noop", 24, m.Noop, (), "OK"),
        Operation("cb_register_rope", 25, None, (), None, answers=False),
        Operation("cb_unregister_rope", 26, None, (), None, answers=False),
        Operation("cb_retrieve_pre_computed", 27, None, (), failed),
        Operation("cb_unified_lookup", 28, None, (), None, answers=False),
        Operation("p2p_lookup_and_lock", 29, None, (), None, answers=False),
        Operation("p2p_query_lookup_results", 30, None, (), None, answers=False),
        Operation("p2p_unlock_objects", 31, None, (), None, answers=False),
        Operation("get_experimental", 32, m.GetExperimental, (), []),
        Operation("cb_protocol_handshake", 33, None, (), None, answers=False),
        Operation("subscribe_kv_events", None, m.SubscribeKVEvents, (_INT, _NAME, _INT, _INT), m.KVEventBatch()),
        Operation("cb_reorder_plan", None, None, (), None, answers=False),
        Operation("server_module_call", None, None, (), None, answers=False),
    )


OPERATIONS: Final = _build()
_BY_WIRE: Final[dict[int | str, Operation]] = {op.name: op for op in OPERATIONS} | {
    op.id: op for op in OPERATIONS if op.id is not None
}
BY_MESSAGE: Final = {op.message: op for op in OPERATIONS if op.message is not None}


def find_operation(frame: bytes) -> Operation | None:
    """The operation an `op` frame names, by id or by name; None if there is no such operation."""
    if len(frame) > limits.NAME:
        return None
    try:
        named = _untyped.decode(frame)
    except _UNREADABLE:
        return None
    return _BY_WIRE.get(named) if type(named) in (int, str) else None


def decode(operation: Operation, payload: Sequence[bytes]) -> m.Message:
    """The message of a request. Raises DecodeError."""
    if operation.message is None:
        raise DecodeError(f"{operation.name} is not served")
    if len(payload) < len(operation.arguments):
        raise DecodeError(f"{operation.name} takes {len(operation.arguments)} arguments, not {len(payload)}")
    values = []
    # NOTE: Further frames are arguments of a newer client, which this version does not need.
    for index, (argument, frame) in enumerate(zip(operation.arguments, payload, strict=False)):
        if len(frame) > argument.limit:
            raise DecodeError(
                f"argument {index} of {operation.name} has {len(frame)} bytes; {argument.limit} are possible"
            )
        try:
            values.append(argument.decode(frame))
        except _UNREADABLE as error:
            raise DecodeError(f"argument {index} of {operation.name}: {error}") from None
    return operation.message(*values)


def encode(message: m.Message) -> list[bytes]:
    """The payload frames of a request; the inverse of `decode`."""
    arguments = BY_MESSAGE[type(message)].arguments
    return [argument.encode(value) for argument, value in zip(arguments, msgspec.structs.astuple(message), strict=True)]
