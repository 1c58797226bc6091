"""What happens to the engine, and what it wants done. `Engine.handle` turns the first into the second."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf
from typing import Any, Literal, NamedTuple

from engine.commands import Command
from engine.keys import Namespace
from engine.layouts import KVLayout
from engine.status import TierOutcome
from engine.wire.messages import Message


class ReplyTo(NamedTuple):
    """Where a reply goes: the peer, and the bytes of its request that are echoed."""

    client: bytes
    uid: bytes
    op: bytes


# Events. `now` is always the loop's monotonic clock, in seconds.


@dataclass(frozen=True, slots=True)
class RequestArrived:
    now: float
    received: float
    """When the loop last looked for messages before it found this one: the request may have waited since then."""
    to: ReplyTo
    message: Message


@dataclass(frozen=True, slots=True)
class CopyEnded:
    now: float
    job_id: int
    problem: str | None
    """Why not all bytes were moved; None if they were."""
    checksums: tuple[bytes, ...] = ()
    """Of a store's slots, in the order of its pieces, if the copy wanted them."""
    corrupt: int | None = None
    """Which piece of a retrieve is not what was stored."""
    lost_mapping: int | None = None
    """The worker's mapping, if that is the reason: its memory is not there any more."""


@dataclass(frozen=True, slots=True)
class Summed:
    """What a `Checksum` has asked for."""

    now: float
    ticket: int
    checksums: tuple[bytes, ...] | None
    """In the order of its slots; None if they cannot be had."""


@dataclass(frozen=True, slots=True)
class MapEnded:
    now: float
    mapping_id: int
    problem: str | None


@dataclass(frozen=True, slots=True)
class UnmapEnded:
    now: float
    mapping_id: int


@dataclass(frozen=True, slots=True)
class TransfersEnded:
    """The transfer thread has died; nothing that was given to it will end by itself."""

    now: float
    problem: str


@dataclass(frozen=True, slots=True)
class CommandAsked:
    """An operator wants something; whoever asked waits for the `CommandDone` of this ticket."""

    now: float
    ticket: int
    command: Command[Any]


@dataclass(frozen=True, slots=True)
class Probed:
    """Whether the connection of a `Probe` stands."""

    now: float
    client: bytes
    connected: bool


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed. Comes about once a second."""

    now: float


@dataclass(frozen=True, slots=True)
class Continued:
    """Requests had their turn since `Continue`."""

    now: float


@dataclass(frozen=True, slots=True)
class Discarded:
    """The memory of a `Discard` was given back, or could not be."""

    now: float
    problem: str | None


@dataclass(frozen=True, slots=True)
class Due:
    """The time that `Engine.due` named has come."""

    now: float


@dataclass(frozen=True, slots=True)
class Found:
    """Which objects of a `Find` a tier has."""

    now: float
    ticket: int
    present: tuple[bool, ...]
    """One for each key; all False if the tier cannot tell."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A `Load` has ended, and nobody writes to its slot any more. Only `done` says that the slot holds the object."""

    now: float
    ticket: int
    outcome: TierOutcome
    checksum: bytes | None = None
    """Of the slot, if it holds the object."""


@dataclass(frozen=True, slots=True)
class Saved:
    """A `Save` has ended, and nobody reads its slot any more. `damaged` says that the slot is not what was stored."""

    now: float
    ticket: int
    outcome: TierOutcome


@dataclass(frozen=True, slots=True)
class TierCleared:
    """A tier has begun to delete everything in it."""

    now: float
    tier: str


@dataclass(frozen=True, slots=True)
class TierDamaged:
    """A tier has found that an object in it is not what was saved, though nobody has asked for it."""

    now: float
    tier: str
    key: bytes


Event = (
    RequestArrived
    | CopyEnded
    | MapEnded
    | UnmapEnded
    | TransfersEnded
    | CommandAsked
    | Continued
    | Discarded
    | Due
    | Found
    | Loaded
    | Probed
    | Saved
    | Summed
    | TierCleared
    | TierDamaged
    | Tick
)


# Effects


@dataclass(frozen=True, slots=True)
class Reply:
    to: ReplyTo
    value: Any
    """What `wire.codec.encode_value` takes; None is a reply without a value."""


@dataclass(frozen=True, slots=True)
class Piece:
    """One chunk of a copy: its position in the range, and where its object lies in the arena, in bytes."""

    chunk: int
    offset: int
    checksum: bytes | None = None
    """Of its slot, to be verified before anything is moved."""


@dataclass(frozen=True, slots=True)
class Copy:
    """Move whole blocks between a mapped KV cache and the arena."""

    job_id: int
    mapping_id: int
    direction: Literal["store", "retrieve"]
    """`store`: device to arena. `retrieve`: arena to device."""
    block_ids: list[list[int]]
    """Per group, the ids of the whole range."""
    pieces: tuple[Piece, ...]
    skip_tokens: int = 0
    """Leading tokens of the range whose blocks must not be written."""
    event_handle: bytes = b""
    not_after: float = inf
    """Monotonic time after which no further block may be read or written: it may have a new owner."""
    slot_bytes: int = 0
    """Of each object's slot, all of which its checksum covers; a store wants checksums if it is given."""


@dataclass(frozen=True, slots=True)
class Map:
    """Open a worker's KV cache."""

    mapping_id: int
    layout: KVLayout = field(repr=False)


@dataclass(frozen=True, slots=True)
class Unmap:
    """Let go of a worker's KV cache, after the copies that were asked for before."""

    mapping_id: int
    abandoned: bool = False
    """The worker is gone, and cannot remove the names of its shared memory any more."""


@dataclass(frozen=True, slots=True)
class Probe:
    """Find out whether the connection of a silent client stands; answered with `Probed`."""

    client: bytes


@dataclass(frozen=True, slots=True)
class CommandDone:
    ticket: int
    answer: Any
    """What the command's docstring says."""


@dataclass(frozen=True, slots=True)
class Warn:
    """Something an operator should read in the log."""

    text: str


@dataclass(frozen=True, slots=True)
class Failed:
    """A periodic job has met a defect. What it wanted done is not known; it is called again with the next tick."""

    job: str
    error: Exception


@dataclass(frozen=True, slots=True)
class Continue:
    """There is more to do: answer with `Continued` when those who wait have had their turn."""


@dataclass(frozen=True, slots=True)
class Discard:
    """Give the memory of this range of the arena back; offsets in bytes. Nobody uses it."""

    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Checksum:
    """Compute the checksums of these slots; answered with `Summed`."""

    ticket: int
    slots: tuple[tuple[int, int], ...]
    """Where each lies in the arena, and how long it is, in bytes."""


@dataclass(frozen=True, slots=True)
class Find:
    """Ask a tier which of these objects it has; answered with `Found`."""

    tier: str
    ticket: int
    keys: tuple[bytes, ...] = field(repr=False)


@dataclass(frozen=True, slots=True)
class L1Slot:
    """An object of L1, and where it lies in the arena, in bytes."""

    key: bytes
    namespace: Namespace
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class Load:
    """Read an object from a tier into its slot, and check it; answered with `Loaded`."""

    tier: str
    ticket: int
    slot: L1Slot


@dataclass(frozen=True, slots=True)
class Save:
    """Write an object from its slot to a tier; answered with `Saved`."""

    tier: str
    ticket: int
    slot: L1Slot
    checksum: bytes | None = None
    """What the slot has to have."""


TierEffect = Find | Load | Save

Effect = Reply | Copy | Map | Unmap | Probe | CommandDone | Continue | Discard | Checksum | Warn | Failed | TierEffect
