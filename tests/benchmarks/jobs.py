"""The transfer job alone: ``TorchCopier`` on memory of this process, no client, no socket, no engine."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import msgspec
import numpy as np
import torch

from engine.events import Copy, Piece
from engine.layouts import KVLayout, read_kv_layout
from engine.transfer.torch_copier import TorchCopier
from tests.benchmarks.copies import Measured, Steps, measure, single
from tests.benchmarks.figures import Row, Section, median
from tests.benchmarks.geometry import CHUNK, CHUNK_BYTES, GIB, ITEM, LAYERS, Case, cases
from tests.benchmarks.memcopy import Baseline, Segment
from tests.benchmarks.progress import say

MAPPING = 1


def transfer_job(tokens: int, rounds: int) -> Section:
    """How close the copies themselves come to a plain copy."""
    size = tokens // CHUNK * CHUNK_BYTES
    section = Section(f"Store and load, the transfer job alone: {tokens:,} tokens, {size / GIB:.2f} GiB")
    with Segment("source", size) as source, Segment("target", size) as target, Segment("arena", size) as arena:
        baseline = Baseline(source, target, CHUNK_BYTES)
        copier = TorchCopier(torch.from_numpy(arena.bytes), time.monotonic)
        copier.prepare_thread()
        for case in cases(tokens):
            say(f"transfer job, {case.name}")
            with _kv_cache(case) as storages:
                copier.map(MAPPING, _layout(case, storages))
                try:
                    section.rows += single(case, _steps(copier, case, storages), baseline, rounds)
                finally:
                    copier.unmap(MAPPING)
    return section


def verified_job(tokens: int, rounds: int) -> Section:
    """What it costs that the copies take checksums and verify them (`l1.verify`), next to the same copies without."""
    size = tokens // CHUNK * CHUNK_BYTES
    section = Section(f"Store and load with checksums, the transfer job alone: {tokens:,} tokens, {size / GIB:.2f} GiB")
    section.notes.append("baseline: the same job without checksums")
    with Segment("source", size) as source, Segment("target", size) as target, Segment("arena", size) as arena:
        baseline = Baseline(source, target, CHUNK_BYTES)
        copier = TorchCopier(torch.from_numpy(arena.bytes), time.monotonic)
        copier.prepare_thread()
        for case in cases(tokens):
            say(f"transfer job with checksums, {case.name}")
            with _kv_cache(case) as storages:
                copier.map(MAPPING, _layout(case, storages))
                try:
                    checked = {f"verified {name}": step for name, step in _steps(copier, case, storages, True).items()}
                    measured = measure({**_steps(copier, case, storages), **checked}, baseline, rounds)
                finally:
                    copier.unmap(MAPPING)
            section.rows += [_cost(name, case, measured) for name in ("store", "load")]
    return section


def _cost(step: str, case: Case, measured: dict[str, Measured]) -> Row:
    plain, checked = measured[step].seconds, measured[f"verified {step}"].seconds
    row = Row(f"{step}, {case.name}", "GB/s", case.bytes / 1e9 / median(checked))
    row.baseline = case.bytes / 1e9 / median(plain)
    row.to_baseline = median([before / after for before, after in zip(plain, checked, strict=True)])
    return row


@contextmanager
def _kv_cache(case: Case) -> Iterator[list[Segment]]:
    """The storages a worker would share: one, or one for each layer, filled with random bytes."""
    count = 1 if case.one_storage else LAYERS
    size = _layer_elements(case) * ITEM * LAYERS // count
    with ExitStack() as stack:
        storages = [stack.enter_context(Segment(f"kv{index}", size)) for index in range(count)]
        for storage in storages:
            torch.from_numpy(storage.bytes).view(torch.int16).random_(-(1 << 15), 1 << 15)
        yield storages


def _layer_elements(case: Case) -> int:
    return int(np.prod(case.layout.shape))


def _layout(case: Case, storages: list[Segment]) -> KVLayout:
    """What a worker's registration of these storages says, read the way the server reads it."""
    descriptors = [_descriptor(case, storages, layer) for layer in range(LAYERS)]
    groups = [{"engine_group_id": 0, "layer_indices": list(range(LAYERS)), "tokens_per_block": case.block_size}]
    encode = msgspec.msgpack.encode
    return read_kv_layout(encode(descriptors), encode({"kv_layout": "HND"}), encode(groups), CHUNK)


def _descriptor(case: Case, storages: list[Segment], layer: int) -> msgspec.msgpack.Ext:
    shape = case.layout.shape
    storage = storages[0] if case.one_storage else storages[layer]
    metadata = {
        "dtype": "bfloat16",
        "shape": shape,
        "stride": [int(np.prod(shape[dimension + 1 :])) for dimension in range(len(shape))],
        "storage_offset": layer * _layer_elements(case) if case.one_storage else 0,
        "device_uuid": "cpu",
    }
    body = {"type": "cpu_shm", "version": 1, "metadata": metadata, "shm_name": storage.name, "nbytes": storage.size}
    return msgspec.msgpack.Ext(1, msgspec.msgpack.encode(body))


def _steps(copier: TorchCopier, case: Case, storages: list[Segment], verify: bool = False) -> Steps:
    stored_in, loaded_into = case.scattered(1), case.scattered(2)
    pieces = tuple(Piece(chunk, chunk * CHUNK_BYTES) for chunk in range(case.tokens // CHUNK))
    slot_bytes = CHUNK_BYTES if verify else 0
    store = Copy(1, MAPPING, "store", [stored_in], pieces, slot_bytes=slot_bytes)
    load = Copy(2, MAPPING, "retrieve", [loaded_into], pieces, slot_bytes=slot_bytes)
    expected: list[bytes] = []
    checksums: list[bytes] = []

    def run_store() -> float:
        expected[:] = [_block(case, storages, layer, block) for layer, block in _sample(stored_in)]
        seconds, checksums[:] = _timed(copier, store)
        return seconds

    def run_load() -> float:
        checked = [replace(piece, checksum=checksum) for piece, checksum in zip(pieces, checksums, strict=verify)]
        seconds, _ = _timed(copier, replace(load, pieces=tuple(checked) or pieces))
        found = [_block(case, storages, layer, block) for layer, block in _sample(loaded_into)]
        assert found == expected, "other bytes were loaded than were stored"
        return seconds

    return {"store": run_store, "load": run_load}


def _timed(copier: TorchCopier, job: Copy) -> tuple[float, tuple[bytes, ...]]:
    """Seconds, and the checksums that the job wants."""
    start = time.perf_counter()
    checksums = copier.copy(job)
    return time.perf_counter() - start, checksums


def _sample(blocks: list[int]) -> list[tuple[int, int]]:
    """A few (layer, block) at the same positions of every list."""
    return [(layer, blocks[position]) for layer in (0, LAYERS - 1) for position in (0, len(blocks) // 2, -1)]


def _block(case: Case, storages: list[Segment], layer: int, block: int) -> bytes:
    """The bytes of one block of one layer, found without the code that is measured."""
    block_bytes = int(np.prod(case.layout.shape[1:])) * ITEM
    storage = storages[0] if case.one_storage else storages[layer]
    start = (layer * _layer_elements(case) * ITEM if case.one_storage else 0) + block * block_bytes
    return storage.bytes[start : start + block_bytes].tobytes()
