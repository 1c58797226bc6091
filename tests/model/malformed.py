"""Requests that do not fit, one per way of being wrong. Each has to get its failure value and to change nothing."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
from msgspec.structs import replace

from engine.wire import messages as m
from engine.wire.codec import BY_MESSAGE, encode_value
from tests.model.cast import CHUNK, NUM_BLOCKS, EngineCopies, ServerCopies
from tests.model.parties import Request, Worker
from tests.model.world import World

STRANGER = 999
"""An instance id that nobody has."""


def _tokens(value: object) -> msgspec.Raw:
    return msgspec.Raw(msgspec.msgpack.encode(value))


KEYS: dict[str, Callable[[m.Key], m.Key]] = {
    "start within a chunk": lambda key: replace(key, start=1),
    "negative start": lambda key: replace(key, start=-CHUNK),
    "end within a chunk": lambda key: replace(key, end=key.end - 1),
    "end before start": lambda key: replace(key, start=key.end + CHUNK),
    "end beyond the tokens": lambda key: replace(key, end=key.end + CHUNK),
    "huge end": lambda key: replace(key, end=1 << 62),
    "no shard": lambda key: replace(key, worker_id=None),
    "negative shard": lambda key: replace(key, worker_id=-1),
    "too many shards": lambda key: replace(key, worker_id=key.world_size),
    "another model": lambda key: replace(key, model_name="nobody's"),
    "another world": lambda key: replace(key, world_size=key.world_size + 1),
    "empty world": lambda key: replace(key, world_size=0),
    "forbidden salt": lambda key: replace(key, cache_salt="a@b"),
    "long salt": lambda key: replace(key, cache_salt="s" * 129),
    "tokens that are text": lambda key: replace(key, token_ids=_tokens(["a"] * key.end)),
    "tokens that are fractions": lambda key: replace(key, token_ids=_tokens([1.5] * key.end)),
    "tokens that are lists": lambda key: replace(key, token_ids=_tokens([[1]] * key.end)),
    "negative tokens": lambda key: replace(key, token_ids=_tokens([-1] * key.end)),
    "far negative tokens": lambda key: replace(key, token_ids=_tokens([-40000] * key.end)),
    "huge tokens": lambda key: replace(key, token_ids=_tokens([1 << 32] * key.end)),
    "one huge token": lambda key: replace(key, token_ids=_tokens([1] * (key.end - 1) + [1 << 40])),
    "no list of tokens": lambda key: replace(key, token_ids=_tokens({"a": 1})),
    "tokens that are nil": lambda key: replace(key, token_ids=m.NIL),
}

BLOCKS: dict[str, Callable[[list[list[int]]], list[list[int]]]] = {
    "too few block ids": lambda ids: [ids[0][:-1], *ids[1:]],
    "too many block ids": lambda ids: [*ids[:-1], [*ids[-1], 1]],
    "no block ids": lambda ids: [[] for _ in ids],
    "a list too few": lambda ids: ids[:-1],
    "a list too many": lambda ids: [*ids, ids[0]],
    "a block beyond the last": lambda ids: [*ids[:-1], [*ids[-1][:-1], NUM_BLOCKS]],
    "a negative block": lambda ids: [[-1, *ids[0][1:]], *ids[1:]],
}

SCHEDULER_KEYS = ("forbidden salt", "long salt", "tokens that are nil", "no list of tokens", "huge tokens")
"""What is wrong for a lookup too; it rounds ranges, and takes any model for one without workers."""


def refuse_key(world: World, worker: Worker, request: Request, wrong: str) -> None:
    """Every operation with a worker's key refuses this one."""
    key = KEYS[wrong](worker.key(request, 0, request.end))
    ids = _block_ids(worker, request.chunks)
    instance_id = worker.role.instance_id
    for message in (
        m.Store(key, instance_id, ids, b""),
        m.Retrieve(key, instance_id, ids, b"", 0),
        m.PrepareStore(key, instance_id),
        m.CommitStore(key, instance_id, b""),
        m.PrepareRetrieve(key, instance_id),
        m.CommitRetrieve(key, instance_id),
    ):
        _refused(world, worker, message)


def refuse_blocks(world: World, worker: Worker, request: Request, wrong: str) -> None:
    if worker.registration is None or not isinstance(worker.registration.shape, ServerCopies):
        return
    key = worker.key(request, 0, request.end)
    ids = BLOCKS[wrong](_block_ids(worker, request.chunks))
    _refused(world, worker, m.Store(key, worker.role.instance_id, ids, b""))
    _refused(world, worker, m.Retrieve(key, worker.role.instance_id, ids, b"", 0))


def refuse_others(world: World, worker: Worker, request: Request) -> None:
    """A stranger, a worker that registered for the other transfer mode, a negative skip, bytes instead of a slot."""
    key = worker.key(request, 0, request.end)
    ids = _block_ids(worker, request.chunks)
    shape = worker.registration.shape if worker.registration is not None else None
    server_copies = [STRANGER] if isinstance(shape, ServerCopies) else [STRANGER, worker.role.instance_id]
    engine_copies = [STRANGER] if isinstance(shape, EngineCopies) else [STRANGER, worker.role.instance_id]
    for instance_id in server_copies:
        _refused(world, worker, m.Store(key, instance_id, ids, b""))
        _refused(world, worker, m.Retrieve(key, instance_id, ids, b"", 0))
    for instance_id in engine_copies:
        _refused(world, worker, m.PrepareStore(key, instance_id))
        _refused(world, worker, m.CommitStore(key, instance_id, b""))
        _refused(world, worker, m.PrepareRetrieve(key, instance_id))
        _refused(world, worker, m.CommitRetrieve(key, instance_id))
    _refused(world, worker, m.Retrieve(key, worker.role.instance_id, ids, b"", -1))
    _refused(world, worker, m.RegisterEngineDriven(b"\xc0"))


def refuse_scheduler(world: World, worker: Worker, request: Request, wrong: str) -> None:
    """A lookup that cannot be understood finds nothing; freeing with such a key frees nothing."""
    key = KEYS[wrong](request.key(worker.role, 0, request.end, None))
    _refused(world, worker, m.FreeLookupLocks(key, b""), client=worker.role.scheduler)


def _block_ids(worker: Worker, chunks: int) -> list[list[int]]:
    shape = worker.registration.shape if worker.registration is not None else None
    if not isinstance(shape, ServerCopies):
        return [[1] * chunks]
    return [[1] * chunks * group.blocks_per_chunk for group in shape.groups]


def _refused(world: World, worker: Worker, message: m.Message, client: bytes | None = None) -> None:
    if client is None and getattr(message, "instance_id", None) == worker.role.instance_id:
        world.seen(worker)
    before = world.state()
    reply = world.ask(client or worker.client, message)
    failure = BY_MESSAGE[type(message)].failure
    assert encode_value(reply) == encode_value(failure), f"{message} is answered {reply}"
    assert world.state() == before, f"{message} has changed something"
