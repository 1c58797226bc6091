"""Which bytes a copy moves. Pure: places and sizes, no memory.

In a cached object every group's layers follow each other, each as its planes, each plane as the chunk's blocks. Layers
that lie at equal distances in one storage, as engines lay them out, are taken together as one *stack*: one call then
moves the chunk's blocks of all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from engine.layouts import Group, Layer

NULL_BLOCK: Final = 0
"""vLLM's block without content: never stored, never written."""
WIDEST_ITEM: Final = 16
_ITEM_BYTES: Final = (WIDEST_ITEM, 8, 4, 2, 1)


@dataclass(frozen=True, slots=True)
class Stack:
    """`planes` x `num_blocks` blocks of `block_bytes` in one storage; places and strides in bytes."""

    storage: int
    planes: int
    num_blocks: int
    block_bytes: int
    offset: int
    plane_stride: int
    block_stride: int

    def item_bytes(self, object_offset: int) -> int:
        """The widest item in which all places and strides are whole numbers: wide items are copied fastest.

        `object_offset`: where this stack's part of an object begins.
        """
        places = (self.block_bytes, self.offset, self.plane_stride, self.block_stride, object_offset)
        return next(size for size in _ITEM_BYTES if not any(place % size for place in places))


def stacks(group: Group) -> tuple[Stack, ...]:
    """The layers of a group, in order, as few stacks as their places allow."""
    merged: list[Stack] = []
    for layer in group.layers:
        stack = _stack(layer)
        joined = _join(merged[-1], stack) if merged else None
        if joined is None:
            merged.append(stack)
        else:
            merged[-1] = joined
    return tuple(merged)


def _stack(layer: Layer) -> Stack:
    return Stack(
        storage=layer.storage,
        planes=layer.planes,
        num_blocks=layer.num_blocks,
        block_bytes=layer.block_bytes,
        offset=layer.offset,
        plane_stride=layer.plane_stride if layer.planes > 1 else 0,
        block_stride=layer.block_stride,
    )


def _join(first: Stack, second: Stack) -> Stack | None:
    """Both as one stack, if the planes of the second continue those of the first at the same distance."""
    distance = second.offset - first.offset
    if first.planes > 1:
        distance -= (first.planes - 1) * first.plane_stride
    same = replace(second, planes=first.planes, offset=first.offset, plane_stride=first.plane_stride) == first
    continues = first.planes == 1 or distance == first.plane_stride
    if not same or not continues or distance <= 0 or second.plane_stride not in (0, distance):
        return None
    return replace(first, planes=first.planes + second.planes, plane_stride=distance)


def writable(ids: Sequence[int], skip_blocks: int) -> list[int] | None:
    """Positions of the blocks that a retrieve may write: neither skipped nor null. None stands for all of them."""
    if not skip_blocks and NULL_BLOCK not in ids:
        return None
    return [position for position, block in enumerate(ids) if position >= skip_blocks and block != NULL_BLOCK]
