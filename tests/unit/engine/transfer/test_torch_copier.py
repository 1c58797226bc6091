"""Copies between KV caches in real shared memory and the arena, byte for byte against a copy block by block."""

from __future__ import annotations

import os
from itertools import chain, repeat
from pathlib import Path

import numpy as np
import pytest
import torch

from engine.checksum import CorruptError, checksum
from engine.events import Copy, Piece
from engine.layouts import read_kv_layout
from engine.transfer.torch_copier import CopyError, TorchCopier
from engine.transfer.worker import MappingLostError
from tests.unit.engine.support import HANDLE, FakeClock, cpu_tensor, register
from tests.unit.engine.transfer.kv_caches import ARRANGEMENTS, Arrangement, KVCache, MakeSegment, layers

ARENA_BYTES = 1 << 17
OFFSETS = (8192, 0, 65536)
"""Where the objects of the chunks of a range lie in the arena."""


def ids_for(cache: KVCache, seed: int = 0, chunks: int = 3) -> list[list[int]]:
    """Distinct blocks for a range of chunks, as far as there are enough; never block 0."""
    random = np.random.default_rng(seed)
    found = []
    for group in cache.layout.groups:
        needed = chunks * group.blocks_per_chunk
        order = random.permutation(np.arange(1, group.num_blocks)).tolist()
        found.append(order[:needed] if len(order) >= needed else [order[n % len(order)] for n in range(needed)])
    return found


