"""An engine that says what it is told to: for states that a real one is hardly ever in."""

from __future__ import annotations

from dataclasses import replace

from engine import (
    Cleared,
    EngineError,
    EngineStoppedError,
    EngineTimeoutError,
    HistogramReport,
    L1Report,
    L2Report,
    LayoutReport,
    LookupReport,
    StatusReport,
    TransferReport,
    WorkerReport,
)

LARGE_ID = (1 << 62) + 1
"""An instance id that a double-precision number cannot hold."""

L1 = L1Report(
    memory_total_bytes=1 << 30,
    memory_used_bytes=1 << 28,
    total_object_count=8,
    leased_object_count=2,
    reserved_object_count=1,
    reserved_bytes=1 << 25,
    hit_chunks=120,
    missed_chunks=14,
    stored_objects=15,
    evicted_objects=6,
    evicted_bytes=6 << 25,
    refused_objects=3,
    cleared_objects=4,
    absent_reads=16,
    unready_reads=17,
)

SERVER_COPIES = WorkerReport(
    instance_id=LARGE_ID,
    model_name="llama",
    world_size=2,
    transfer_mode="lmcache_driven",
    device="cuda",
    state="ready",
    problem=None,
    layout=LayoutReport(
        num_layers=32,
        block_size=16,
        hidden_dim_sizes=(1024, 512),
        dtype="bfloat16",
        is_mla=False,
        num_blocks=4096,
        gpu_kv_format="NL_X_TWO_NB_BS_NH_HS",
        gpu_kv_shape="num_layers x [2, num_blocks, block_size, num_heads, head_size]",
        gpu_kv_concrete_shape="32 x [2, 4096, 16, 8, 128]",
        attention_backend="FLASH_ATTN",
        cache_size_per_token=131072,
    ),
)

ENGINE_COPIES = WorkerReport(
    instance_id=7,
    model_name="/models/deepseek",
    world_size=1,
    transfer_mode="engine_driven",
    device=None,
    state="unsupported",
    problem="a group has a sliding window",
    layout=LayoutReport(
        num_layers=61,
        block_size=64,
        hidden_dim_sizes=None,
        dtype="float8_e4m3fn",
        is_mla=True,
        num_blocks=None,
        gpu_kv_format=None,
        gpu_kv_shape=None,
        gpu_kv_concrete_shape=None,
        attention_backend=None,
        cache_size_per_token=None,
    ),
)

BOUNDS = (0.25, 1.0)

LOOKUPS = LookupReport(
    requests=30,
    without_workers=18,
    without_chunks=19,
    hit_objects=240,
    seconds=HistogramReport(BOUNDS, (20, 6, 4), 12.5),
)

TRANSFERS = tuple(
    TransferReport(
        direction=direction,
        mode=mode,
        begun=40 + number,
        ended=38 + number,
        objects=50 + number,
        bytes=60 + number,
        done=HistogramReport(BOUNDS, (number, 2, 3), 7.5),
        failed=HistogramReport(BOUNDS, (1, 0, number), 2.25),
    )
    for number, (direction, mode) in enumerate(
        [
            ("store", "lmcache_driven"),
            ("retrieve", "lmcache_driven"),
            ("store", "engine_driven"),
            ("retrieve", "engine_driven"),
        ]
    )
)

HEALTHY = StatusReport(
    is_healthy=True,
    problems=(),
    chunk_size=256,
    hash_algorithm="blake3",
    eviction_policy="lru",
    workers=(SERVER_COPIES, ENGINE_COPIES),
    active_sessions=5,
    active_prefetch_jobs=1,
    running_transfers=2,
    skipped_stores=12,
    failed_requests=9,
    dropped_messages=10,
    dropped_replies=11,
    lookups=LOOKUPS,
    transfers=TRANSFERS,
    l1=L1,
    l2=(),
)

UNHEALTHY = replace(
    HEALTHY,
    is_healthy=False,
    problems=("the transfer thread has ended", "the engine thread is late"),
    l2=(L2Report("fs", is_healthy=False), L2Report("redis", is_healthy=True)),
)


class FakeEngine:
    """Answers with one report; refuses everything once it was given a reason to."""

    def __init__(self, report: StatusReport = HEALTHY, refusal: EngineError | None = None) -> None:
        self.report = report
        self.refusal = refusal
        self.clears = 0

    def status(self) -> StatusReport:
        """The report, or the refusal."""
        if isinstance(self.refusal, EngineStoppedError):
            raise self.refusal
        return self.report

    def clear(self, timeout: float) -> Cleared:
        """Counts itself, or the refusal."""
        if self.refusal is not None:
            raise self.refusal
        self.clears += 1
        return Cleared(objects=8, bytes=1 << 28)


def stopped() -> FakeEngine:
    """An engine whose thread has ended."""
    return FakeEngine(refusal=EngineStoppedError("the engine has ended"))


def stuck() -> FakeEngine:
    """An engine that still reports, but carries out no command."""
    return FakeEngine(refusal=EngineTimeoutError("no answer within 10 s"))
