"""Who takes part, what they ask for, and which bytes every object has."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from hashlib import shake_128
from struct import pack

import msgspec

from engine.hashing import hash_tokens
from engine.keys import namespace
from engine.layouts import EngineDrivenPayload, read_kv_layout, slot_layout
from engine.wire import messages as m
from tests.unit.engine.support import cpu_tensor, register, register_engine_driven

CHUNK = 16
BLOCK_TOKENS = 8
BLOCKS_PER_CHUNK = CHUNK // BLOCK_TOKENS
MOST_CHUNKS = 16
SALTS = ("", "team-a", "team-b")
ITEM_BYTES = 2
"""Of bfloat16."""


@dataclass(frozen=True)
class ServerCopies:
    """A KV cache whose blocks the server copies: tensors of so many blocks, layer behind layer in one segment."""

    name: str
    layers: int
    content: int
    num_blocks: int = 1 + 4 * MOST_CHUNKS * BLOCKS_PER_CHUNK

    @property
    def block_bytes(self) -> int:
        return 2 * BLOCK_TOKENS * self.content * ITEM_BYTES

    @property
    def layer_bytes(self) -> int:
        return self.num_blocks * self.block_bytes

    @property
    def object_bytes(self) -> int:
        return self.layers * BLOCKS_PER_CHUNK * self.block_bytes

    def registration(self, instance_id: int, model: str, world_size: int, segment: str) -> m.RegisterKVCache:
        shape, nbytes = [self.num_blocks, 2, BLOCK_TOKENS, self.content], self.layers * self.layer_bytes
        tensors = [
            cpu_tensor(shape, offset=layer * self.layer_bytes // ITEM_BYTES, shm_name=segment, nbytes=nbytes)
            for layer in range(self.layers)
        ]
        return register(instance_id, tensors, model_name=model, world_size=world_size)

    def fingerprint(self) -> bytes:
        asked = self.registration(0, "", 1, "/any")
        return read_kv_layout(asked.kv_caches, asked.layout_hints, asked.engine_group_infos, CHUNK).fingerprint


@dataclass(frozen=True)
class EngineCopies:
    """Objects that the worker copies itself, in slots of the shared pool."""

    name: str
    layers: int
    hidden: int

    @property
    def shape(self) -> list[int]:
        return [self.layers, CHUNK, self.hidden]

    @property
    def object_bytes(self) -> int:
        return self.layers * CHUNK * self.hidden * ITEM_BYTES

    def registration(self, instance_id: int, model: str, world_size: int) -> m.RegisterEngineDriven:
        sizes = {"num_layers": self.layers, "hidden_dim_size": self.hidden, "num_physical_slots": CHUNK}
        return register_engine_driven(instance_id, model_name=model, world_size=world_size, **sizes)

    def fingerprint(self) -> bytes:
        payload = msgspec.msgpack.decode(self.registration(0, "", 1).payload, type=EngineDrivenPayload)
        return slot_layout(payload, CHUNK).fingerprint


Layout = ServerCopies | EngineCopies


@dataclass(frozen=True)
class Model:
    """An engine's model. Each engine has a worker for every shard under every layout."""

    name: str
    world_size: int
    layouts: tuple[Layout, ...]


MODELS = (
    Model("copied", 1, (ServerCopies("copied", 2, 32),)),
    Model("lent", 1, (EngineCopies("lent", 2, 64),)),
    Model("copied-tp2", 2, (ServerCopies("copied-tp2", 3, 32),)),
    Model("lent-tp2", 2, (EngineCopies("lent-tp2", 3, 96),)),
    # A chunk of it is a hit only if it is there under both layouts.
    Model("both", 1, (ServerCopies("both-copied", 1, 32), EngineCopies("both-lent", 1, 32))),
)
"""Objects of 1 to 9 KiB, which occupy 1 to 3 pages."""

Tokens = tuple[int, ...]


@dataclass(frozen=True)
class Identity:
    """One object: `tokens` are those of its chunk and of all before it."""

    model: str
    shard: int
    layout: str
    salt: str
    tokens: Tokens

    def __str__(self) -> str:
        chunk = len(self.tokens) // CHUNK - 1
        return (
            f"chunk {chunk} ({self.tokens[-CHUNK]}...) of {self.model}/{self.layout} shard {self.shard} {self.salt!r}"
        )


@lru_cache(maxsize=8192)
def pattern(identity: Identity, size: int) -> bytes:
    """The object's bytes. Any two objects differ in every few bytes."""
    return fresh_pattern(identity, size)


def fresh_pattern(identity: Identity, size: int) -> bytes:
    """The same, not remembered."""
    what = f"{identity.model}/{identity.shard}/{identity.layout}/{identity.salt}/".encode()
    return shake_128(what + pack(f">{len(identity.tokens)}I", *identity.tokens)).digest(size)


def prompts(seed: int) -> list[Tokens]:
    """Conversations that share system prompts, each as long as it was at each of its turns; the popular ones first."""
    dice = random.Random(seed)
    found: list[Tokens] = []
    for _ in range(4):
        system = _tokens(dice, dice.randint(1, 3))
        for _ in range(10):
            prompt = system
            for _ in range(dice.randint(1, 4)):
                prompt = (*prompt, *_tokens(dice, dice.randint(1, 4)))[: MOST_CHUNKS * CHUNK]
                found.append(prompt)
    dice.shuffle(found)
    return found


def _tokens(dice: random.Random, chunks: int) -> Tokens:
    return tuple(dice.randrange(1 << dice.choice((7, 16, 17, 32))) for _ in range(chunks * CHUNK))


def identities(seed: int) -> Iterator[tuple[Identity, Model, Layout]]:
    """Every object that there can be."""
    tokens = {prompt[:end] for prompt in prompts(seed) for end in range(CHUNK, len(prompt) + 1, CHUNK)}
    for model in MODELS:
        for layout in model.layouts:
            for shard in range(model.world_size):
                for salt in SALTS:
                    for chunk in tokens:
                        yield Identity(model.name, shard, layout.name, salt, chunk), model, layout


def keys(seed: int) -> dict[bytes, tuple[Identity, int]]:
    """By its key in the cache: every object that there can be, and its size."""
    hashes = {tokens: hash_tokens(tokens, CHUNK)[-1] for tokens in {each.tokens for each, _, _ in identities(seed)}}
    prints = {layout.name: layout.fingerprint() for model in MODELS for layout in model.layouts}
    found = {}
    for each, model, layout in identities(seed):
        space = namespace(model.name, model.world_size, each.shard, prints[layout.name], each.salt)
        found[space.prefix + hashes[each.tokens]] = each, layout.object_bytes
    return found


def difference(found: bytes, expected: bytes, seed: int) -> str:
    """Where bytes differ first, and whose they are if they are those of another object at the same place."""
    offset = next(index for index, (one, other) in enumerate(zip(found, expected, strict=True)) if one != other)
    seen = bytes(found[offset : offset + 16])
    for each, _, layout in identities(seed):
        if layout.object_bytes > offset and fresh_pattern(each, layout.object_bytes)[offset : offset + 16] == seen:
            return f"from byte {offset} of {len(found)} on it has those of {each}"
    return f"from byte {offset} of {len(found)} on it has {seen!r}"