def arena_of(fill: str) -> np.ndarray:
    random = np.random.default_rng(99)
    if fill == "random":
        return random.integers(0, 256, ARENA_BYTES, np.uint8)
    item = {"signalling NaN, 64 bits": "<Q", "signalling NaN, 16 bits": "<H"}[fill]
    pattern = {"<Q": 0x7FF0_0000_0000_0001, "<H": 0x7F81}[item]
    return np.full(ARENA_BYTES // np.dtype(item).itemsize, pattern, item).view(np.uint8)


def copier_with(cache: KVCache, arena: np.ndarray) -> TorchCopier:
    copier = TorchCopier(torch.from_numpy(arena), FakeClock())
    copier.map(1, cache.layout)
    return copier


def job(direction: str, ids: list[list[int]], chunks: int = 3, **more: object) -> Copy:
    pieces = tuple(Piece(chunk, OFFSETS[chunk]) for chunk in range(chunks))
    return Copy(**{"job_id": 1, "mapping_id": 1, "direction": direction, "block_ids": ids, "pieces": pieces, **more})  # type: ignore[arg-type]


@pytest.fixture(params=ARRANGEMENTS)
def cache(request: pytest.FixtureRequest, segment: MakeSegment) -> KVCache:
    return KVCache(ARRANGEMENTS[request.param], segment)


@pytest.fixture
def plain(segment: MakeSegment) -> KVCache:
    """Two layers, 7 blocks of 8 tokens, 128 bytes each."""
    return KVCache(Arrangement("HND", layers(2, [7, 2, 8, 4]), 1024), segment)


def test_a_store_gathers_every_chunk_into_its_slot_and_nothing_else(cache: KVCache) -> None:
    arena, before, ids = arena_of("random"), cache.contents(), ids_for(cache)
    expected = np.array(arena)
    for chunk, offset in enumerate(OFFSETS):
        piece = np.frombuffer(cache.object_of(before, ids, chunk), np.uint8)
        assert len(piece) == cache.layout.object_bytes
        expected[offset : offset + len(piece)] = piece
    copier_with(cache, arena).copy(job("store", ids, event_handle=HANDLE))
    assert np.array_equal(arena, expected)
    assert all(np.array_equal(one, other) for one, other in zip(cache.contents(), before, strict=True))


@pytest.mark.parametrize("fill", ["random", "signalling NaN, 64 bits", "signalling NaN, 16 bits"])
def test_a_retrieve_scatters_every_object_into_its_blocks_and_nothing_else(cache: KVCache, fill: str) -> None:
    arena, expected, ids = arena_of(fill), cache.contents(), ids_for(cache, 1, chunks=2)
    kept, size = np.array(arena), cache.layout.object_bytes
    for chunk, offset in enumerate(OFFSETS[:2]):
        cache.put(expected, ids, chunk, arena[offset : offset + size].tobytes())
    copier_with(cache, arena).copy(job("retrieve", ids, 2, event_handle=HANDLE))
    assert all(np.array_equal(one, other) for one, other in zip(cache.contents(), expected, strict=True))
    assert np.array_equal(arena, kept)


def test_what_was_stored_comes_back_in_other_blocks(cache: KVCache) -> None:
    before, stored_from = cache.contents(), ids_for(cache, 2, 1)
    copier = copier_with(cache, arena_of("random"))
    copier.copy(job("store", stored_from, 1))
    for one in cache.segments:
        one.bytes[:] = 0
    copier.copy(job("retrieve", ids := ids_for(cache, 3, 1), 1))
    assert cache.object_of(cache.contents(), ids, 0) == cache.object_of(before, stored_from, 0)


def test_null_blocks_are_never_written(cache: KVCache) -> None:
    arena, expected, ids = arena_of("random"), cache.contents(), ids_for(cache, 4, 1)
    for group in ids:
        group[-1] = 0
    cache.put(expected, ids, 0, arena[OFFSETS[0] : OFFSETS[0] + cache.layout.object_bytes].tobytes())
    copier_with(cache, arena).copy(job("retrieve", ids, 1))
    assert all(np.array_equal(one, other) for one, other in zip(cache.contents(), expected, strict=True))


@pytest.mark.parametrize("skip", [8, 12, 16, 24, 31, 32, 1000])
def test_skipped_tokens_are_not_written_and_a_partly_skipped_block_is(plain: KVCache, skip: int) -> None:
    """A skip ends inside a block only if a client errs: whole blocks are skipped, the partial one is written."""
    arena, expected, ids = arena_of("random"), plain.contents(), [[3, 1, 6, 2]]
    for chunk in range(2):
        written = arena[OFFSETS[chunk] : OFFSETS[chunk] + plain.layout.object_bytes].tobytes()
        plain.put(expected, ids, chunk, written, skip // 8 * 8)
    copier_with(plain, arena).copy(job("retrieve", ids, 2, skip_tokens=skip))
    assert all(np.array_equal(one, other) for one, other in zip(plain.contents(), expected, strict=True))


def test_each_group_skips_by_its_own_block_size(segment: MakeSegment) -> None:
    cache = KVCache(ARRANGEMENTS["two groups"], segment, chunk_size=32)
    arena, expected, ids = arena_of("random"), cache.contents(), [[1, 2, 3, 4], [1, 2]]
    cache.put(expected, ids, 0, arena[OFFSETS[0] : OFFSETS[0] + cache.layout.object_bytes].tobytes(), 16)
    copier_with(cache, arena).copy(job("retrieve", ids, 1, skip_tokens=16))
    assert all(np.array_equal(one, other) for one, other in zip(cache.contents(), expected, strict=True))


def test_only_the_pieces_that_are_asked_for_move(plain: KVCache) -> None:
    arena, ids = arena_of("random"), [[3, 1, 6, 2]]
    expected, size = np.array(arena), plain.layout.object_bytes
    expected[4096 : 4096 + size] = np.frombuffer(plain.object_of(plain.contents(), ids, 1), np.uint8)
    copier_with(plain, arena).copy(job("store", ids, pieces=(Piece(1, 4096),)))
    assert np.array_equal(arena, expected)


def test_a_retrieve_stops_before_the_first_chunk_behind_its_deadline(plain: KVCache) -> None:
    arena, expected, ids = arena_of("random"), plain.contents(), [[3, 1, 6, 2, 4, 5]]
    for chunk in range(2):
        written = arena[OFFSETS[chunk] : OFFSETS[chunk] + plain.layout.object_bytes].tobytes()
        plain.put(expected, ids, chunk, written)
    readings = chain([9.0, 10.0, 10.1], repeat(99.0))
    copier = TorchCopier(torch.from_numpy(arena), lambda: next(readings))
    copier.map(1, plain.layout)
    with pytest.raises(CopyError, match="may have given up"):
        copier.copy(job("retrieve", ids, not_after=10.0))
    assert all(np.array_equal(one, other) for one, other in zip(plain.contents(), expected, strict=True))


def test_a_store_stops_before_the_first_chunk_behind_its_deadline(plain: KVCache) -> None:
    arena, ids, size = arena_of("random"), [[3, 1, 6, 2, 4, 5]], plain.layout.object_bytes
    expected = np.array(arena)
    expected[OFFSETS[0] : OFFSETS[0] + size] = np.frombuffer(plain.object_of(plain.contents(), ids, 0), np.uint8)
    readings = chain([10.0, 10.1], repeat(99.0))
    copier = TorchCopier(torch.from_numpy(arena), lambda: next(readings))
    copier.map(1, plain.layout)
    with pytest.raises(CopyError, match="may have given up"):
        copier.copy(job("store", ids, not_after=10.0))
    assert np.array_equal(arena, expected)


@pytest.mark.parametrize("direction", ["store", "retrieve"])
def test_it_beats_with_every_piece(plain: KVCache, direction: str) -> None:
    copier = copier_with(plain, arena_of("random"))
    before = copier.beats
    copier.copy(job(direction, [[3, 1, 6, 2, 4, 5]]))
    assert copier.beats == before + 3


@pytest.mark.parametrize("direction", ["store", "retrieve"])
def test_a_block_id_outside_the_tensor_fails_and_touches_nothing(plain: KVCache, direction: str) -> None:
    """The engine refuses such ids before; this is the second line."""
    arena, before = arena_of("random"), plain.contents()
    kept = np.array(arena)
    with pytest.raises((CopyError, IndexError, RuntimeError)):
        copier_with(plain, arena).copy(job(direction, [[3, 7]], 1))
    assert all(np.array_equal(one, other) for one, other in zip(plain.contents(), before, strict=True))
    assert np.array_equal(arena[4096:8192], kept[4096:8192])


def test_a_cache_that_was_never_mapped_cannot_be_copied(plain: KVCache) -> None:
    with pytest.raises(CopyError, match="not mapped"):
        copier_with(plain, arena_of("random")).copy(job("store", [[1, 2]], 1, mapping_id=2))


def is_mapped(cache: KVCache) -> bool:
    return any(one.name in line for one in cache.segments for line in Path("/proc/self/maps").read_text().splitlines())


def test_what_is_unmapped_is_let_go(segment: MakeSegment) -> None:
    cache = KVCache(ARRANGEMENTS["MLA"], segment)
    for one in cache.segments:
        del one.bytes
    assert not is_mapped(cache)
    copier = copier_with(cache, arena_of("random"))
    assert is_mapped(cache)
    copier.unmap(1)
    assert not is_mapped(cache)
    with pytest.raises(CopyError, match="not mapped"):
        copier.copy(job("store", [[1, 2]], 1))
    copier.unmap(1)


def test_layers_in_one_segment_are_mapped_once(segment: MakeSegment) -> None:
    cache = KVCache(ARRANGEMENTS["fused, layers unevenly apart"], segment)
    for one in cache.segments:
        del one.bytes
    copier = copier_with(cache, arena_of("random"))
    assert Path("/proc/self/maps").read_text().count(cache.segments[0].name) == 1
    copier.unmap(1)


def test_a_segment_that_is_gone_cannot_be_mapped(plain: KVCache) -> None:
    plain.segments[1].remove()
    copier = TorchCopier(torch.zeros(16, dtype=torch.uint8), FakeClock())
    with pytest.raises(CopyError, match="No such file"):
        copier.map(1, plain.layout)
    with pytest.raises(CopyError, match="not mapped"):
        copier.copy(job("store", [[1, 2]], 1))


def test_a_segment_that_is_shorter_than_registered_cannot_be_mapped(plain: KVCache) -> None:
    os.truncate(plain.segments[0].path, 1000)
    with pytest.raises(CopyError, match="has 1000 bytes, the registration says 1024"):
        TorchCopier(torch.zeros(16, dtype=torch.uint8), FakeClock()).map(1, plain.layout)


def test_two_mappings_do_not_touch_each_other(segment: MakeSegment) -> None:
    one, other = (KVCache(ARRANGEMENTS["MLA"], segment) for _ in range(2))
    copier = copier_with(one, arena_of("random"))
    copier.map(2, other.layout)
    untouched = one.contents()
    copier.copy(job("retrieve", [[1, 2]], 1, mapping_id=2))
    assert all(np.array_equal(a, b) for a, b in zip(one.contents(), untouched, strict=True))


def test_the_copying_thread_uses_one_core() -> None:
    before = torch.get_num_threads()
    try:
        TorchCopier(torch.zeros(16, dtype=torch.uint8), FakeClock()).prepare_thread()
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("abandoned", [False, True])
def test_the_segment_of_a_worker_that_is_gone_is_removed(abandoned: bool) -> None:
    path = Path(f"/dev/shm/lmcache_kv_{os.getpid()}_{int(abandoned)}")
    path.write_bytes(bytes(4096))
    tensor = cpu_tensor([8, 2, 8, 16], shm_name=f"/{path.name}")
    frames = register(1, [tensor])
    layout = read_kv_layout(frames.kv_caches, frames.layout_hints, frames.engine_group_infos, 16)
    copier = TorchCopier(torch.zeros(4096, dtype=torch.uint8), FakeClock())
    copier.map(1, layout)
    copier.unmap(1, abandoned=abandoned)
    assert path.exists() is not abandoned
    path.unlink(missing_ok=True)


def summed(offset: int, arena: np.ndarray, size: int) -> bytes:
    return checksum(arena[offset : offset + size].tobytes())


def test_a_store_returns_the_checksums_of_its_slots_as_they_are_then(plain: KVCache) -> None:
    arena, size = arena_of("random"), 2 * plain.layout.object_bytes
    found = copier_with(plain, arena).copy(job("store", ids_for(plain), slot_bytes=size))
    assert found == tuple(summed(offset, arena, size) for offset in OFFSETS[:3])


@pytest.mark.parametrize("direction", ["store", "retrieve"])
def test_nobody_gets_checksums_who_does_not_want_them(plain: KVCache, direction: str) -> None:
    assert copier_with(plain, arena_of("random")).copy(job(direction, ids_for(plain))) == ()


def test_a_retrieve_moves_what_has_its_checksum(plain: KVCache) -> None:
    arena, expected, ids, size = arena_of("random"), plain.contents(), ids_for(plain), plain.layout.object_bytes
    for chunk, offset in enumerate(OFFSETS[:3]):
        plain.put(expected, ids, chunk, arena[offset : offset + size].tobytes())
    pieces = tuple(Piece(chunk, offset, summed(offset, arena, size)) for chunk, offset in enumerate(OFFSETS[:3]))
    assert copier_with(plain, arena).copy(job("retrieve", ids, pieces=pieces, slot_bytes=size)) == ()
    assert all(np.array_equal(one, other) for one, other in zip(plain.contents(), expected, strict=True))


def test_a_retrieve_moves_nothing_of_what_is_corrupt(plain: KVCache) -> None:
    arena, expected, ids, size = arena_of("random"), plain.contents(), ids_for(plain), plain.layout.object_bytes
    plain.put(expected, ids, 0, arena[OFFSETS[0] : OFFSETS[0] + size].tobytes())
    pieces = tuple(Piece(chunk, offset, summed(offset, arena, size)) for chunk, offset in enumerate(OFFSETS[:3]))
    arena[OFFSETS[1] + size - 1] ^= 1
    with pytest.raises(CorruptError) as raised:
        copier_with(plain, arena).copy(job("retrieve", ids, pieces=pieces, slot_bytes=size))
    assert raised.value.piece == 1
    assert all(np.array_equal(one, other) for one, other in zip(plain.contents(), expected, strict=True))


def test_a_checksum_is_a_sign_of_life(plain: KVCache) -> None:
    arena = arena_of("random")
    copier = copier_with(plain, arena)
    before = copier.beats
    assert copier.checksum(OFFSETS[1], 100) == summed(OFFSETS[1], arena, 100)
    assert copier.beats > before


@pytest.mark.parametrize("direction", ["store", "retrieve"])
def test_a_segment_that_was_cut_short_is_not_touched(plain: KVCache, direction: str) -> None:
    arena = arena_of("random")
    kept, copier = np.array(arena), copier_with(plain, arena)
    os.truncate(plain.segments[0].path, 1000)
    with pytest.raises(MappingLostError, match="has been cut short, to 1000 of the 1024 registered bytes"):
        copier.copy(job(direction, ids_for(plain)))
    assert np.array_equal(arena, kept)
    copier.unmap(1)


@pytest.mark.parametrize("direction", ["store", "retrieve"])
def test_a_segment_that_is_cut_short_during_a_copy_fails_the_copy(plain: KVCache, direction: str) -> None:
    """It is cut between two chunks, which is when the clock is asked."""
    readings = iter([0, 1])

    def cut() -> float:
        if next(readings, None) == 1:
            os.truncate(plain.segments[1].path, 0)
        return 0.0

    arena = arena_of("random")
    copier = TorchCopier(torch.from_numpy(arena), cut)
    copier.map(1, plain.layout)
    with pytest.raises(MappingLostError, match="has been cut short, to 0 of"):
        copier.copy(job(direction, ids_for(plain)))
    with pytest.raises(MappingLostError):
        copier.copy(job(direction, ids_for(plain)))
    copier.unmap(1)


def test_what_grows_again_after_a_copy_missed_it_stays_lost(plain: KVCache) -> None:
    path, readings = plain.segments[0].path, iter([0])

    def cut() -> float:
        if next(readings, None) == 0:
            os.truncate(path, 0)
        else:
            os.truncate(path, 1024)
        return 0.0

    copier = TorchCopier(torch.from_numpy(arena_of("random")), cut)
    copier.map(1, plain.layout)
    with pytest.raises(MappingLostError):
        copier.copy(job("store", ids_for(plain)))
    assert path.stat().st_size == 1024
    copier.unmap(1)
