"""What the engine needs to know before it starts. Plain values; reading YAML and flags is the service's work."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

MIB = 1 << 20
GIB = 1 << 30

HugePages = Literal["system", "try", "require"]
"""Huge pages for L1: nothing asked and taken as /dev/shm gives them; asked for; nothing else will do."""


@dataclass(frozen=True, slots=True)
class Liveness:
    """How long the engine waits for clients, in seconds of the monotonic clock."""

    worker_timeout: float = 120.0
    """Silence after which a worker that has pinged before is gone; at least three heartbeats of 10 s."""
    registration_grace: float = 3600.0
    """The same for a worker that never pinged: clients ping only after their first transfer."""
    session_ttl: float = 600.0
    """Silence after which a request that was never ended is forgotten."""
    lease_ttl: float = 300.0
    """Age at which the unused leases of a lookup end."""
    reservation_ttl: float = 600.0
    """Age at which others may store the chunks of a slot lent for writing, and its commit is refused."""
    transfer_max_age: float = 10.0
    """Age at which a store or retrieve is given up rather than carried on: its blocks may have a new owner."""
    flag_reconnects: bool = True
    """Answer False once to a connection whose first message is a ping, so that it drops replies it will never get."""


@dataclass(frozen=True, slots=True)
class L2Settings:
    """One L2 adapter: its type and the settings of its own."""

    type: str
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TenantQuota:
    """What one cache salt may have of L1, in bytes."""

    cache_salt: str
    limit: int | None = None
    """None stands for no limit."""
    reservation: int = 0
    """What others cannot take away from it."""


@dataclass(frozen=True, slots=True)
class QuotaSettings:
    """The quotas that the configuration gives."""

    default_limit: int | None = None
    """In bytes, of each cache salt that has no quota of its own; None stands for no limit."""
    tenants: tuple[TenantQuota, ...] = ()


@dataclass(frozen=True, slots=True)
class RecordingSettings:
    """Where the lookups of the live traffic are written to as a trace, and how much of them is kept; sizes in bytes."""

    enabled: bool = False
    """From the start on."""
    folder: str | None = None
    max_file_size: int = 64 * MIB
    max_files: int = 8


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """Everything the engine is configured with; sizes in bytes, times in seconds."""

    host: str = "127.0.0.1"
    port: int = 5555
    chunk_size: int = 256
    hash_algorithm: str = "blake3"
    liveness: Liveness = field(default_factory=Liveness)
    l1_size: int = GIB
    l1_max_size: int | None = None
    """How far L1 can be grown while it runs; None stands for `l1_size`."""
    eviction_policy: str = "hit_density"
    l2: tuple[L2Settings, ...] = ()
    drain_timeout: float = 10.0
    """How long a stop waits for running transfers."""
    huge_pages: HugePages = "system"
    pin_budget: int | None = None
    """Bytes of L1 that pins may hold; None stands for a quarter of it."""
    quotas: QuotaSettings = field(default_factory=QuotaSettings)
    advisor_enabled: bool = True
    """Estimate from the traffic what L1 would do with another size or policy."""
    recording: RecordingSettings = field(default_factory=RecordingSettings)
