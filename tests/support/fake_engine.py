"""An engine that says what it is told to: for states that a real one is hardly ever in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from engine import (
    FACTORS,
    AdvisorReport,
    AmbiguousError,
    AwaitJob,
    CheckReport,
    ClearAll,
    Cleared,
    Command,
    Deleted,
    DeleteObjects,
    DropPins,
    DropQuota,
    EngineError,
    EngineStoppedError,
    EngineTimeoutError,
    Estimate,
    FindJob,
    Held,
    HistogramReport,
    JobReport,
    KernelGroupReport,
    L1Report,
    L2Report,
    L2Settings,
    LayoutReport,
    ListJobs,
    ListObjects,
    ListPins,
    ListQuotas,
    ListSessions,
    ListWorkers,
    LookAtQuota,
    LookReport,
    LookupReport,
    LoopReport,
    Miss,
    MonitorReport,
    ObjectPage,
    ObjectReport,
    PinError,
    PinReport,
    PinReports,
    PrefetchError,
    Question,
    QuotaError,
    QuotaReport,
    QuotaReports,
    RecordingError,
    RecordingReport,
    ScrubCounts,
    ScrubReport,
    SessionPage,
    SessionReport,
    SetQuota,
    StartClear,
    StatusReport,
    TierError,
    TierReport,
    TransferReport,
    Unpinned,
    WorkerActivity,
    WorkerPage,
    WorkerReport,
    empty_tier,
)
from service import assets
from service.context import A, Context
from service.document import Document
from service.lifecycle import Lifecycle

DOCUMENT = Document.load(assets.openapi_path())
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
    refusals=(("in_use", 2), ("fragmented", 1), ("quota", 0)),
    cleared_objects=4,
    missed_lookups=(("never_stored", 3), ("evicted", 2)),
    absent_reads=16,
    unready_reads=17,
    verified_objects=34,
    corrupt_objects=35,
)

_GROUP = KernelGroupReport(
    kernel_group_idx=0,
    engine_group_idx=3,
    object_group_idx=0,
    num_layers=2,
    layer_indices=(0, 1),
    tokens_per_block=16,
    slots_per_block=8,
    dtype="bfloat16",
    is_mla=False,
    attention_backend="FlashAttention, NHD",
    engine_kv_format="NL_X_TWO_NB_BS_NH_HS",
    engine_kv_shape="NL x [2, NB, BS, NH, HS]",
    engine_kv_concrete_shape="2 x [2, 4096, 8, 8, 128]",
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
        kernel_groups=(_GROUP, replace(_GROUP, kernel_group_idx=1, layer_indices=(2, 3))),
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
    prefetched_chunks=13,
    seconds=HistogramReport(BOUNDS, (20, 6, 4), 12.5),
    prefetched_objects=26,
)

TIERS = (L2Settings("filesystem", "nvme", required=True), L2Settings("s3", "far"))

NVME = L2Report(
    type="filesystem",
    name="nvme",
    store_policy="write_back",
    is_required=True,
    is_paused=False,
    capacity_bytes=1 << 40,
    loaded_objects=71,
    dropped_saves=72,
    unsaved_evictions=73,
    tier=TierReport(
        name="nvme",
        state="open",
        problem=None,
        used_objects=48,
        used_bytes=48 << 25,
        waiting_loads=3,
        waiting_saves=5,
        found_objects=81,
        absent_objects=82,
        loads=(
            ("done", 70),
            ("absent", 2),
            ("damaged", 1),
            ("unavailable", 0),
            ("refused", 0),
            ("full", 0),
            ("late", 4),
            ("busy", 0),
        ),
        saves=(
            ("done", 60),
            ("absent", 0),
            ("damaged", 0),
            ("unavailable", 7),
            ("refused", 0),
            ("full", 5),
            ("late", 0),
            ("busy", 6),
        ),
        loaded_bytes=70 << 25,
        saved_bytes=60 << 25,
        load_seconds=HistogramReport(BOUNDS, (60, 8, 2), 21.5),
        save_seconds=HistogramReport(BOUNDS, (50, 7, 3), 31.5),
        find_seconds=HistogramReport(BOUNDS, (9, 1, 0), 1.5),
        retries=83,
        work="rescan",
        work_done=17,
        scrub=ScrubReport(
            is_running=True,
            held_by="loads",
            begun_age_seconds=90,
            ended_age_seconds=604_890,
            passes=2,
            latest=ScrubCounts(31, 31 << 25, 1, 4),
            total=ScrubCounts(127, 127 << 25, 3, 5),
        ),
    ),
)
_FAR = empty_tier(TIERS[1])
FAR = replace(_FAR, is_paused=True, tier=_FAR.tier._replace(state="open", problem=None))
"""A tier that does not tell what it holds."""

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
    running_saves=0,
    skipped_stores=12,
    failed_requests=9,
    dropped_messages=10,
    dropped_replies=11,
    lookups=LOOKUPS,
    transfers=TRANSFERS,
    l1=L1,
    l2=(NVME, FAR),
    cut_connections=(("queue", 3), ("frames", 1)),
)
WITHOUT_L2 = replace(HEALTHY, l2=())

UNHEALTHY = replace(
    HEALTHY,
    is_healthy=False,
    problems=("the transfer thread has ended", "the engine thread is late"),
    l2=(replace(NVME, tier=NVME.tier._replace(state="failing", problem="nvme (reading): no such folder")), FAR),
)


CLEARED = JobReport(3, "clear", "done", 9, 9, objects=8, bytes=1 << 28, dry_run=False, age=0.5)

BUSY = TierError("the tier nvme is busy with a rescan; wait until that has ended")
PREFETCHED = JobReport(8, "prefetch", "running", 2, 8, objects=4, bytes=1 << 27, dry_run=False, age=0.25)

QUOTA = QuotaReport("team-a", 1 << 33, 1 << 31, 1 << 30, "api")
PIN = PinReport("9f86d081884c7d65", "llama", "", 8, 8, 8 << 25, 3600.0)

_EVICTED = Miss("evicted", "chunk 2: it was evicted to make room for others")
LOOK = LookReport(
    2,
    *_EVICTED,
    rest=((b"2" * 48,), (), (b"4" * 48,)),
    misses=(_EVICTED, Miss("evicted", "chunk 3: ..."), Miss("cleared", "chunk 4: it was cleared")),
)
"""Of five chunks L1 has the first two and the fourth."""

ANSWERS: dict[type[Command[Any]], Any] = {
    ClearAll: Cleared(objects=8, bytes=1 << 28),
    StartClear: replace(CLEARED, state="running", done=3),
    AwaitJob: CLEARED,
    FindJob: PREFETCHED,
    ListJobs: (replace(CLEARED, id=7, state="running", done=3), CLEARED),
    ListObjects: ObjectPage(
        (ObjectReport(b"k" * 48, "llama", 2, 1, b"f" * 16, "tenant", 1 << 25, True, 1, 2.5),), next_place=512
    ),
    DeleteObjects: Deleted(Cleared(1, 1 << 25), missing=2),
    ListSessions: SessionPage((SessionReport("cmpl-1", b"\0client", 0.5, 12, True, 12, 12 << 25),), next_place=None),
    ListWorkers: WorkerPage(
        (
            WorkerActivity(
                LARGE_ID, "llama", 2, "lmcache_driven", "ready", None, 60.5, 0.5, True, Held(2, 1 << 26), Held(0, 0)
            ),
        ),
        next_instance_id=LARGE_ID + 1,
    ),
    SetQuota: QUOTA,
    DropQuota: QUOTA,
    LookAtQuota: QUOTA,
    ListQuotas: QuotaReports(None, (QUOTA,), 3, 1 << 30),
    ListPins: PinReports(1 << 32, 8 << 25, (PIN,)),
    DropPins: Unpinned(1, 8 << 25, 0),
}
"""By command."""

ADVICE = AdvisorReport(
    is_enabled=True,
    age=600.5,
    policy="lru",
    l1_size=1 << 30,
    references=301_220,
    dropped_references=17,
    sampled_references=37_351,
    sampled_chunks=1604,
    sample_rate=0.124,
    measured_hit_ratio=0.274,
    estimates=tuple(
        Estimate(policy, factor, int(factor * (1 << 30)), 0.1 + factor / 16 + bonus, factor < 4)
        for policy, bonus in (("fifo", 0.0), ("lru", 0.01))
        for factor in FACTORS
    ),
    advice="doubling L1 to 2 GiB would raise hits from 17 % to 24 %.",
)

RECORDING = RecordingReport(True, "/recordings", "recording-20250301-120000-2.jsonl", 5120, 901_120, 3)

LOOPS = (
    LoopReport("engine", 0.2, 0),
    LoopReport("transfer", 0.1, 0),
    LoopReport("monitor", 0.1, 3, 4, "restarting", "KeyError"),
)
PASSING = MonitorReport(
    (
        CheckReport("engine", True, None, None, 0.2, "liveness"),
        CheckReport("socket", True, None, 0.0005, 0.1, "liveness"),
        CheckReport("transfer", True, None, 0.0002, 0.1, "liveness"),
        CheckReport("l2.fs", True, None, 0.01, 1.0, "readiness"),
    ),
    LOOPS,
)


def failing(name: str, detail: str) -> MonitorReport:
    """All checks pass but this one."""
    checks = [replace(check, ok=False, detail=detail) if check.name == name else check for check in PASSING.checks]
    return MonitorReport(tuple(checks), LOOPS)


class FakeEngine:
    """Answers with one report; refuses everything once it was given a reason to."""

    def __init__(
        self,
        report: StatusReport = HEALTHY,
        refusal: EngineError | None = None,
        checks: MonitorReport | None = None,
    ) -> None:
        """`checks`: by default those that go with the report."""
        self.report = report
        self.refusal = refusal
        self.found = checks or (PASSING if report.is_healthy else failing("transfer", report.problems[0]))
        self.clears = 0
        self.l2_clears = 0
        self.paused: dict[str, bool] = {}
        """What was asked last, by tier."""

    def checks(self) -> MonitorReport:
        """What the monitor has found."""
        return self.found

    def status(self) -> StatusReport:
        """The report, or the refusal."""
        if isinstance(self.refusal, EngineStoppedError):
            raise self.refusal
        return self.report

    def ask(self, command: Command[A], timeout: float) -> A:
        """What `ANSWERS` has for this kind of command, or the refusal; clears are counted."""
        if self.refusal is not None:
            raise self.refusal
        self.clears += isinstance(command, ClearAll | StartClear)
        answer: Any = ANSWERS[type(command)]
        return answer  # type: ignore[no-any-return]

    def advice(self) -> AdvisorReport:
        """Always the same."""
        return ADVICE

    def recording(self) -> RecordingReport:
        """One that goes on."""
        return RECORDING

    def record(self, enabled: bool) -> None:
        """Does it, or refuses."""
        if self.refusal is not None:
            raise self.refusal

    def look(self, question: Question, timeout: float) -> LookReport:
        """Two chunks and a reason, or the refusal."""
        if self.refusal is not None:
            raise self.refusal
        return LOOK

    def pin(self, question: Question, ttl: float, timeout: float) -> PinReport:
        """A pin, or the refusal."""
        if self.refusal is not None:
            raise self.refusal
        return PIN

    def prefetch(self, question: Question, timeout: float) -> JobReport:
        """A job, or the refusal."""
        if self.refusal is not None:
            raise self.refusal
        return PREFETCHED

    def tier(self, name: str) -> FakeTier:
        """One of the report's."""
        tiers = {each.name: each.tier for each in self.status().l2}
        if name not in tiers:
            raise TierError(f"there is no L2 tier {name!r}; there are: {', '.join(tiers) or 'none'}")
        return FakeTier(tiers[name], self.refusal)

    def pause_tier(self, name: str, paused: bool, timeout: float) -> None:
        """Remembers it."""
        if self.refusal is not None:
            raise self.refusal
        self.paused[name] = paused

    def clear_tiers(self) -> None:
        """Counts it."""
        self.l2_clears += 1

    def find_in_tiers(self, rows: Sequence[tuple[bytes, ...]], timeout: float) -> int:
        """All but the last."""
        return len(rows) - 1

    def delete_in_tiers(self, keys: Sequence[bytes], timeout: float) -> int:
        """One of them was there."""
        return 1


