"""What the engine answers to commands: frozen, and complete without it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from engine.status import Cleared, MissReason, TransferMode, WorkerState

JobKind = Literal["clear", "shrink", "change_policy", "set_quota", "prefetch"]
JobState = Literal["running", "done"]


@dataclass(frozen=True, slots=True)
class JobReport:
    """Work that is done a part at a time, between requests."""

    id: int
    kind: JobKind
    state: JobState
    done: int
    """How far it is, of `total`."""
    total: int
    objects: int
    """Objects it has affected, or would have."""
    bytes: int
    dry_run: bool
    age: float
    """Seconds since it began."""


@dataclass(frozen=True, slots=True)
class ObjectReport:
    """One object of L1."""

    key: bytes
    model_name: str
    world_size: int
    shard: int
    fingerprint: bytes
    """Of the layout."""
    cache_salt: str
    size: int
    """Bytes occupied."""
    is_ready: bool
    """False while it is being written."""
    leases: int
    age: float
    """Seconds since its store began."""


@dataclass(frozen=True, slots=True)
class ObjectPage:
    """Objects in the order of their places. It may hold fewer than asked for, even none, before the last page."""

    objects: tuple[ObjectReport, ...]
    next_place: int | None


@dataclass(frozen=True, slots=True)
class Deleted:
    """What a deletion by keys did."""

    cleared: Cleared
    missing: int
    """Keys of which there was no object."""


class Miss(NamedTuple):
    """Why a chunk is not there."""

    reason: MissReason
    detail: str
    """The same in a sentence."""


@dataclass(frozen=True, slots=True)
class LookReport:
    """What a lookup would find now."""

    hit_chunks: int
    reason: MissReason | None
    """Why the chunk after the last hit is not there; None if all are."""
    detail: str
    """The same in a sentence; empty if all are there."""
    rest: tuple[tuple[bytes, ...], ...] = ()
    """Chunk by chunk, the keys of the objects of the further chunks that L1 does not have."""
    misses: tuple[Miss, ...] = ()
    """Of each of these chunks, and of an incomplete one behind them, what is to be said if it is the first that is
    nowhere else either. The first has `reason` and `detail`; empty if all of the prompt is there."""


@dataclass(frozen=True, slots=True)
class SessionReport:
    """One request whose lookup is remembered."""

    request_id: str
    client: bytes
    """The connection of its scheduler."""
    age: float
    """Seconds since its newest lookup."""
    hit_chunks: int
    is_collected: bool
    """The scheduler has asked for the result."""
    leased_objects: int
    leased_bytes: int


@dataclass(frozen=True, slots=True)
class SessionPage:
    sessions: tuple[SessionReport, ...]
    next_place: int | None


@dataclass(frozen=True, slots=True)
class Held:
    """What a worker was lent."""

    objects: int
    bytes: int


@dataclass(frozen=True, slots=True)
class WorkerActivity:
    """One registered worker: since when, and what it holds."""

    instance_id: int
    model_name: str
    world_size: int
    transfer_mode: TransferMode
    state: WorkerState
    problem: str | None
    age: float
    """Seconds since it registered."""
    silent_for: float
    """Seconds since its last sign of life."""
    has_pinged: bool
    writing: Held
    """Slots lent to it, or being filled for it."""
    reading: Held
    """Objects lent to it, or being copied for it."""


@dataclass(frozen=True, slots=True)
class WorkerPage:
    workers: tuple[WorkerActivity, ...]
    next_instance_id: int | None
    """The first one that is not on the page."""


QuotaOrigin = Literal["api", "config", "default"]


@dataclass(frozen=True, slots=True)
class QuotaReport:
    """What a tenant may have of L1, and what it has, in bytes."""

    cache_salt: str
    limit: int | None
    reservation: int
    used: int
    origin: QuotaOrigin
    """Who has set it: an operator, the configuration, or nobody, so that the default is in force."""


@dataclass(frozen=True, slots=True)
class QuotaReports:
    """All quotas."""

    default_limit: int | None
    tenants: tuple[QuotaReport, ...]
    """Those with a quota of their own, by cache salt."""
    others: int
    """Further cache salts that have objects."""
    others_used: int
    """Bytes of these."""


@dataclass(frozen=True, slots=True)
class PinReport:
    """A prefix that stays in L1."""

    id: str
    model_name: str
    cache_salt: str
    chunks: int
    objects: int
    """Objects of these chunks that are held: one for each chunk, shard and layout that is there."""
    bytes: int
    """Of these objects."""
    expires_in: float
    """Seconds."""


@dataclass(frozen=True, slots=True)
class PinReports:
    """All pins."""

    budget: int
    """Bytes that may be held."""
    bytes: int
    """Bytes that are held."""
    pins: tuple[PinReport, ...]


@dataclass(frozen=True, slots=True)
class Unpinned:
    """What a removal of pins has let go."""

    pins: int
    bytes: int
    missing: int
    """Of the ids that were given, those that no pin has."""
