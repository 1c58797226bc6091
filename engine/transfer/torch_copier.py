"""Moves blocks between mapped KV caches and the arena, with torch. The same code for CPU and CUDA tensors.

A block is opaque here, so tensors are viewed as rows of the widest items that fit, up to 16 bytes: torch copies them
half as fast again as rows of two bytes. Complex numbers are only loaded and stored, so every bit pattern survives.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Final

import torch

from engine.checksum import CorruptError, checksum
from engine.events import Copy, Piece
from engine.layouts import Group, KVLayout
from engine.transfer.ipc import OpenError, Storage, open_storage, release_unused, wait_for
from engine.transfer.leftovers import remove_if_unused
from engine.transfer.plan import WIDEST_ITEM, Stack, stacks, writable
from engine.transfer.worker import MappingLostError

logger = logging.getLogger(__name__)

_ITEM_DTYPE: Final = {
    16: torch.complex128,
    8: torch.int64,
    4: torch.int32,
    2: torch.int16,
    1: torch.uint8,
}


class CopyError(Exception):
    """A copy that did not move all its bytes; says why."""


class TorchCopier:
    """The mapped KV caches, and copies between them and the arena. Belongs to the transfer thread."""

    def __init__(self, arena: torch.Tensor, clock: Callable[[], float]) -> None:
        """`arena`: uint8, on the CPU. `clock`: monotonic seconds, the same as the engine's."""
        whole = arena[: arena.numel() // WIDEST_ITEM * WIDEST_ITEM]
        self._arena = {dtype: whole.view(dtype) for dtype in _ITEM_DTYPE.values()}
        self._memory = arena.numpy().data
        self._clock = clock
        self.beats = 0
        """Grows with each piece that is moved and each stretch of memory that is opened; read by any thread."""
        self._caches: dict[int, _Cache] = {}

    def prepare_thread(self) -> None:
        """Called once on the thread that copies. One thread copies fastest: more only wait for each other here."""
        torch.set_num_threads(1)

    def map(self, mapping_id: int, layout: KVLayout) -> None:
        """Opens a KV cache for copies. Raises CopyError."""
        try:
            self._caches[mapping_id] = _Cache(layout, self._beat)
        except (OpenError, RuntimeError, OverflowError) as error:
            raise CopyError(str(error)) from None

    def unmap(self, mapping_id: int, abandoned: bool = False) -> None:
        """Lets go of a KV cache; one that was never opened is no matter.

        `abandoned`: its worker is gone, so the names of its segments are removed, unless another process uses them.
        """
        cache = self._caches.pop(mapping_id, None)
        if cache is not None:
            device, segments = cache.device, cache.segments
            cache.close()
            del cache
            release_unused(device)
            for name in segments if abandoned else ():
                if remove_if_unused(name):
                    logger.info("removed /dev/shm/%s, which a worker that is gone had left behind", name)

    def copy(self, job: Copy) -> tuple[bytes, ...]:
        """Moves all bytes of a job and returns when they have moved, with the checksums that a store wants.

        Raises CopyError, CorruptError where it meets an object that is corrupt, and MappingLostError if the worker's
        memory is gone; then only a part may have moved, and what came from there may be zeros.
        """
        cache = self._caches.get(job.mapping_id)
        if cache is None:
            raise CopyError("the worker's memory is not mapped")
        cache.check()
        try:
            return self._copy(job, cache)
        finally:
            cache.check()

    def _copy(self, job: Copy, cache: _Cache) -> tuple[bytes, ...]:
        with cache.stream():
            wait_for(job.event_handle, cache.device)
            ids = [torch.tensor(group, dtype=torch.int64, device=cache.device) for group in job.block_ids]
            try:
                return tuple(self._pieces(job, cache, ids))
            finally:
                # NOTE: Also after a failure: nobody may get the slots while a device still reads or writes them.
                cache.synchronize()

    def checksum(self, offset: int, size: int) -> bytes:
        """Of a slot of the arena."""
        self._beat()
        return checksum(self._memory[offset : offset + size])

    def _pieces(self, job: Copy, cache: _Cache, ids: list[torch.Tensor]) -> Iterator[bytes]:
        """Moves one piece after the other; the checksums of what is stored, if they are wanted."""
        for index, piece in enumerate(job.pieces):
            # PERF: Each object before it is moved, rather than all of them: it is in the processor's cache then.
            if piece.checksum is not None and self.checksum(piece.offset, job.slot_bytes) != piece.checksum:
                raise CorruptError(index)
            if self._clock() > job.not_after:
                raise CopyError("the client may have given up; its blocks may have a new owner")
            self._move(job, piece, cache, ids)
            if job.direction == "store" and job.slot_bytes:
                # What is still on its way from a device is not to be summed up yet.
                cache.synchronize()
                yield self.checksum(piece.offset, job.slot_bytes)
            self._beat()

    def _beat(self) -> None:
        self.beats += 1

    def _move(self, job: Copy, piece: Piece, cache: _Cache, ids: list[torch.Tensor]) -> None:
        for index, group in enumerate(cache.groups):
            blocks = slice(piece.chunk * group.blocks_per_chunk, (piece.chunk + 1) * group.blocks_per_chunk)
            chunk_ids, chosen = ids[index][blocks], None
            if job.direction == "retrieve":
                skip = max(0, job.skip_tokens // group.tokens_per_block - blocks.start)
                chosen = writable(job.block_ids[index][blocks], skip)
            for rows in group.rows:
                host = rows.in_object(self._arena, piece.offset)
                if job.direction == "store":
                    rows.gather(chunk_ids, host)
                else:
                    rows.scatter(chunk_ids, host, chosen)


class _Cache:
    """One worker's KV cache, open."""

    def __init__(self, layout: KVLayout, beat: Callable[[], None]) -> None:
        used = {layer.storage for group in layout.groups for layer in group.layers}
        names = {layout.descriptors[index].shm_name.removeprefix("/") for index in used}
        self.segments: Final = sorted(names - {""})
        """Names of the shared memory it lies in."""
        self._storages: Final[dict[int, Storage]] = {}
        self.groups: Final[list[_GroupRows]] = []
        try:
            for index in used:
                self._storages[index] = open_storage(layout.descriptors[index], beat)
            self._view(layout)
        except BaseException:
            self.close()
            raise
        self.device: Final = next(iter(self._storages.values())).bytes.device
        self._stream = _new_stream(self.device)

    def _view(self, layout: KVLayout) -> None:
        """Raises RuntimeError if a storage is shorter than its tensors."""
        offset = 0
        for group in layout.groups:
            self.groups.append(_GroupRows(group, self._storages, offset))
            offset += group.chunk_bytes

    def check(self) -> None:
        """Raises MappingLostError if some of the memory is not the worker's any more."""
        for storage in self._storages.values():
            if problem := storage.problem():
                raise MappingLostError(problem)

    def close(self) -> None:
        """To be called before the last reference is given up."""
        for storage in self._storages.values():
            storage.close()

    def stream(self) -> AbstractContextManager[object]:
        """Where the copies of this cache are queued."""
        return torch.cuda.stream(self._stream) if self._stream else nullcontext()

    def synchronize(self) -> None:
        if self._stream:
            self._stream.synchronize()


def _new_stream(device: torch.device) -> torch.cuda.Stream | None:
    if device.type != "cuda":
        return None
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


class _GroupRows:
    """A group's stacks, and where its blocks are."""

    def __init__(self, group: Group, storages: dict[int, Storage], offset: int) -> None:
        """`offset`: where the group's part of an object begins, in bytes."""
        self.blocks_per_chunk: Final = group.blocks_per_chunk
        self.tokens_per_block: Final = group.tokens_per_block
        self.rows: Final[list[_Rows]] = []
        for stack in stacks(group):
            self.rows.append(_Rows(stack, storages[stack.storage].bytes, group.blocks_per_chunk, offset))
            offset += stack.planes * group.blocks_per_chunk * stack.block_bytes


class _Rows:
    """A stack as a tensor [planes, blocks, items], and its part of an object as [planes, blocks of a chunk, items]."""

    def __init__(self, stack: Stack, storage: torch.Tensor, blocks_per_chunk: int, offset: int) -> None:
        """`storage`: uint8. `offset`: where the part begins, in bytes. Raises RuntimeError if the storage is short."""
        width = stack.item_bytes(offset)
        self._dtype = _ITEM_DTYPE[width]
        self._shape = (stack.planes, blocks_per_chunk, stack.block_bytes // width)
        self._strides = (blocks_per_chunk * self._shape[2], self._shape[2], 1)
        self._offset = offset
        typed = storage[: storage.numel() // width * width].view(self._dtype)
        self._tensor = typed.as_strided(
            (stack.planes, stack.num_blocks, stack.block_bytes // width),
            (stack.plane_stride // width, stack.block_stride // width, 1),
            typed.storage_offset() + stack.offset // width,
        )
        self._cpu_planes = list(self._tensor.numpy()) if self._tensor.is_cpu else None

    def in_object(self, arena: dict[torch.dtype, torch.Tensor], object_offset: int) -> torch.Tensor:
        """The part of the object at `object_offset` bytes of the arena, as a view; `arena`: the same bytes by dtype."""
        start = (object_offset + self._offset) // self._dtype.itemsize
        return arena[self._dtype].as_strided(self._shape, self._strides, start)

    def gather(self, ids: torch.Tensor, host: torch.Tensor) -> None:
        """Device to host: [planes, len(ids), items] of these blocks."""
        if host.device == self._tensor.device:
            torch.index_select(self._tensor, 1, ids, out=host)
        else:
            host.copy_(torch.index_select(self._tensor, 1, ids), non_blocking=True)

    def scatter(self, ids: torch.Tensor, host: torch.Tensor, chosen: list[int] | None) -> None:
        """Host to device; only the blocks at the chosen positions, None for all."""
        if chosen is not None:
            positions = torch.tensor(chosen, dtype=torch.int64)
            ids, host = ids[positions.to(ids.device)], host.index_select(1, positions)
        if self._cpu_planes is None:
            self._tensor.index_copy_(1, ids, host.to(self._tensor.device, non_blocking=True))
            return
        # PERF: numpy moves whole rows where index_copy_ moves items: 1.0 against 0.8 of a plain copy's speed.
        places = ids.numpy()
        for plane, blocks in zip(self._cpu_planes, host.numpy(), strict=True):
            plane[places] = blocks
