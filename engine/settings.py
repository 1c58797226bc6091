"""What the engine needs to know before it starts. Plain values; reading YAML and flags is the service's work."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

MIB = 1 << 20
GIB = 1 << 30

HugePages = Literal["system", "try", "require"]
"""Huge pages for L1: nothing asked and taken as /dev/shm gives them; asked for; nothing else will do."""


QUIET_SECONDS = 10.0
"""Silence after which it is looked whether a client's connection stands: the time between two pings."""


@dataclass(frozen=True, slots=True)
class Liveness:
    """How long the engine waits for clients, in seconds of the monotonic clock."""

    worker_timeout: float = 120.0
    """Silence after which a worker that has pinged before is gone, unless its connection stands; at least three
    heartbeats of 10 s. For so long a scheduler may be without its connection before its requests end."""
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


StorePolicy = Literal["write_through", "write_back", "selective", "skip_l1"]
"""When objects are written to a tier: as soon as they are stored; before they would be evicted; after they were used
several times; as soon as they are stored, after which L1 lets them go."""

PrefetchMode = Literal["best_effort", "wait", "timeout"]
"""How long a lookup waits for a tier: not at all; until all is loaded; for a time that grows with the prompt."""


@dataclass(frozen=True, slots=True)
class PrefetchSettings:
    """How long a lookup may wait for what a tier has."""

    mode: PrefetchMode = "timeout"
    base_ms: float = 500.0
    per_1024_tokens_ms: float = 100.0
    cap_ms: float = 5000.0


@dataclass(frozen=True, slots=True)
class ScrubSettings:
    """Whether and how fast all of a tier is read from time to time, to find what is not what was stored."""

    enabled: bool = False
    """Without it only when an operator asks."""
    every_hours: float = 168.0
    """From the end of a pass to the next one."""
    rate: int = 64 * MIB
    """Bytes a second, at most."""


@dataclass(frozen=True, slots=True)
class L2Settings:
    """One tier of L2: its adapter's type and the settings of that, and how the tier is used."""

    type: str
    name: str
    options: dict[str, Any] = field(default_factory=dict)
    """What the adapter is made with."""
    store_policy: StorePolicy = "write_through"
    selective_uses: int = 2
    """Uses after which `selective` writes an object."""
    promote: bool = True
    """Take over what was loaded from a slower tier."""
    prefetch: PrefetchSettings = field(default_factory=PrefetchSettings)
    required: bool = False
    """Without it the server does not start, and is not ready."""
    threads: int = 4
    """Loads at the same time; half as many saves."""
    scrub: ScrubSettings = field(default_factory=ScrubSettings)


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
    l1_verify: bool = False
    """Take the checksum of each object in L1, and hold it against the bytes before these are used."""
