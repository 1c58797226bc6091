"""What operators ask of the engine while it runs. Each is carried out on the engine thread, between two requests.

None of them looks at all objects at once: what concerns many is a job, done a part at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, TypeVar

from engine.answers import (
    Deleted,
    JobReport,
    LookReport,
    ObjectPage,
    PinReport,
    PinReports,
    QuotaReport,
    QuotaReports,
    SessionPage,
    Unpinned,
    WorkerPage,
)
from engine.settings import L2Settings, QuotaSettings, TenantQuota
from engine.status import Cleared

if TYPE_CHECKING:
    from engine.l1.partitions import MakePolicy

A = TypeVar("A")


class Command(Generic[A]):
    """Base of the commands; says the type of the answer."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Selection:
    """Objects that agree with everything given; None agrees with all."""

    model_name: str | None = None
    cache_salt: str | None = None
    older_than: float | None = None
    """Seconds since their stores began."""


@dataclass(frozen=True, slots=True)
class ClearAll(Command[Cleared]):
    """Make everything in L1 invisible at once."""


@dataclass(frozen=True, slots=True)
class StartClear(Command[JobReport]):
    """Make the selected objects invisible, or with `dry_run` count them only. What is stored after this is spared."""

    selection: Selection
    dry_run: bool


@dataclass(frozen=True, slots=True)
class AwaitJob(Command[JobReport | None]):
    """Answered with the job's last report when it has ended; with None at once if there is no such job."""

    job_id: int


@dataclass(frozen=True, slots=True)
class ListJobs(Command[tuple[JobReport, ...]]):
    """Answered with those that run, and the last ones that ended, the newest first."""


@dataclass(frozen=True, slots=True)
class ListObjects(Command[ObjectPage]):
    """A page of at most `limit` selected objects."""

    seat: int
    limit: int
    selection: Selection


@dataclass(frozen=True, slots=True)
class DeleteObjects(Command[Deleted]):
    """Make these objects invisible."""

    keys: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt that may be cached. `tokens` are in [0, 2^32); no `world_size` stands for the only one."""

    tokens: Sequence[int] = field(repr=False)
    model_name: str
    world_size: int | None = None
    cache_salt: str = ""


@dataclass(frozen=True, slots=True)
class Look(Command[LookReport]):
    """Say what a lookup of these chunks would find, without leasing it or counting as a use.

    Raises AmbiguousError when `world_size` is None and the model runs with several.
    """

    model_name: str
    world_size: int | None
    cache_salt: str
    hashes: tuple[bytes, ...]
    """Of the complete chunks."""
    spare_tokens: int
    """Tokens behind the last complete chunk."""


@dataclass(frozen=True, slots=True)
class ListSessions(Command[SessionPage]):
    """A page of at most the sessions on `limit` seats."""

    seat: int
    limit: int


@dataclass(frozen=True, slots=True)
class ListWorkers(Command[WorkerPage]):
    """Workers in the order of their instance ids, from `first` on."""

    first: int | None
    limit: int


@dataclass(frozen=True, slots=True)
class Shrink(Command[JobReport]):
    """Put objects below `capacity` bytes only, and evict what lies behind.

    The job ends when no object lies there any more and the memory was given back.
    """

    capacity: int


@dataclass(frozen=True, slots=True)
class StopShrinking(Command[int]):
    """Take back what a shrink has not given back yet. Answered with the capacity in bytes after that."""


@dataclass(frozen=True, slots=True)
class Grow(Command[None]):
    """Put objects below `capacity` bytes, all of which is allocated. No shrink may run."""

    capacity: int


@dataclass(frozen=True, slots=True)
class ChangePolicy(Command[JobReport]):
    """Let another policy rank what is cached, and what will be."""

    name: str
    make_policy: MakePolicy = field(repr=False)


@dataclass(frozen=True, slots=True)
class ConfigureQuotas(Command[None]):
    """Let these be the quotas of the configuration. Those that operators have set stay."""

    quotas: QuotaSettings


@dataclass(frozen=True, slots=True)
class SetQuota(Command[QuotaReport]):
    """Let this be a tenant's quota, whatever the configuration says. Raises QuotaError."""

    quota: TenantQuota


@dataclass(frozen=True, slots=True)
class DropQuota(Command[QuotaReport | None]):
    """Forget what operators have set for a tenant: the configuration's quota is in force again, or the default.

    Answered with None if they have set nothing. Raises QuotaError.
    """

    cache_salt: str


@dataclass(frozen=True, slots=True)
class LookAtQuota(Command[QuotaReport]):
    """Say what a tenant may have, and what it has."""

    cache_salt: str


@dataclass(frozen=True, slots=True)
class ListQuotas(Command[QuotaReports]):
    """Say that of all tenants that have a quota of their own."""


@dataclass(frozen=True, slots=True)
class SetPin(Command[PinReport]):
    """Keep these chunks in L1, those that are there and those that come, for `ttl` seconds. Raises PinError.

    The same prompt again renews its time.
    """

    model_name: str
    world_size: int | None
    """None stands for all with which the model runs."""
    cache_salt: str
    hashes: tuple[bytes, ...]
    """Of the complete chunks."""
    ttl: float


@dataclass(frozen=True, slots=True)
class DropPins(Command[Unpinned]):
    """Let these pins' chunks be evicted like others."""

    ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ListPins(Command[PinReports]):
    """Say what is pinned."""


@dataclass(frozen=True, slots=True)
class SetPinBudget(Command[None]):
    """Let pins hold at most this many bytes, or a quarter of L1 if that is None. What they hold already stays."""

    budget: int | None


@dataclass(frozen=True, slots=True)
class ConfigureTiers(Command[None]):
    """Let these be the tiers of L2, in this order. All of them have their threads already."""

    tiers: tuple[L2Settings, ...]


@dataclass(frozen=True, slots=True)
class PauseTier(Command[bool]):
    """Ask nothing of a tier any more, or ask it again. Answered with False if there is no tier of that name."""

    name: str
    paused: bool


@dataclass(frozen=True, slots=True)
class StartPrefetch(Command[JobReport]):
    """Load what L2 has of these chunks into L1. Raises AmbiguousError, and PrefetchError if nothing can be loaded."""

    model_name: str
    world_size: int | None
    cache_salt: str
    hashes: tuple[bytes, ...]
    """Of the complete chunks."""


@dataclass(frozen=True, slots=True)
class FindJob(Command[JobReport | None]):
    """Answered with the present report of a job; with None if there is no such job."""

    job_id: int


@dataclass(frozen=True, slots=True)
class Drain(Command[None]):
    """Begin nothing new, since the server is about to stop: lookups find nothing, and stores are skipped as done.

    What lookups have promised before is still retrieved.
    """
