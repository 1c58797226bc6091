"""KV caches of an engine: tensors in the layouts engines use, filled with random bytes, read back block by block."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import torch

_seeds = itertools.count(1)

BLOCK_SIZE = 16
CHUNK = 2 * BLOCK_SIZE
"""Tokens of a chunk on the servers of this suite: small, so that a prompt of a few chunks needs few blocks."""


@dataclass(frozen=True)
class Layout:
    """How one layer's tensor is laid out. ``shape`` gives every dimension; ``block_dim`` says which counts blocks."""

    name: str
    shape: tuple[int, ...]
    block_dim: int = 0
    dtype: torch.dtype = torch.bfloat16
    layers: int = 3
    hint: str | None = "HND"
    one_storage: bool = True
    block_size: int = BLOCK_SIZE

    @property
    def num_blocks(self) -> int:
        return self.shape[self.block_dim]

    @property
    def hints(self) -> dict[str, str]:
        return {} if self.hint is None else {"kv_layout": self.hint}

    def allocate(self) -> dict[str, torch.Tensor]:
        """Zeroed tensors by layer name, in layer order."""
        if self.one_storage:
            tensors = list(torch.zeros((self.layers, *self.shape), dtype=self.dtype))
        else:
            tensors = [torch.zeros(self.shape, dtype=self.dtype) for _ in range(self.layers)]
        return {f"layer.{index}": tensor for index, tensor in enumerate(tensors)}

    def with_blocks(self, count: int) -> Layout:
        """The same layout with another number of blocks."""
        shape = (*self.shape[: self.block_dim], count, *self.shape[self.block_dim + 1 :])
        return replace(self, shape=shape)


NUM_BLOCKS = 48
HEADS = 2
HEAD_SIZE = 8

FUSED_HND = Layout("fused-hnd", (NUM_BLOCKS, HEADS, BLOCK_SIZE, 2 * HEAD_SIZE))
FUSED_NHD = Layout("fused-nhd", (NUM_BLOCKS, BLOCK_SIZE, HEADS, 2 * HEAD_SIZE), hint="NHD", dtype=torch.float16)
SPLIT_NHD = Layout(
    "split-nhd", (2, NUM_BLOCKS, BLOCK_SIZE, HEADS, HEAD_SIZE), 1, torch.float32, hint="NHD", one_storage=False
)
SPLIT_HND = Layout("split-hnd", (2, NUM_BLOCKS, HEADS, BLOCK_SIZE, HEAD_SIZE), 1, one_storage=False)
INTERLEAVED_NHD = Layout("interleaved-nhd", (NUM_BLOCKS, 2, BLOCK_SIZE, HEADS, HEAD_SIZE), hint="NHD")
LATENT = Layout("latent", (NUM_BLOCKS, BLOCK_SIZE, 40), hint="NHD")


def _block(tensor: torch.Tensor, block_dim: int, block: int) -> torch.Tensor:
    return tensor.select(block_dim, block)


def _random(shape: torch.Size, dtype: torch.dtype, generator: torch.Generator) -> torch.Tensor:
    count = shape.numel() * dtype.itemsize
    return torch.randint(0, 256, (count,), dtype=torch.uint8, generator=generator).view(dtype).view(shape)


def fill(tensors: list[torch.Tensor], block_dim: int, blocks: list[int]) -> None:
    """Overwrite ``blocks`` in every layer with random bytes that no other call produces."""
    generator = torch.Generator().manual_seed(next(_seeds))
    for tensor in tensors:
        for block in blocks:
            target = _block(tensor, block_dim, block)
            target.copy_(_random(target.shape, target.dtype, generator))


def contents(tensors: list[torch.Tensor], block_dim: int, blocks: list[int]) -> list[bytes]:
    """The bytes of each block, all layers one after the other."""
    return [b"".join(_raw(_block(tensor, block_dim, block)) for tensor in tensors) for block in blocks]


def _raw(block: torch.Tensor) -> bytes:
    return block.contiguous().view(torch.uint8).numpy().tobytes()


def differing(left: list[bytes], right: list[bytes]) -> list[int]:
    """Positions at which two lists of block contents differ; empty when they are equal."""
    assert len(left) == len(right), f"{len(left)} blocks against {len(right)}"
    return [index for index, (one, other) in enumerate(zip(left, right, strict=True)) if one != other]
