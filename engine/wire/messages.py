"""What clients ask, one class per operation, with the arguments in the order of their frames.

Arguments that only matter to a part of the engine (descriptors, group infos) stay encoded here and are read where they
are used: a registration that cannot be understood must still be answered, and remembered as broken.
"""

from __future__ import annotations

from typing import ClassVar, Final

import msgspec

NIL = msgspec.Raw(b"\xc0")


class Pending:
    """Type of `PENDING`."""


PENDING: Final = Pending()
"""The value nil: there is no result yet, ask again."""


class Key(msgspec.Struct, frozen=True):
    """Which chunks of which prompt, for which shard. `token_ids` stays a msgpack array: see `engine.hashing`."""

    model_name: str
    world_size: int
    worker_id: int | None
    token_ids: msgspec.Raw
    start: int
    end: int
    request_id: str
    cache_salt: str = ""
    request_configs: msgspec.Raw = NIL
    num_kv_readers: int = 0


class Message(msgspec.Struct, frozen=True):
    """A decoded request. Its fields are the payload frames, in order."""


class GetChunkSize(Message, frozen=True):
    pass


class GetExperimental(Message, frozen=True):
    pass


class Noop(Message, frozen=True):
    pass


class Ping(Message, frozen=True):
    instance_id: int | None


class RegisterKVCache(Message, frozen=True):
    """`kv_caches`, `layout_hints` and `engine_group_infos` are msgpack; `engine.layouts` reads them."""

    instance_id: int
    kv_caches: bytes
    model_name: str
    world_size: int
    engine_type: bytes
    layout_hints: bytes
    engine_group_infos: bytes


class UnregisterKVCache(Message, frozen=True):
    instance_id: int


class Lookup(Message, frozen=True):
    key: Key
    tp_size: bytes


class QueryPrefetchStatus(Message, frozen=True):
    request_id: str


class WaitPrefetchStatus(Message, frozen=True):
    request_id: str
    timeout: float


class FreeLookupLocks(Message, frozen=True):
    key: Key
    tp_size: bytes


class EndSession(Message, frozen=True):
    request_id: str


class Store(Message, frozen=True):
    key: Key
    instance_id: int
    block_ids: list[list[int]]
    event_handle: bytes


class Retrieve(Message, frozen=True):
    key: Key
    instance_id: int
    block_ids: list[list[int]]
    event_handle: bytes
    skip_first_n_tokens: int


class ReportBlockAllocation(Message, frozen=True):
    instance_id: bytes
    model_name: bytes
    records: bytes


class Clear(Message, frozen=True):
    force: bool


class RegisterEngineDriven(Message, frozen=True):
    """`payload` is msgpack of an `engine.layouts.EngineDrivenPayload`."""

    payload: bytes


class UnregisterEngineDriven(Message, frozen=True):
    instance_id: int


class PrepareStore(Message, frozen=True):
    key: Key
    instance_id: int


class CommitStore(Message, frozen=True):
    key: Key
    instance_id: int
    data: bytes


class PrepareRetrieve(Message, frozen=True):
    key: Key
    instance_id: int


class CommitRetrieve(Message, frozen=True):
    key: Key
    instance_id: int


class SubscribeKVEvents(Message, frozen=True):
    instance_id: int
    model_name: str
    cursor: int
    max_events: int


class Slot(msgspec.Struct, frozen=True):
    """A piece of the shared-memory pool lent to a worker; offset and length in bytes."""

    offset: int
    length: int
    shape: tuple[int, ...]
    dtype: str


class StoreSlots(msgspec.Struct, frozen=True):
    """Slots to fill, and the position of each one's chunk within the range that was asked for."""

    slots: list[Slot] = []
    chunk_indices: list[int] = []


class PrepareStoreReply(msgspec.Struct, frozen=True):
    context: StoreSlots = StoreSlots()


class RetrieveSlots(msgspec.Struct, frozen=True, omit_defaults=True):
    """One slot for each chunk of the range, in order; left out altogether when the retrieve fails."""

    slots: list[Slot] | None = None


class PrepareRetrieveReply(msgspec.Struct, frozen=True):
    success: bool
    data: bytes = b""
    context: RetrieveSlots = RetrieveSlots()


class RegisterEngineDrivenReply(msgspec.Struct, frozen=True):
    """The pool to map: its name without a slash, and its size in bytes."""

    shm_name: str = ""
    pool_size: int = 0


class KVEventBatch(msgspec.Struct, frozen=True):
    """Announces nothing: `enabled` false tells the client to fall back to its own bookkeeping."""

    enabled: bool = False
    incarnation: int = 0
    next_cursor: int = 0
    lost: bool = False
    events: list[msgspec.Raw] = []


class TransferReply(msgspec.Struct, frozen=True, array_like=True):
    """Outcome of a store or retrieve that the server copied. The empty handle says that no device work is pending."""

    event_handle: bytes
    ok: bool

    DONE: ClassVar[TransferReply]
    FAILED: ClassVar[TransferReply]


TransferReply.DONE = TransferReply(b"", True)
TransferReply.FAILED = TransferReply(b"", False)
