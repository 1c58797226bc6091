"""Whether L1 fits where it is to go, decided from numbers before anything is allocated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

MIB: Final = 1 << 20
GIB: Final = 1 << 30

_PAGE_TABLE_PART: Final = 512
"""A page of 4,096 bytes has an entry of 8 in the tables of the process, which count as its memory."""
_PROCESS_BYTES: Final = 64 * MIB
"""What the process takes from the preflight on: 13 MiB when idle, measured, and the buffers of connections."""
_MARGIN_PART: Final = 64
_MARGIN_BYTES: Final = 256 * MIB
"""With the 240 MiB that the process has by then: the L1/64 + 512 MiB beside L1 that a deployment should grant."""


@dataclass(frozen=True, slots=True)
class Room:
    """Something that L1 has to fit into; sizes in bytes."""

    kind: Literal["shm", "limit", "machine"]
    """The file system of the segment, a limit on the memory of a control group, or the machine's memory."""
    name: str
    total: int
    free: int


def refusal(size: int, rooms: Sequence[Room]) -> str | None:
    """Why `size` more bytes of L1 cannot fit, with every number and remedy; None if they can.

    Swap does not count: to read L1 from there takes longer than to compute it.
    """
    tight = [room for room in _tightest(rooms) if room.free < _needed(room, size)]
    if not tight:
        return None
    found = "; ".join(_explained(room, size) for room in tight)
    return f"{found}. {readable(largest(rooms))} would fit: make l1.size smaller, or give it more"


def warnings(size: int, max_size: int, rooms: Sequence[Room]) -> list[str]:
    """What is allowed and still not good: little memory beside L1, and a largest size that can never be reached."""
    return [*_narrow(size, rooms), *_out_of_reach(max_size, rooms)]


def largest(rooms: Sequence[Room]) -> int:
    """How many bytes of L1 fit, a multiple of 1 MiB; 0 if none do."""
    fitting = min(room.free if room.kind == "shm" else _beside_process(room.free) for room in rooms)
    return max(fitting, 0) // MIB * MIB


def readable(size: int, *, up: bool = False) -> str:
    """A size for people, to a tenth of its unit, rounded down unless `up`."""
    unit, name = (GIB, "GiB") if size >= GIB else (MIB, "MiB")
    tenths = -(-10 * size // unit) if up else 10 * size // unit
    return f"{tenths // 10}.{tenths % 10} {name}" if tenths % 10 else f"{tenths // 10} {name}"


def _needed(room: Room, size: int) -> int:
    return size if room.kind == "shm" else size + size // _PAGE_TABLE_PART + _PROCESS_BYTES


def _beside_process(free: int) -> int:
    return (free - _PROCESS_BYTES) * _PAGE_TABLE_PART // (_PAGE_TABLE_PART + 1)


def _tightest(rooms: Sequence[Room]) -> list[Room]:
    """Of several limits the one that leaves least."""
    limits = sorted((room for room in rooms if room.kind == "limit"), key=lambda room: room.free)
    return [room for room in rooms if room.kind != "limit" or room is limits[0]]


def _explained(room: Room, size: int) -> str:
    needed = _needed(room, size)
    enough = room.total + needed - room.free
    numbers = f"{readable(room.free)} of {readable(room.total)} free"
    match room.kind:
        case "shm":
            gibibytes = -(-enough // GIB)
            return (
                f"{room.name} has {numbers} for {readable(needed, up=True)} (docker run --shm-size={gibibytes}g; "
                f"Kubernetes: an emptyDir there with medium: Memory and sizeLimit: {gibibytes}Gi)"
            )
        case "limit":
            return (
                f"the memory limit {room.name} has {numbers} for {readable(needed, up=True)} with page tables and the "
                f"process (raise it to {readable(enough, up=True)} at least)"
            )
    return f"{room.name} has {numbers} for {readable(needed, up=True)} with page tables and the process"


def _narrow(size: int, rooms: Sequence[Room]) -> list[str]:
    advised = size // _MARGIN_PART + _MARGIN_BYTES
    return [
        f"{room.name} has {readable(room.free)} free, which leaves {readable(room.free - size)} beside L1; "
        f"{readable(advised, up=True)} are advised for page tables, the index and buffers"
        for room in _tightest(rooms)
        if room.kind != "shm" and room.free < size + advised
    ]


def _out_of_reach(max_size: int, rooms: Sequence[Room]) -> list[str]:
    return [
        f"l1.max_size of {readable(max_size)} is out of reach while {room.name} has {readable(room.total)} in all"
        for room in rooms
        if room.total < max_size
    ]