class FakeTier:
    """A tier that does what it is told, or refuses."""

    def __init__(self, report: TierReport, refusal: EngineError | None) -> None:
        self._report = report
        self._refusal = refusal
        self.works: list[str] = []

    def report(self) -> TierReport:
        """Always the same."""
        return self._report

    def clear(self) -> None:
        """Notes it."""
        self._begin("clear")

    def rescan(self) -> None:
        """Notes it."""
        self._begin("rescan")

    def scrub(self) -> None:
        """Notes it."""
        self._begin("scrub")

    def _begin(self, work: str) -> None:
        if self._refusal is not None:
            raise self._refusal
        self.works.append(work)


class UnsureEngine(FakeEngine):
    """An engine whose model runs with several world sizes, that has had no jobs, and no room for quotas or pins; its
    tiers are busy."""

    def ask(self, command: Command[A], timeout: float) -> A:
        """Remembers no jobs."""
        if isinstance(command, ListJobs):
            none: Any = ()
            return none  # type: ignore[no-any-return]
        if isinstance(command, FindJob):
            nothing: Any = None
            return nothing  # type: ignore[no-any-return]
        if isinstance(command, SetQuota | DropQuota):
            raise QuotaError("too much")
        if isinstance(command, LookAtQuota):
            default: Any = replace(QUOTA, origin="default")
            return default  # type: ignore[no-any-return]
        return super().ask(command, timeout)

    def pin(self, question: Question, ttl: float, timeout: float) -> PinReport:
        """Refuses."""
        raise PinError("too much")

    def record(self, enabled: bool) -> None:
        """Has no folder."""
        raise RecordingError("no folder is configured for recordings")

    def look(self, question: Question, timeout: float) -> LookReport:
        """Asks back."""
        raise AmbiguousError("say which")

    def prefetch(self, question: Question, timeout: float) -> JobReport:
        """Has no worker."""
        raise PrefetchError("no worker of 'llama' is ready, so it is not known what to load")

    def tier(self, name: str) -> FakeTier:
        """Has other work."""
        return FakeTier(super().tier(name).report(), BUSY)

    def clear_tiers(self) -> None:
        """Refuses."""
        raise BUSY

    def delete_in_tiers(self, keys: Sequence[bytes], timeout: float) -> int:
        """Refuses."""
        raise TierError("the storage did not do it: unavailable")


class BusyEngine(FakeEngine):
    """An engine whose jobs take long, and for which no quota was set."""

    def ask(self, command: Command[A], timeout: float) -> A:
        """Does not wait for jobs."""
        if isinstance(command, AwaitJob):
            raise EngineTimeoutError("it takes longer")
        if isinstance(command, DropQuota):
            none: Any = None
            return none  # type: ignore[no-any-return]
        return super().ask(command, timeout)


def stopped() -> FakeEngine:
    """An engine whose thread has ended."""
    refusal = EngineStoppedError("the engine has ended")
    return FakeEngine(refusal=refusal, checks=failing("engine", "the engine thread has ended"))


def stuck() -> FakeEngine:
    """An engine that still reports, but carries out no command."""
    return FakeEngine(refusal=EngineTimeoutError("no answer within 10 s"))


def lifecycle(engine: FakeEngine | None) -> Lifecycle:
    """One that runs with this engine, or has not come so far."""
    made = Lifecycle()
    if engine is not None:
        made.run(engine)  # type: ignore[arg-type]
    return made


def context(engine: FakeEngine | None) -> Context:
    """What resources get while this engine runs, or while none is ready."""
    alive = lifecycle(engine)
    return Context(alive.engine, DOCUMENT, alive)
