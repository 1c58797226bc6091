"""A simulated transfer thread: it does one thing after the other, at times that the test chooses."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from engine.checksum import checksum
from engine.events import Checksum, Copy, CopyEnded, Event, Map, MapEnded, Summed, TransfersEnded, Unmap, UnmapEnded
from engine.layouts import KVLayout
from tests.model.device import Device


@dataclass(eq=False)
class Task:
    """One effect under way."""

    effect: Copy | Map | Unmap
    device: Device | None
    """Whose memory it is about."""
    moved: int = 0
    """Pieces of a copy that have been moved."""
    checksums: list[bytes] = field(default_factory=list)
    """Of what was stored, as far as the copy wants them."""
    corrupt: int | None = None
    """Which piece was not what was stored."""


class Transfers:
    """What the engine has asked for and not been told the end of. Really moves bytes between devices and the arena."""

    def __init__(self, arena: bytearray) -> None:
        self.arena = arena
        self.tasks: deque[Task] = deque()
        self.ended = False
        self.ending = False
        """While that is being told."""
        self._devices: dict[int, Device] = {}
        """By mapping id, from the request to map until the request to unmap."""
        self._mapped: set[int] = set()

    def submit(self, effect: Copy | Map | Unmap, device: Device | None = None) -> Task:
        """`device` is known for a Map only; the others name its mapping."""
        assert not self.ended or isinstance(effect, Unmap), "asked a dead transfer thread: nobody will answer"
        if isinstance(effect, Map):
            assert device is not None or effect.mapping_id in self._devices
            assert isinstance(effect.layout, KVLayout)
            # What could not be opened is tried again.
            assert effect.mapping_id not in self._mapped
            device = self._devices.setdefault(effect.mapping_id, device)
        else:
            assert effect.mapping_id in self._devices, "this mapping was let go of already"
            device = self._devices[effect.mapping_id]
        if isinstance(effect, Unmap):
            del self._devices[effect.mapping_id]
        task = Task(effect, device)
        self.tasks.append(task)
        return task

    def copies_of(self, device: Device) -> int:
        return sum(task.device is device and isinstance(task.effect, Copy) for task in self.tasks)

    def move_piece(self, now: float) -> None:
        """A part of the copy at hand, while the world goes on."""
        task = self.tasks[0]
        if isinstance(task.effect, Copy) and task.moved < len(task.effect.pieces):
            self._move(task, task.effect, now)

    def finish(self, now: float, problem: str | None) -> tuple[Task, Event]:
        """Ends the task at hand, as a success unless there is a problem; time can be the problem."""
        task = self.tasks.popleft()
        effect = task.effect
        match effect:
            case Copy():
                assert effect.mapping_id in self._mapped, "a copy of memory that is not mapped"
                while problem is None and task.moved < len(effect.pieces):
                    problem = self._move(task, effect, now)
                summed = task.checksums if problem is None else []
                return task, CopyEnded(now, effect.job_id, problem, tuple(summed), task.corrupt)
            case Map():
                if problem is None:
                    self._mapped.add(effect.mapping_id)
                return task, MapEnded(now, effect.mapping_id, problem)
            case Unmap():
                self._mapped.discard(effect.mapping_id)
                return task, UnmapEnded(now, effect.mapping_id)

    def sum_up(self, now: float, effect: Checksum) -> Summed:
        """Done at once, since those who wait for it can do nothing meanwhile."""
        assert not self.ended, "asked a dead transfer thread: nobody will answer"
        return Summed(now, effect.ticket, tuple(self._checksum(*slot) for slot in effect.slots))

    def end(self, now: float) -> Event:
        """The thread dies, in the middle of whatever it does."""
        self.ended = True
        self.tasks.clear()
        return TransfersEnded(now, "the transfer thread has ended")

    def _move(self, task: Task, copy: Copy, now: float) -> str | None:
        if now > copy.not_after:
            return "too late"
        assert task.device is not None
        piece, size = copy.pieces[task.moved], task.device.shape.object_bytes
        if piece.checksum is not None and self._checksum(piece.offset, copy.slot_bytes) != piece.checksum:
            task.corrupt = task.moved
            return "corrupt"
        task.moved += 1
        if copy.direction == "store":
            self.arena[piece.offset : piece.offset + size] = task.device.gather(copy.block_ids, piece.chunk)
            if copy.slot_bytes:
                task.checksums.append(self._checksum(piece.offset, copy.slot_bytes))
        else:
            data = bytes(self.arena[piece.offset : piece.offset + size])
            task.device.scatter(copy.block_ids, piece.chunk, data, copy.skip_tokens)
        return None

    def _checksum(self, offset: int, size: int) -> bytes:
        return checksum(bytes(self.arena[offset : offset + size]))
