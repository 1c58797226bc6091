"""KV caches of every arrangement in real shared memory, and what copying their blocks means, block by block."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from engine.layouts import ITEM_BYTES, KVLayout, read_kv_layout
from tests.unit.engine.support import Segment, contiguous, cpu_tensor, extensions, group, packed

MakeSegment = Callable[[int], Segment]


@dataclass(frozen=True)
class Tensor:
    """A tensor in one of several segments; strides and offset in elements."""

    shape: Sequence[int]
    block_dim: int
    stride: Sequence[int] | None = None
    offset: int = 0
    segment: int = 0
    dtype: str = "bfloat16"


@dataclass(frozen=True)
class Arrangement:
    kv_layout: str
    tensors: Sequence[Tensor]
    segment_bytes: int
    groups: Sequence[dict[str, object]] = ()
    """All tensors in blocks of 8 tokens unless it is given."""


def layers(count: int, shape: Sequence[int], block_dim: int = 0, **more: Any) -> list[Tensor]:
    """One tensor for each layer, each in a segment of its own."""
    return [Tensor(shape, block_dim, segment=index, **more) for index in range(count)]


ARRANGEMENTS = {
    "fused, one segment a layer": Arrangement("HND", layers(3, [7, 2, 8, 4]), 1024),
    "fused, tokens first": Arrangement("NHD", layers(2, [7, 8, 2, 4]), 1024),
    "fused, all layers in one segment": Arrangement(
        "HND", [Tensor([7, 2, 8, 4], 0, offset=448 * layer) for layer in range(4)], 4096
    ),
    "fused, layers unevenly apart": Arrangement(
        "HND", [Tensor([7, 2, 8, 4], 0, offset=offset) for offset in (1000, 0, 456, 2000)], 8192
    ),
    "packed, heads first": Arrangement(
        "BLHNC", [Tensor([7, 2, 8, 4], 0, [192, 32, 4, 1], 64 * layer) for layer in range(3)], 4096
    ),
    "packed, tokens first": Arrangement(
        "BLNHC", [Tensor([7, 8, 2, 4], 0, [192, 8, 4, 1], 64 * layer) for layer in range(3)], 4096
    ),
    "padded blocks": Arrangement("HND", layers(2, [7, 2, 8, 4], stride=[75, 32, 4, 1]), 2048),
    "K and V outside": Arrangement("NHD", layers(2, [2, 7, 8, 2, 4], 1), 2048),
    "K and V outside, layers in one segment": Arrangement(
        "HND", [Tensor([2, 7, 2, 8, 4], 1, offset=896 * layer) for layer in range(3)], 8192
    ),
    "K and V outside, V of all layers behind K of all": Arrangement(
        "HND", [Tensor([2, 7, 2, 8, 4], 1, [1500, 64, 32, 4, 1], 448 * layer) for layer in range(3)], 8192
    ),
    "K and V inside": Arrangement("NHD", layers(2, [7, 2, 8, 2, 4]), 2048),
    "MLA": Arrangement("NHD", layers(2, [7, 8, 6]), 1024),
    "MLA with scales, odd sizes": Arrangement("NHD", layers(2, [7, 8, 133], dtype="uint8"), 8192),
    "RBLN": Arrangement("HND", layers(2, [2, 7, 2, 1, 8, 4], 1), 2048),
    "all layers in one tensor": Arrangement("NHD", [Tensor([7, 3, 2, 8, 2, 4], 0)], 8192),
    "32-bit": Arrangement("HND", layers(2, [7, 2, 8, 4], dtype="float32"), 2048),
    "single bytes": Arrangement("NHD", [Tensor([40, 1, 5], 0, offset=3, dtype="uint8")], 256, [group([0], 1)]),
    "items of 2 bytes": Arrangement("NHD", [Tensor([7, 8, 1], 0, offset=1)], 256),
    "items of 4 bytes": Arrangement("NHD", [Tensor([7, 8, 1], 0, offset=1, dtype="float32")], 256),
    "items of 8 bytes": Arrangement("NHD", [Tensor([7, 8, 3], 0, offset=4)], 512),
    "blocks of odd size in the midst of an object": Arrangement(
        "NHD", [Tensor([7, 1, 5], 0, dtype="uint8"), Tensor([7, 8, 8], 0, segment=1)], 1024
    ),
    "two groups": Arrangement(
        "HND",
        [*layers(2, [7, 2, 8, 4]), Tensor([5, 16, 3], 0, segment=2, dtype="uint8"), Tensor([7, 2, 8, 4], 0, segment=3)],
        1024,
        [group([3, 0, 1]), group([2], 16, 1)],
    ),
}
"""Of 7 blocks of 8 tokens where nothing else is said. They begin and end anywhere in their segments."""


class KVCache:
    """One arrangement in memory."""

    def __init__(self, arrangement: Arrangement, make_segment: MakeSegment, chunk_size: int = 16) -> None:
        self.tensors = arrangement.tensors
        self.groups = arrangement.groups or [group(range(len(self.tensors)))]
        self.segments = [
            make_segment(arrangement.segment_bytes) for _ in range(1 + max(tensor.segment for tensor in self.tensors))
        ]
        bodies = [
            cpu_tensor(
                tensor.shape,
                tensor.stride,
                tensor.offset,
                shm_name=self.segments[tensor.segment].name,
                nbytes=arrangement.segment_bytes,
                dtype=tensor.dtype,
            )
            for tensor in self.tensors
        ]
        self.kv_caches = extensions(bodies)
        self.layout: KVLayout = read_kv_layout(
            self.kv_caches, packed({"kv_layout": arrangement.kv_layout}), packed(self.groups), chunk_size
        )
        self._chunk_size = chunk_size

    def contents(self) -> list[np.ndarray]:
        """A copy of all segments."""
        return [np.array(segment.bytes) for segment in self.segments]

    def object_of(self, contents: list[np.ndarray], block_ids: Sequence[Sequence[int]], chunk: int) -> bytes:
        """The bytes of one chunk: group after group, layer after layer, plane after plane, block after block."""
        return b"".join(block.tobytes() for block in self._blocks(contents, block_ids, chunk))

    def put(
        self,
        contents: list[np.ndarray],
        block_ids: Sequence[Sequence[int]],
        chunk: int,
        object_bytes: bytes,
        skip_tokens: int = 0,
    ) -> None:
        """Writes an object into its blocks in `contents`, except block 0 and the range's first `skip_tokens`."""
        position = 0
        for index, block in enumerate(self._blocks(contents, block_ids, chunk)):
            size = block.nbytes
            piece = np.frombuffer(object_bytes[position : position + size], block.dtype).reshape(block.shape)
            block_id, first_token = self._where(block_ids, chunk)[index]
            if block_id != 0 and first_token >= skip_tokens:
                block[...] = piece
            position += size
        assert position == len(object_bytes)

    def _blocks(self, contents: list[np.ndarray], block_ids: Sequence[Sequence[int]], chunk: int) -> list[np.ndarray]:
        """Views of all blocks of one chunk, in the order of the object."""
        found = []
        for ids, info in zip(block_ids, self.groups, strict=True):
            for index in info["layer_indices"]:  # type: ignore[attr-defined]
                view = self._view(contents, self.tensors[index])
                planes = view if self.tensors[index].block_dim else view[None]
                found += [plane[block] for plane in planes for block in self._of_chunk(ids, info, chunk)]
        return found

    def _where(self, block_ids: Sequence[Sequence[int]], chunk: int) -> list[tuple[int, int]]:
        """Of each of `_blocks`: its id, and the position of its first token in the range."""
        found = []
        for ids, info in zip(block_ids, self.groups, strict=True):
            tokens: int = info["tokens_per_block"]  # type: ignore[assignment]
            starts = range(chunk * self._chunk_size, (chunk + 1) * self._chunk_size, tokens)
            for index in info["layer_indices"]:  # type: ignore[attr-defined]
                planes = 2 if self.tensors[index].block_dim else 1
                found += list(zip(self._of_chunk(ids, info, chunk), starts, strict=True)) * planes
        return found

    def _of_chunk(self, ids: Sequence[int], info: dict[str, Any], chunk: int) -> Sequence[int]:
        count = self._chunk_size // int(info["tokens_per_block"])
        return ids[chunk * count : (chunk + 1) * count]

    @staticmethod
    def _view(contents: list[np.ndarray], tensor: Tensor) -> np.ndarray:
        item = ITEM_BYTES[tensor.dtype]
        stride = contiguous(tensor.shape) if tensor.stride is None else tensor.stride
        memory = contents[tensor.segment].view({1: np.uint8, 2: np.uint16, 4: np.uint32}[item])[tensor.offset :]
        return np.lib.stride_tricks.as_strided(memory, tensor.shape, [step * item for step in stride])
