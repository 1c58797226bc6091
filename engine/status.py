"""What the engine tells operators: frozen reports, built from counters on the engine thread, read by any thread."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from engine.histogram import HistogramReport
from engine.settings import StorePolicy

TierOutcome = Literal["done", "absent", "damaged", "unavailable", "refused", "full", "late", "busy"]
"""What became of an object's load or save in a tier.

`absent`: it is not there. `damaged`: it was, but not what was stored; it was put aside. `unavailable`: the storage
failed or is known to. `refused`: the storage does not allow it. `full`: it has no room. `late`: it waited too long.
`busy`: too much is waiting already.
"""
TransferDirection = Literal["store", "retrieve"]
TransferMode = Literal["lmcache_driven", "engine_driven"]
WorkerState = Literal["mapping", "ready", "unsupported", "broken"]
MissReason = Literal[
    "never_stored",
    "evicted",
    "expired",
    "cleared",
    "quarantined",
    "being_written",
    "refused",
    "chunk_incomplete",
    "layout_unknown",
    "not_remembered",
]
"""Why a chunk is not there.

`refused`: no room could be made for it. `expired`: its time was over, or its writer's was. `layout_unknown`: no worker
of the model is ready, so nothing can be promised. `not_remembered`: it was there once, and why it is not is forgotten.
"""

CutReason = Literal["queue", "open_message", "unread_replies", "frames", "connections"]
"""Why a client's connection is cut off: too much of it waits; a message without an end; too much that it does not read;
a message of too many frames; too many connections."""

RefusalReason = Literal["in_use", "fragmented", "quota"]
"""Why no room can be made for an object.

`in_use`: too much is leased, being written, or reserved for others. `fragmented`: enough could be evicted, but no
contiguous range. `quota`: the cache salt is at its limit, and what it has is in use.
"""


@dataclass(frozen=True, slots=True)
class KernelGroupReport:
    """Layers of one worker that lie alike and share block ids."""

    kernel_group_idx: int
    """Its place among the worker's groups."""
    engine_group_idx: int
    """The engine's own number for the block ids."""
    object_group_idx: int
    """Which object of a chunk holds it."""
    num_layers: int
    layer_indices: tuple[int, ...]
    """Which of the registered tensors; empty where the transfer mode does not tell."""
    tokens_per_block: int
    slots_per_block: int
    """Places for tokens in a block of the tensors; fewer than its tokens where the engine compresses them."""
    dtype: str
    is_mla: bool
    attention_backend: str | None
    """Whose arrangement it is, told from the shape; None where the transfer mode does not tell."""
    engine_kv_format: str
    """Name of the arrangement, such as NL_X_NB_NH_BS_CS."""
    engine_kv_shape: str
    """The arrangement in symbols, such as `NL x [NB, NH, BS, CS]`."""
    engine_kv_concrete_shape: str
    """The same with numbers."""


@dataclass(frozen=True, slots=True)
class LayoutReport:
    """How one worker's KV cache is laid out. None stands for what its transfer mode does not tell."""

    num_layers: int | None
    block_size: int | None
    """Tokens per block."""
    hidden_dim_sizes: tuple[int, ...] | None
    """Elements per token and layer, one entry for each distinct value."""
    dtype: str | None
    is_mla: bool | None
    num_blocks: int | None
    gpu_kv_format: str | None
    """Name of the arrangement, such as NL_X_NB_NH_BS_TWO_HS."""
    gpu_kv_shape: str | None
    """The arrangement in symbols, such as `num_layers x [num_blocks, num_heads, block_size, 2 * head_size]`."""
    gpu_kv_concrete_shape: str | None
    """The same with numbers."""
    attention_backend: str | None
    cache_size_per_token: int | None
    """Bytes per token over all layers."""
    kernel_groups: tuple[KernelGroupReport, ...] = ()
    """Empty for a registration that could not be understood."""


@dataclass(frozen=True, slots=True)
class WorkerReport:
    """One registered worker of an inference engine."""

    instance_id: int
    model_name: str
    world_size: int
    transfer_mode: TransferMode
    device: str | None
    """Where its KV cache lives: `cpu`, `cuda`; None where the transfer mode does not tell."""
    state: WorkerState
    problem: str | None
    """Why it is broken or unsupported; None otherwise."""
    layout: LayoutReport


@dataclass(frozen=True, slots=True)
class L1Report:
    """L1 in numbers; counts are totals since the start."""

    memory_total_bytes: int
    memory_used_bytes: int
    total_object_count: int
    leased_object_count: int
    reserved_object_count: int
    reserved_bytes: int
    """Bytes of the objects that are being written."""
    hit_chunks: int
    """Chunks found by lookups."""
    missed_chunks: int
    """Chunks that lookups asked for and did not find."""
    stored_objects: int
    evicted_objects: int
    evicted_bytes: int
    refused_objects: int
    """Objects not stored because no room could be made."""
    refusals: tuple[tuple[RefusalReason, int], ...]
    """The same by reason."""
    cleared_objects: int
    missed_lookups: tuple[tuple[MissReason, int], ...]
    """Lookups that did not find all they asked for, by the reason of the first chunk that was not there."""
    absent_reads: int
    """Objects that retrieves wanted and that were not there."""
    unready_reads: int
    """Objects that retrieves wanted while they were still being written."""
    verified_objects: int
    """How often an object was held against its checksum before its bytes were used."""
    corrupt_objects: int
    """How often it was found not to be what was stored."""


