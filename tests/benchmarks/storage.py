"""L2's adapters, each against the plainest way to do the same with its storage's usual Python client, in one run.

What is timed on our side is what a tier does for an object: the envelope with its checksum, and the adapter's call.
"""

from __future__ import annotations

import itertools
import mmap
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from engine.discovery import make_l2_adapter
from engine.keys import NAMESPACE_BYTES, Namespace
from engine.l2.base import L2Adapter
from engine.l2.envelope import HEADER_BYTES, PayloadHash, check, seal
from engine.l2.objects import object_name
from engine.settings import MIB, L2Settings
from tests.benchmarks.figures import Row, Section, median
from tests.benchmarks.progress import say
from tests.support.storage import STORAGES, Storage

SIZES = (2 * MIB, 8 * MIB, 32 * MIB)
IN_FLIGHT = 4
ROUND_BYTES = 64 * MIB
NAMES = 512
SPACE = Namespace("model", 1, 0, bytes(16), "")


class Memory:
    """Slots as those of L1, one for each object in flight, each with a header."""

    def __init__(self) -> None:
        slot = HEADER_BYTES + max(SIZES)
        self.region = memoryview(mmap.mmap(-1, slot * IN_FLIGHT))
        self._slot = slot
        for index in range(IN_FLIGHT):
            self.payload(index, max(SIZES))[:] = os.urandom(MIB) * (max(SIZES) // MIB)

    def header(self, index: int) -> memoryview:
        return self.region[index * self._slot : index * self._slot + HEADER_BYTES]

    def payload(self, index: int, size: int) -> memoryview:
        start = index * self._slot + HEADER_BYTES
        return self.region[start : start + size]


class Side(Protocol):
    """One way to keep objects. `slot` is the number of the one in flight."""

    def save(self, name: bytes, slot: int, size: int) -> None: ...

    def load(self, name: bytes, slot: int, size: int) -> None: ...

    def find(self, names: Sequence[bytes]) -> None: ...

    def delete(self, names: Sequence[bytes]) -> None: ...


class Ours:
    """An adapter with the envelope around it."""

    def __init__(self, adapter: L2Adapter, memory: Memory) -> None:
        self._adapter = adapter
        self._memory = memory

    def save(self, name: bytes, slot: int, size: int) -> None:
        header, payload = self._memory.header(slot), self._memory.payload(slot, size)
        seal(name, SPACE, payload, header)
        self._adapter.write(object_name(name), [header, payload])

    def load(self, name: bytes, slot: int, size: int) -> None:
        header, payload = self._memory.header(slot), self._memory.payload(slot, size)
        seen = PayloadHash()
        assert self._adapter.read_pieces(object_name(name), [header, payload], seen.add) == HEADER_BYTES + size
        check(name, SPACE, header, seen)

    def find(self, names: Sequence[bytes]) -> None:
        self._adapter.contains([object_name(name) for name in names])

    def delete(self, names: Sequence[bytes]) -> None:
        self._adapter.delete([object_name(name) for name in names])


class PlainFiles:
    """Read and write of files."""

    def __init__(self, storage: Storage, memory: Memory) -> None:
        self._folder = Path(storage.settings["path"]).parent / "plain"
        self._folder.mkdir()
        self._memory = memory

    def save(self, name: bytes, slot: int, size: int) -> None:
        (self._folder / name.hex()).write_bytes(self._memory.payload(slot, size))

    def load(self, name: bytes, slot: int, size: int) -> None:
        assert len((self._folder / name.hex()).read_bytes()) == size

    def find(self, names: Sequence[bytes]) -> None:
        for name in names:
            (self._folder / name.hex()).exists()

    def delete(self, names: Sequence[bytes]) -> None:
        for name in names:
            (self._folder / name.hex()).unlink(missing_ok=True)


class RedisPy:
    """redis-py with hiredis."""

    def __init__(self, storage: Storage, memory: Memory) -> None:
        import redis

        self._client = redis.Redis.from_url(storage.settings["url"].replace("valkey://", "redis://"))
        self._memory = memory

    def save(self, name: bytes, slot: int, size: int) -> None:
        self._client.set(name, self._memory.payload(slot, size))

    def load(self, name: bytes, slot: int, size: int) -> None:
        assert len(self._client.get(name)) == size  # type: ignore[arg-type]

    def find(self, names: Sequence[bytes]) -> None:
        pipeline = self._client.pipeline(transaction=False)
        for name in names:
            pipeline.exists(name)
        pipeline.execute()

    def delete(self, names: Sequence[bytes]) -> None:
        self._client.delete(*names)


class Boto3:
    """boto3 as it comes, with the bucket in the path."""

    def __init__(self, storage: Storage, memory: Memory) -> None:
        import boto3
        from botocore.config import Config

        settings = storage.settings
        self._bucket = settings["bucket"]
        self._client: Any = boto3.client(
            "s3",
            endpoint_url=settings["endpoint"],
            aws_access_key_id=settings["access_key_id"],
            aws_secret_access_key=settings["secret_access_key"],
            region_name=settings["region"],
            config=Config(s3={"addressing_style": "path"}),
        )
        self._memory = memory

    def save(self, name: bytes, slot: int, size: int) -> None:
        # It takes bytes or a file, so what lies in memory is copied.
        self._client.put_object(Bucket=self._bucket, Key=name.hex(), Body=bytes(self._memory.payload(slot, size)))

    def load(self, name: bytes, slot: int, size: int) -> None:
        assert len(self._client.get_object(Bucket=self._bucket, Key=name.hex())["Body"].read()) == size

    def find(self, names: Sequence[bytes]) -> None:
        for name in names:
            with suppress(self._client.exceptions.ClientError):
                self._client.head_object(Bucket=self._bucket, Key=name.hex())

    def delete(self, names: Sequence[bytes]) -> None:
        objects = [{"Key": name.hex()} for name in names]
        self._client.delete_objects(Bucket=self._bucket, Delete={"Objects": objects})


class MooncakeStore:
    """The put and get of Mooncake's own client, from and to memory that it knows."""

    def __init__(self, storage: Storage, memory: Memory) -> None:
        import ctypes

        from mooncake.store import MooncakeDistributedStore

        settings = storage.settings
        self._store: Any = MooncakeDistributedStore()
        where = ("127.0.0.1", settings["metadata_server"], 0, 16 * MIB, "tcp", "", settings["master"])
        assert self._store.setup(*where) == 0
        self._memory = memory
        self._start = ctypes.addressof(ctypes.c_char.from_buffer(memory.region))
        assert self._store.register_buffer(self._start, len(memory.region)) == 0

    def _address(self, slot: int) -> int:
        return self._start + slot * (len(self._memory.region) // IN_FLIGHT) + HEADER_BYTES

    def save(self, name: bytes, slot: int, size: int) -> None:
        assert self._store.put_from(name.hex(), self._address(slot), size) == 0

    def load(self, name: bytes, slot: int, size: int) -> None:
        assert self._store.get_into(name.hex(), self._address(slot), size) == size

    def find(self, names: Sequence[bytes]) -> None:
        self._store.batch_is_exist([name.hex() for name in names])

    def delete(self, names: Sequence[bytes]) -> None:
        for name in names:
            # By force: it would wait for the lease of the last get otherwise, and fail.
            self._store.remove(name.hex(), True)


@dataclass(frozen=True)
class Match:
    """Whom an adapter is compared with, and the aims: shares of its speed, alone and with several in flight."""

    plain: Callable[[Storage, Memory], Side]
    name: str
    alone: float
    several: float
    cpu: float | None = None
    """Of its CPU time, at most."""


MATCHES = {
    "filesystem": Match(PlainFiles, "plain files", 0.75, 0.9),
    "valkey": Match(RedisPy, "redis-py with hiredis", 1.2, 1.5),
    "s3": Match(Boto3, "boto3", 1.0, 1.0, cpu=0.5),
    "mooncake": Match(MooncakeStore, "Mooncake's own client", 0.75, 0.9),
}


def storage(rounds: int, wanted: Sequence[str] = tuple(MATCHES)) -> list[Section]:
    """One table for each storage."""
    return [_compare(name, rounds) for name in wanted]


def _compare(name: str, rounds: int) -> Section:
    match = MATCHES[name]
    section = Section(f"L2 on {name}, against {match.name}")
    with tempfile.TemporaryDirectory(prefix="kvkeep-bench-") as folder, STORAGES[name](Path(folder)) as storage:
        memory = Memory()
        with _opened(storage, memory) as adapter:
            sides = (Ours(adapter, memory), match.plain(storage, memory))
            for size, in_flight in itertools.product(SIZES, (1, IN_FLIGHT)):
                say(f"{name}: {size // MIB} MiB, {in_flight} in flight")
                section.rows += _moves(sides, match, size, in_flight, rounds)
            section.rows.append(_finds(sides, rounds))
    section.notes.append(f"median of {rounds} rounds of {ROUND_BYTES // MIB} MiB, one side after the other")
    return section


@contextmanager
def _opened(storage: Storage, memory: Memory) -> Iterator[L2Adapter]:
    settings = dict(storage.settings)
    options = {key: value for key, value in settings.items() if key not in ("type", "capacity", "keep_free", "timeout")}
    if settings["type"] == "filesystem":
        options |= {"capacity": 4 << 30, "keep_free": 0}
    adapter = make_l2_adapter(L2Settings(settings["type"], "bench", options))
    adapter.open([memory.region])
    try:
        yield adapter
    finally:
        adapter.close()


@dataclass
class _Times:
    """Of one side: seconds, and seconds of CPU, by round."""

    save: list[float]
    load: list[float]
    cpu: list[float]


def _moves(sides: Sequence[Side], match: Match, size: int, in_flight: int, rounds: int) -> list[Row]:
    times = [_Times([], [], []) for _ in sides]
    with ThreadPoolExecutor(in_flight) as pool:
        # One round more than is counted: the first one meets cold connections.
        for number in range(rounds + 1):
            for side, taken in zip(sides, times, strict=True):
                seen = _one_round(side, pool, size, in_flight)
                if number:
                    taken.save.append(seen[0])
                    taken.load.append(seen[1])
                    taken.cpu.append(seen[2])
    return _rows(times, match, size, in_flight)


def _one_round(side: Side, pool: ThreadPoolExecutor, size: int, in_flight: int) -> tuple[float, float, float]:
    """Seconds to save, to load, and of CPU for both."""
    names = [os.urandom(NAMESPACE_BYTES + 32) for _ in range(max(in_flight, ROUND_BYTES // size))]
    lanes = [names[index::in_flight] for index in range(in_flight)]

    def each(action: Callable[[bytes, int, int], None]) -> float:
        began = time.perf_counter()
        done = [pool.submit(_all, action, lane, index, size) for index, lane in enumerate(lanes)]
        for future in done:
            future.result()
        return time.perf_counter() - began

    cpu = time.process_time()
    saved, loaded = each(side.save), each(side.load)
    cpu = time.process_time() - cpu
    side.delete(names)
    moved = len(names) * size
    return moved / saved, moved / loaded, cpu / len(names)


def _all(action: Callable[[bytes, int, int], None], names: Sequence[bytes], slot: int, size: int) -> None:
    for name in names:
        action(name, slot, size)


def _rows(times: Sequence[_Times], match: Match, size: int, in_flight: int) -> list[Row]:
    what = f"{size // MIB} MiB, {in_flight} in flight"
    rows = []
    for verb in ("save", "load"):
        ours, plain = (median(getattr(taken, verb)) for taken in times)
        row = Row(f"{verb} {what}", "GB/s", ours / 1e9, baseline=plain / 1e9, to_baseline=ours / plain)
        row.aim_at_least(match.alone if in_flight == 1 else match.several)
        rows.append(row)
    if match.cpu is not None:
        ours, plain = (median(taken.cpu) * 1e3 for taken in times)
        row = Row(f"CPU to save and load {what}", "ms", ours, baseline=plain, to_baseline=ours / plain)
        row.aim, row.met = f"<= {match.cpu:g} of baseline", ours / plain <= match.cpu
        rows.append(row)
    return rows


def _finds(sides: Sequence[Side], rounds: int) -> Row:
    """Half of the names are there."""
    names = [os.urandom(NAMESPACE_BYTES + 32) for _ in range(NAMES)]
    seconds: list[list[float]] = [[] for _ in sides]
    for side in sides:
        for name in names[: NAMES // 2]:
            side.save(name, 0, 4096)
    for _, (index, side) in itertools.product(range(rounds), enumerate(sides)):
        began = time.perf_counter()
        side.find(names)
        seconds[index].append(time.perf_counter() - began)
    for side in sides:
        side.delete(names)
    ours, plain = (median(taken) * 1e3 for taken in seconds)
    return Row(f"which of {NAMES} are there", "ms", ours, baseline=plain, to_baseline=ours / plain)
