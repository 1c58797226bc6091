"""Who is at work in the world, and what each of them knows and keeps."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf
from typing import Any

import msgspec

from engine.wire import messages as m
from tests.model.cast import CHUNK, EngineCopies, Role, Shape
from tests.model.device import BlockIds, Device
from tests.model.oracle import Identity, Oracle, Slot


@dataclass(frozen=True)
class Request:
    """A prompt as one scheduler and its workers know it."""

    request_id: str
    tokens: tuple[int, ...]
    salt: str = ""
    wide: bool = False
    """Tokens are sent in the longest encoding instead of the shortest."""

    @property
    def chunks(self) -> int:
        return len(self.tokens) // CHUNK

    @property
    def end(self) -> int:
        """Where the last complete chunk ends."""
        return self.chunks * CHUNK

    def key(self, role: Role, start: int, end: int, shard: int | None) -> m.Key:
        """As a worker sends it, or as its scheduler does, which names no shard."""
        place = (role.model, role.world_size, shard, self._encoded(), start, end, self.request_id)
        return m.Key(*place, cache_salt=self.salt, num_kv_readers=role.readers if shard is None else 0)

    def _encoded(self) -> msgspec.Raw:
        if not self.wide:
            return msgspec.Raw(msgspec.msgpack.encode(self.tokens))
        words = [b"\xce" + token.to_bytes(4, "big") for token in self.tokens]
        return msgspec.Raw(b"\xdd" + len(words).to_bytes(4, "big") + b"".join(words))


Place = tuple[Identity, int]
"""What calls about the same range have in common: where it ends and where it starts; not the request id."""


@dataclass(eq=False)
class Lent:
    """Slots that a worker is filling."""

    request: Request
    start: int
    end: int
    slots: list[Slot]
    since: float


@dataclass(eq=False)
class Registration:
    """A worker as the server should know it, and what it was lent."""

    shape: Shape
    device: Device | None
    state: str
    seen: float
    client: bytes
    """The connection that the server has last heard of it through."""
    stood: float = -inf
    """When the server last found that connection standing."""
    pinged: bool = False
    lent: dict[Place, Lent] = field(default_factory=dict)
    borrowed: dict[Place, deque[list[Slot]]] = field(default_factory=dict)

    def withdraw(self, oracle: Oracle) -> None:
        """The worker loses all that it was lent."""
        for lent in self.lent.values():
            for slot in lent.slots:
                oracle.end_write(slot, written=False)
        for borrowed in self.borrowed.values():
            for slot in [slot for slots in borrowed for slot in slots]:
                oracle.end_read(slot)
        self.lent, self.borrowed = {}, {}


@dataclass(eq=False)
class Worker:
    role: Role
    client: bytes
    registration: Registration | None = None
    """None if the server does not know it."""
    devices: list[Device] = field(default_factory=list)
    """All memory that it ever registered."""
    beats: bool = False
    """It has begun to ping, so it notices when the server does not answer."""

    @property
    def lends(self) -> bool:
        """True if it copies by itself, as far as it is known."""
        return self.registration is not None and isinstance(self.registration.shape, EngineCopies)

    def objects(self, request: Request, start: int, end: int) -> list[Identity]:
        """The chunks of `[start, end)` as this worker stores them; none if it is unknown."""
        if self.registration is None:
            return []
        place = (*self.role.pair, self.role.shard, self.registration.shape.name, request.salt)
        return [Identity(*place, request.tokens[:stop]) for stop in range(start + CHUNK, end + 1, CHUNK)]

    def key(self, request: Request, start: int, end: int) -> m.Key:
        return request.key(self.role, start, end, self.role.shard)

    def place(self, request: Request, start: int, end: int) -> Place:
        return Identity(*self.role.pair, self.role.shard, "", request.salt, request.tokens[:end]), start


@dataclass(eq=False)
class Blocks:
    """Blocks that a client keeps for a transfer until it knows the outcome, or gives up."""

    device: Device
    ids: BlockIds
    kept: bool = True
    outcome: list[bool] = field(default_factory=list)
    """What the reply said; empty before it came."""

    def give_up(self) -> None:
        if self.kept:
            self.kept = False
            self.device.give_blocks(self.ids)

    @property
    def answered(self) -> Callable[[Any], None]:
        """Notes the reply to the transfer."""

        def check(value: tuple[bytes, bool]) -> None:
            assert value[0] == b""
            self.outcome.append(value[1])
            self.give_up()

        return check


@dataclass(eq=False)
class Job:
    """A copy under way, with what its end has to mean."""

    worker: Worker
    blocks: Blocks
    slots: list[Slot]
    not_after: float
    """Later the client may have given up, and its blocks may have a new owner."""
    is_store: bool
    skip_tokens: int = 0

    def end(self, oracle: Oracle, *, done: bool) -> None:
        """The copy has ended; all bytes are where they belong, or at least nowhere else."""
        for slot in self.slots:
            if self.is_store:
                oracle.end_write(slot, written=done)
            else:
                oracle.end_read(slot)
        if self.is_store or not self.blocks.kept:
            self.blocks.device.check_untouched()
        elif done:
            data = [slot.data for slot in self.slots]
            self.blocks.device.check_retrieved(self.blocks.ids, self.skip_tokens, data)
        else:
            self._check_spoilt()

    def drop(self) -> None:
        """The client does not wait any longer."""
        if self.blocks.kept and not self.is_store:
            self._check_spoilt()
        self.blocks.give_up()

    def _check_spoilt(self) -> None:
        self.blocks.device.check_spoilt(self.blocks.ids, self.skip_tokens, len(self.slots))