class LookupReport(NamedTuple):
    """Lookups that were answered with a result; counts are totals since the start."""

    # PERF: A named tuple, since nearly every report has a new one, and they cost half of a dataclass.

    requests: int
    without_workers: int
    """Lookups of a model of which no worker can be served now: nothing was looked for."""
    without_chunks: int
    """Lookups of prompts shorter than a chunk."""
    hit_objects: int
    """Objects found: one for each chunk, shard and layout."""
    prefetched_chunks: int
    """Chunks that L2 has added to what L1 had."""
    seconds: HistogramReport
    """How long the engine thread took for each."""
    prefetched_objects: int = 0
    """Objects of the chunks that L2 has added; they are among `hit_objects`."""


class TransferReport(NamedTuple):
    """The stores or the retrieves of one mode; counts are totals since the start."""

    direction: TransferDirection
    mode: TransferMode
    begun: int
    """Those for which bytes had to move."""
    ended: int
    """Of those, the ones that have ended, well or not."""
    objects: int
    bytes: int
    """Objects moved, and their bytes."""
    done: HistogramReport
    failed: HistogramReport
    """From arrival to reply, by what was answered; those for which nothing had to move are among them."""


TierState = Literal["opening", "open", "failing", "closed"]
"""`opening`: its storage was not reached yet. `failing`: it fails; it is asked again from time to time."""


ScrubHold = Literal["pause", "storage", "loads"]
"""Why a scrub does not go on: an operator has paused the tier; its storage fails; loads wait for a thread."""


class ScrubCounts(NamedTuple):
    """What a scrub has gone through."""

    objects: int = 0
    """Those that were read and checked, the damaged ones among them."""
    bytes: int = 0
    """Of those."""
    damaged: int = 0
    """Objects that are not what was stored. They are put aside."""
    skipped: int = 0
    """Objects that could not be read, are too large to be checked, or have a name that no key has."""


class ScrubReport(NamedTuple):
    """The passes through all of a tier that check its objects."""

    is_running: bool = False
    """A pass is under way."""
    held_by: ScrubHold | None = None
    """Why it waits; None if it does not."""
    begun_age_seconds: int | None = None
    """Whole seconds since the last pass began; None if none has."""
    ended_age_seconds: int | None = None
    """The same since the last complete pass ended."""
    passes: int = 0
    """Those that are complete."""
    latest: ScrubCounts = ScrubCounts()
    """Of the pass under way, or else of the last one."""
    total: ScrubCounts = ScrubCounts()
    """Since the tier was started."""


class TierReport(NamedTuple):
    """What the threads of one tier have done; counts are totals since they were started."""

    name: str
    state: TierState
    problem: str | None
    """Why it is not open, or what it cannot do now; None otherwise."""
    used_objects: int | None
    used_bytes: int | None
    """What is stored, of all servers together; None where the storage does not tell."""
    waiting_loads: int
    waiting_saves: int
    """Objects that wait for a thread, or are with one."""
    found_objects: int
    absent_objects: int
    """Objects that lookups asked for and that were there, or not."""
    loads: tuple[tuple[TierOutcome, int], ...]
    saves: tuple[tuple[TierOutcome, int], ...]
    """Objects by what became of them."""
    loaded_bytes: int
    saved_bytes: int
    load_seconds: HistogramReport
    save_seconds: HistogramReport
    find_seconds: HistogramReport
    """How long the storage took for each that it has done."""
    retries: int
    """Calls that were made again since the storage had failed."""
    work: str | None
    """What an operator has asked for and is under way: `clear`, `rescan`."""
    work_done: int
    """Objects that are done with, of that."""
    scrub: ScrubReport = ScrubReport()


@dataclass(frozen=True, slots=True)
class L2Report:
    """One tier of L2."""

    type: str
    name: str
    store_policy: StorePolicy
    is_required: bool
    is_paused: bool
    capacity_bytes: int | None
    """As configured; None stands for no limit of its own."""
    loaded_objects: int
    """Objects that came from here into L1."""
    dropped_saves: int
    """Objects not written since too much was waiting."""
    unsaved_evictions: int
    """Objects that L1 evicted before they were written back."""
    tier: TierReport

    @property
    def is_healthy(self) -> bool:
        return self.tier.problem is None


@dataclass(frozen=True, slots=True)
class Cleared:
    """What a clear made invisible."""

    objects: int
    bytes: int


@dataclass(frozen=True, slots=True)
class StatusReport:
    """The engine's state after one batch of events."""

    is_healthy: bool
    problems: tuple[str, ...]
    """Why it is not healthy, one sentence each."""
    chunk_size: int
    hash_algorithm: str
    eviction_policy: str
    workers: tuple[WorkerReport, ...]
    active_sessions: int
    active_prefetch_jobs: int
    running_transfers: int
    running_saves: int
    """Objects that are being written to L2; while the server drains, also those that will be."""
    skipped_stores: int
    """Stores of unsupported workers, and stores while the server drains: answered as done, and nothing was stored."""
    failed_requests: int
    """Requests answered with their failure value because they could not be decoded or did not fit."""
    dropped_messages: int
    """Messages that could not be answered at all: no request id, an unknown operation."""
    dropped_replies: int
    """Replies whose client had vanished or did not read."""
    lookups: LookupReport
    transfers: tuple[TransferReport, ...]
    """One for each direction and mode."""
    l1: L1Report
    l2: tuple[L2Report, ...]
    cut_connections: tuple[tuple[CutReason, int], ...] = ()
    """Clients' connections that were cut off, by reason."""
