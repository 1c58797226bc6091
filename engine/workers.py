"""The workers of inference engines: who is registered, for which model, with which layout, and what each holds.

A worker's reservations, pins and mapping belong to it and end with it. Lookups carry no layout, so they are resolved
here: a model's chunks count as present only if every registered layout of that model has them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import inf

from engine.errors import AmbiguousError
from engine.l1.cache import ALIGNMENT
from engine.l1.entry import Entry
from engine.layouts import KVLayout, SlotLayout
from engine.status import LayoutReport, TransferMode, WorkerReport, WorkerState

UNKNOWN_LAYOUT = LayoutReport(*(None,) * 11)

Pair = tuple[str, int]
"""Model name and world size: what a lookup names."""


@dataclass(frozen=True, slots=True)
class Range:
    """Which chunks a call of the engine-driven mode is about: the last hash stands for all tokens up to it."""

    namespace: bytes
    start: int
    end: int
    last_hash: bytes


@dataclass(slots=True)
class Reservation:
    """Slots lent to a worker for writing."""

    entries: list[Entry]
    suffix_first: list[bytes]
    """Keys of the whole prefix up to the last chunk, last chunk first, to be touched when the slots are committed."""
    since: float
    """In the seconds of `Awake.now`."""
    received: float
    """When the request that asked for them came in."""


@dataclass(slots=True)
class Pin:
    """Objects lent to a worker for reading."""

    entries: list[Entry]
    suffix_first: list[bytes]
    """Keys of the whole prefix up to the last chunk, last chunk first, to be touched when they come back."""
    received: float
    """When the request that asked for them came in."""


@dataclass(slots=True, eq=False)
class Worker:
    """One registered worker. `layout` is None when its registration could not be understood."""

    instance_id: int
    model_name: str
    world_size: int
    mode: TransferMode
    layout: KVLayout | SlotLayout | None
    state: WorkerState
    registered: float
    last_seen: float
    """Both in the seconds of `Awake.now`."""
    problem: str | None = None
    frames: tuple[bytes, ...] = ()
    """The registration as it came, to tell a repeated one from a changed one."""
    mapping_id: int | None = None
    remap_at: float = inf
    """When its KV cache, which could not be opened, is tried again."""
    remap_wait: float = 0.0
    """Seconds that the newest try was waited for."""
    client: bytes = b""
    """The connection that its newest message came through."""
    connected: float = -inf
    """When that connection was last found to stand."""
    pinged: bool = False
    reservations: dict[Range, Reservation] = field(default_factory=dict)
    pins: dict[Range, list[Pin]] = field(default_factory=dict)
    """One for each retrieve that was prepared and not committed."""

    @property
    def pair(self) -> Pair:
        return self.model_name, self.world_size

    @property
    def alive(self) -> float:
        """When it was last known to live."""
        return max(self.last_seen, self.connected)

    def report(self) -> WorkerReport:
        return WorkerReport(
            instance_id=self.instance_id,
            model_name=self.model_name,
            world_size=self.world_size,
            transfer_mode=self.mode,
            device=self.layout.device if isinstance(self.layout, KVLayout) else None,
            state=self.state,
            problem=self.problem,
            layout=self.layout.report if self.layout else UNKNOWN_LAYOUT,
        )


class Workers:
    """All registered workers by instance id. Belongs to the engine thread."""

    def __init__(self) -> None:
        self._by_id: dict[int, Worker] = {}
        self._fingerprints: dict[Pair, tuple[bytes, ...]] = {}
        self._chunk_bytes: dict[Pair, int] = {}
        self._object_bytes: dict[Pair, dict[bytes, int]] = {}
        self._reports: tuple[WorkerReport, ...] | None = None

    def __iter__(self) -> Iterator[Worker]:
        return iter(self._by_id.values())

    def __len__(self) -> int:
        return len(self._by_id)

    def get(self, instance_id: int) -> Worker | None:
        return self._by_id.get(instance_id)

    def mapped(self, mapping_id: int) -> Worker | None:
        """The worker whose newest mapping this is."""
        return next((worker for worker in self if worker.mapping_id == mapping_id), None)

    def add(self, worker: Worker) -> None:
        self._by_id[worker.instance_id] = worker
        self.changed()

    def remove(self, instance_id: int) -> None:
        del self._by_id[instance_id]
        self.changed()

    def changed(self) -> None:
        """A worker has come, gone or changed its state: what was derived from all of them is derived anew."""
        self._reports = None
        layouts: dict[Pair, dict[bytes, int]] = {}
        unservable: set[Pair] = set()
        for worker in self:
            if worker.state != "ready" or worker.layout is None:
                unservable.add(worker.pair)
            else:
                occupied = -(-worker.layout.object_bytes // ALIGNMENT) * ALIGNMENT
                layouts.setdefault(worker.pair, {})[worker.layout.fingerprint] = occupied
        self._object_bytes = layouts
        self._chunk_bytes = {pair: pair[1] * sum(found.values()) for pair, found in layouts.items()}
        self._fingerprints = {pair: tuple(sorted(found)) for pair, found in layouts.items() if pair not in unservable}

    def fingerprints(self, pair: Pair) -> tuple[bytes, ...]:
        """The layouts under which a chunk of this model has to be present to count as a hit.

        Empty if no lookup may hit now: no worker is registered, or one of them could not serve its retrieve.
        """
        return self._fingerprints.get(pair, ())

    def chunk_bytes(self, pair: Pair) -> int:
        """What a chunk of this model occupies in L1 with all its shards and layouts; 0 if no worker is ready."""
        return self._chunk_bytes.get(pair, 0)

    def only_world_size(self, model_name: str) -> int:
        """With which a model runs; 1 if it does not. Raises AmbiguousError if there are several."""
        sizes = sorted({worker.world_size for worker in self if worker.model_name == model_name})
        if len(sizes) > 1:
            raise AmbiguousError(f"{model_name!r} runs with world sizes {sizes}; say which with world_size")
        return sizes[0] if sizes else 1

    def object_bytes(self, pair: Pair) -> dict[bytes, int]:
        """What an object of this model occupies in L1, by the fingerprint of its layout."""
        return self._object_bytes.get(pair, {})

    def reports(self) -> tuple[WorkerReport, ...]:
        if self._reports is None:
            self._reports = tuple(worker.report() for worker in self)
        return self._reports
