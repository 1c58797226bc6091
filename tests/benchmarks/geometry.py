"""The KV cache that is measured: 32 layers, 8 KV heads of 128, bf16, K and V fused, heads before tokens."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch

from tests.interop.kv import Layout

LAYERS = 32
HEADS = 8
HEAD_SIZE = 128
ITEM = 2
CHUNK = 256
TOKEN_BYTES = LAYERS * HEADS * 2 * HEAD_SIZE * ITEM
CHUNK_BYTES = CHUNK * TOKEN_BYTES
GIB = 1 << 30


@dataclass(frozen=True)
class Case:
    """Blocks of ``block_size`` tokens, all layers in one storage (as vLLM has them on a CPU) or one for each."""

    block_size: int
    one_storage: bool
    tokens: int

    @property
    def name(self) -> str:
        return f"blocks of {self.block_size}, {'one storage' if self.one_storage else 'a storage per layer'}"

    @property
    def blocks(self) -> int:
        return self.tokens // self.block_size

    @property
    def bytes(self) -> int:
        return self.tokens * TOKEN_BYTES

    @property
    def layout(self) -> Layout:
        """A quarter more blocks than are moved, so that their ids are scattered and leave holes; block 0 is null."""
        shape = (1 + self.blocks * 5 // 4, HEADS, self.block_size, 2 * HEAD_SIZE)
        return Layout(
            self.name,
            shape,
            dtype=torch.bfloat16,
            layers=LAYERS,
            one_storage=self.one_storage,
            block_size=self.block_size,
        )

    def scattered(self, seed: int) -> list[int]:
        """As many different block ids as hold the tokens, in no order."""
        return random.Random(seed).sample(range(1, self.layout.num_blocks), self.blocks)


def cases(tokens: int) -> list[Case]:
    return [Case(size, one_storage, tokens) for size in (16, 128) for one_storage in (True, False)]


def randomise(tensors: list[torch.Tensor]) -> None:
    """Fill every tensor with random bits."""
    for tensor in tensors:
        tensor.view(torch.int16).random_(-(1 << 15), 1 << 15)
