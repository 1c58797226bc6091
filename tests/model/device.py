"""Simulated memory of one worker: the blocks of its layers, and which of them are in use."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from random import Random
from typing import Literal

import numpy as np

from tests.model.cast import NUM_BLOCKS, ServerCopies

BlockIds = list[list[int]]
"""Per group, the ids of a whole range of chunks."""


@dataclass(frozen=True)
class Null:
    """Where a list of block ids names the null block: in a chunk, of all groups or only of the first one."""

    chunk: int
    extent: Literal["chunk", "one group", "one block"]


class Device:
    """The KV cache of one worker. Copies go block by block, as simply as possible."""

    def __init__(self, shape: ServerCopies, random: Random) -> None:
        self.shape = shape
        self._random = random
        self._busy: list[set[int]] = [set() for _ in shape.groups]
        shapes = [(group.layers, group.planes, NUM_BLOCKS, group.block_bytes) for group in shape.groups]
        self._layers = [np.frombuffer(bytearray(random.randbytes(prod(x))), np.uint8).reshape(x) for x in shapes]
        self._expected = [layers.copy() for layers in self._layers]
        """What the blocks should contain."""

    def take_blocks(self, chunks: int, null: Null | None = None) -> BlockIds | None:
        """Fresh blocks with random content for so many chunks; None if too few are free."""
        taken: BlockIds = []
        for group, busy in zip(self.shape.groups, self._busy, strict=True):
            free = [block for block in range(1, NUM_BLOCKS) if block not in busy]
            needed = chunks * group.blocks_per_chunk
            if len(free) < needed:
                self.give_blocks(taken)
                return None
            ids = self._random.sample(free, needed)
            busy.update(ids)
            taken.append(ids)
        self.scribble(taken)
        if null is not None:
            self._nullify(taken, null)
        return taken

    def give_blocks(self, ids: BlockIds) -> None:
        """The engine may use these blocks for something else, and does at once."""
        self.scribble(ids)
        for busy, group_ids in zip(self._busy, ids, strict=False):
            busy.difference_update(group_ids)

    def scribble(self, ids: BlockIds) -> None:
        """Nobody ever writes the null block."""
        for layers, expected, group_ids in zip(self._layers, self._expected, ids, strict=False):
            for block in sorted(set(group_ids) - {0}):
                part = layers[:, :, block]
                part[:] = np.frombuffer(self._random.randbytes(part.size), np.uint8).reshape(part.shape)
                expected[:, :, block] = part

    def check_retrieved(self, ids: BlockIds, skip_tokens: int, objects: list[bytes]) -> None:
        """These objects are in these blocks, and no other block was written since the last check."""
        for chunk, data in enumerate(objects):
            scatter(self.shape, self._expected, ids, chunk, data, skip_tokens)
        self._check("a retrieve has not written what it should, or something else")

    def check_untouched(self) -> None:
        """No block was written since the last check."""
        self._check("blocks were written that belong to somebody else by now")

    def check_spoilt(self, ids: BlockIds, skip_tokens: int, chunks: int) -> None:
        """A failed retrieve may have left anything in the blocks that it was to write, and nothing elsewhere."""
        for chunk in range(chunks):
            scatter(self.shape, self._expected, ids, chunk, self.gather(ids, chunk), skip_tokens)
        self._check("a failed retrieve has written where it must not")

    def _check(self, otherwise: str) -> None:
        pairs = zip(self._layers, self._expected, strict=True)
        assert all(np.array_equal(layers, expected) for layers, expected in pairs), otherwise

    def gather(self, ids: BlockIds, chunk: int) -> bytes:
        """One chunk's object: group after group, layer after layer, plane after plane, block after block."""
        parts = []
        for group, layers, group_ids in zip(self.shape.groups, self._layers, ids, strict=True):
            blocks = group_ids[chunk * group.blocks_per_chunk : (chunk + 1) * group.blocks_per_chunk]
            parts.append(layers[:, :, blocks].tobytes())
        return b"".join(parts)

    def scatter(self, ids: BlockIds, chunk: int, data: bytes, skip_tokens: int) -> None:
        """The inverse, without the blocks of the range's first `skip_tokens` tokens and without the null block."""
        scatter(self.shape, self._layers, ids, chunk, data, skip_tokens)

    def _nullify(self, ids: BlockIds, null: Null) -> None:
        for group, busy, group_ids in zip(self.shape.groups, self._busy, ids, strict=True):
            first = null.chunk * group.blocks_per_chunk
            for position in range(first, first + (1 if null.extent == "one block" else group.blocks_per_chunk)):
                busy.discard(group_ids[position])
                group_ids[position] = 0
            if null.extent != "chunk":
                return


def scatter(
    shape: ServerCopies, layers: list[np.ndarray], ids: BlockIds, chunk: int, data: bytes, skip_tokens: int
) -> None:
    """Puts one chunk's object into the layers, or into an image of them."""
    start = 0
    for group, arrays, group_ids in zip(shape.groups, layers, ids, strict=True):
        per_chunk = group.blocks_per_chunk
        size = per_chunk * group.layers * group.planes * group.block_bytes
        part = np.frombuffer(data, np.uint8, size, start)
        part = part.reshape(group.layers, group.planes, per_chunk, group.block_bytes)
        start += size
        for place in range(per_chunk):
            position = chunk * per_chunk + place
            if group_ids[position] != 0 and (position + 1) * group.tokens_per_block > skip_tokens:
                arrays[:, :, group_ids[position]] = part[:, :, place]


def null_chunks(shape: ServerCopies, ids: BlockIds) -> set[int]:
    """Chunks of which some group has nothing but null blocks."""
    return {
        chunk
        for group, group_ids in zip(shape.groups, ids, strict=True)
        for chunk in range(len(group_ids) // group.blocks_per_chunk)
        if not any(group_ids[chunk * group.blocks_per_chunk : (chunk + 1) * group.blocks_per_chunk])
    }
