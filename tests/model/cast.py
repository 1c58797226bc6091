"""Who takes part: workers of several models in both transfer modes, and how their KV caches are laid out."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import msgspec

from engine.layouts import EngineDrivenPayload, read_kv_layout, slot_layout

CHUNK = 8
"""Tokens per chunk."""
NUM_BLOCKS = 24
"""Blocks of each group of a simulated KV cache; block 0 is vLLM's null block."""


@dataclass(frozen=True)
class Group:
    """`layers` tensors of `planes` x NUM_BLOCKS blocks."""

    layers: int
    planes: int
    tokens_per_block: int
    block_bytes: int

    @property
    def blocks_per_chunk(self) -> int:
        return CHUNK // self.tokens_per_block

    @property
    def shape(self) -> list[int]:
        """As a tensor of one head, with the heads before the tokens."""
        inner = [1, self.tokens_per_block, self.block_bytes // self.tokens_per_block]
        return [2, NUM_BLOCKS, *inner] if self.planes == 2 else [NUM_BLOCKS, *inner]


@dataclass(frozen=True)
class ServerCopies:
    """The KV cache of a worker whose blocks the server copies."""

    name: str
    groups: tuple[Group, ...]

    @property
    def object_bytes(self) -> int:
        return sum(x.blocks_per_chunk * x.layers * x.planes * x.block_bytes for x in self.groups)

    def frames(self, instance_id: int) -> tuple[bytes, bytes, bytes]:
        """`kv_caches`, `layout_hints` and `engine_group_infos` of the registration."""
        sizes = [(group, prod(group.shape)) for group in self.groups for _ in range(group.layers)]
        total = sum(size for _, size in sizes)
        tensors, infos, offset = [], [], 0
        for group, size in sizes:
            strides = [prod(group.shape[axis + 1 :]) for axis in range(len(group.shape))]
            metadata = {"dtype": "uint8", "shape": group.shape, "stride": strides, "storage_offset": offset}
            tensor = {"type": "cpu_shm", "version": 1, "shm_name": f"/kv_{instance_id}", "nbytes": total}
            tensors.append(msgspec.msgpack.Ext(1, msgspec.msgpack.encode(tensor | {"metadata": metadata})))
            offset += size
        layer = 0
        for index, group in enumerate(self.groups):
            indices = list(range(layer, layer + group.layers))
            layer += group.layers
            infos.append(
                {"engine_group_id": index, "layer_indices": indices, "tokens_per_block": group.tokens_per_block}
            )
        encode = msgspec.msgpack.encode
        return encode(tensors), encode({"kv_layout": "HND"}), encode(infos)

    def fingerprint(self) -> bytes:
        return read_kv_layout(*self.frames(0), CHUNK).fingerprint


@dataclass(frozen=True)
class EngineCopies:
    """The chunk objects of a worker that copies by itself."""

    name: str
    num_layers: int
    hidden: int
    use_mla: bool

    @property
    def object_bytes(self) -> int:
        return (1 if self.use_mla else 2) * self.num_layers * CHUNK * self.hidden

    def payload(self, instance_id: int, model: str, world_size: int) -> bytes:
        fields = (instance_id, model, world_size, 2, self.num_layers, self.hidden, "uint8", self.use_mla, CHUNK)
        return msgspec.msgpack.encode(EngineDrivenPayload(*fields))

    def fingerprint(self) -> bytes:
        payload = msgspec.msgpack.decode(self.payload(0, "", 1), type=EngineDrivenPayload)
        return slot_layout(payload, CHUNK).fingerprint


Shape = ServerCopies | EngineCopies


@dataclass(frozen=True)
class Role:
    """One worker, and the scheduler whose requests it serves."""

    instance_id: int
    scheduler: bytes
    model: str
    world_size: int
    shard: int
    readers: int
    shape: Shape
    other_shape: Shape
    """What it may register instead, some other time."""

    @property
    def pair(self) -> tuple[str, int]:
        return self.model, self.world_size


_SMALL = ServerCopies("small", (Group(2, 1, 4, 8),))
_PLANES = ServerCopies("two planes", (Group(1, 2, 8, 16),))
_GROUPS = ServerCopies("two groups, two pages", (Group(1, 1, 4, 2048), Group(1, 2, 8, 512)))
_SLOTS = EngineCopies("slots", 2, 4, True)
_WIDE_SLOTS = EngineCopies("wide slots, two pages", 2, 160, False)

A, B = b"scheduler A", b"scheduler B"

DENSE = (Role(11, A, "dense", 1, 0, 1, _SMALL, _PLANES), Role(12, B, "dense", 1, 0, 1, _SMALL, _SLOTS))
MIXED = (Role(13, A, "dense", 1, 0, 1, _SLOTS, _WIDE_SLOTS), *DENSE)
PARALLEL = (Role(21, A, "tp", 2, 0, 1, _GROUPS, _SMALL), Role(22, A, "tp", 2, 1, 1, _GROUPS, _SMALL))
LATENT = (Role(31, B, "mla", 1, 0, 2, _SLOTS, _WIDE_SLOTS), Role(32, B, "mla", 1, 0, 2, _SLOTS, _PLANES))
LENDING = (Role(41, A, "cpu", 2, 0, 1, _WIDE_SLOTS, _SLOTS), Role(42, A, "cpu", 2, 1, 1, _WIDE_SLOTS, _SLOTS))
CASTS = (DENSE, MIXED, PARALLEL, LATENT, LENDING, MIXED + PARALLEL + LATENT)
