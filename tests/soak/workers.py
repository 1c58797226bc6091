"""The workers of an engine, in both transfer modes. Every byte that they get is held against its object's pattern."""

from __future__ import annotations

import mmap
import os
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import NamedTuple

import msgspec
import zmq

from engine.wire import messages as m
from tests.soak.cast import (
    BLOCK_TOKENS,
    BLOCKS_PER_CHUNK,
    CHUNK,
    EngineCopies,
    Identity,
    Model,
    ServerCopies,
    Tokens,
    difference,
    pattern,
)
from tests.soak.wire import LIMIT, Connection, Diary, Tally, WrongError
from tests.unit.engine.support import HANDLE, SHM, key

BEAT_SECONDS = 1.0
WORKER_TIMEOUT = 10.0
"""The server's: a worker that was silent for so long has lost what it was lent."""
SLOW = 0.004
"""How often a worker takes its time with a slot."""
FILLER = b"not of any chunk"
UNCOMMITTED = b"never committed!"
_segments = count()


class StalledError(Exception):
    """This machine did not let the client run for so long that what it did then means nothing."""


@dataclass(frozen=True)
class Request:
    """A prompt under way."""

    id: str
    tokens: Tokens
    salt: str

    @property
    def chunks(self) -> int:
        return len(self.tokens) // CHUNK

    def key(self, model: Model, start: int, end: int, shard: int | None) -> m.Key:
        return key(
            self.tokens,
            start * CHUNK,
            end * CHUNK,
            worker_id=shard,
            model_name=model.name,
            world_size=model.world_size,
            request_id=self.id,
            cache_salt=self.salt,
        )


class Setting(NamedTuple):
    """What all workers of a client have in common."""

    context: zmq.Context[zmq.Socket[bytes]]
    url: str
    model: Model
    dice: random.Random
    tally: Tally
    diary: Diary
    seed: int
    idle: Callable[[], None]
    stop: threading.Event


class Worker:
    """One registered instance. `start_...` sends, `finish_...` waits for the answer and checks what it means."""

    def __init__(self, setting: Setting, instance_id: int, shard: int) -> None:
        self.instance_id = instance_id
        self.shard = shard
        self.setting = setting
        self.connection = Connection(setting.context, setting.url, setting.tally, setting.diary, setting.idle)
        self.heard = time.monotonic()
        """When the last message was sent of which it is known that it has arrived."""
        self.must_register = False
        self._ping: tuple[bytes, float] | None = None
        self._beaten = 0.0

    def beat(self) -> None:
        """Pings if it is time; an answer of False means that the server wants everything to begin anew."""
        if self._ping is not None and self.connection.ready(self._ping[0]):
            if not self.connection.result(self._ping[0]):
                self.setting.tally.add("pings answered with False")
                self.must_register = True
            self.heard, self._ping = self._ping[1], None
        now = time.monotonic()
        if self._ping is None and now - self._beaten > BEAT_SECONDS:
            self._beaten = now
            self._ping = self.connection.start(m.Ping(self.instance_id)), now

    def vanish(self) -> None:
        """Says nothing more, as one that was killed."""
        self.connection.close()

    def _identity(self, request: Request, chunk: int, layout: str) -> Identity:
        tokens = request.tokens[: (chunk + 1) * CHUNK]
        return Identity(self.setting.model.name, self.shard, layout, request.salt, tokens)

    def _compare(self, identity: Identity, found: bytes, expected: bytes) -> None:
        if found != expected:
            told = difference(found, expected, self.setting.seed)
            raise WrongError(f"WRONG BYTES in {identity}: {told}")
        self.setting.tally.add("bytes verified", len(found))


class CopiedWorker(Worker):
    """Registers a KV cache that the server copies blocks of."""

    def __init__(self, setting: Setting, instance_id: int, shard: int, layout: ServerCopies) -> None:
        super().__init__(setting, instance_id, shard)
        self.layout = layout
        self._free = list(range(1, layout.num_blocks))
        self._path, self._memory = self._segment()
        self._expected = bytearray(self._memory)
        self._stores: dict[bytes, list[int]] = {}
        self._retrieves = 0

    def register(self) -> None:
        model = self.setting.model
        sent = time.monotonic()
        asked = self.layout.registration(self.instance_id, model.name, model.world_size, f"/{self._path.name}")
        self.connection.ask(asked)
        self.heard, self.must_register = sent, False
        self.setting.tally.add("registrations")

    def move(self) -> None:
        """Registers with other memory; what was on its way to and from the former is waited for."""
        self.finish_stores()
        former = self._path
        self._free = list(range(1, self.layout.num_blocks))
        self._path, self._memory = self._segment()
        self._expected = bytearray(self._memory)
        self.register()
        former.unlink()

    def start_store(self, request: Request, start: int, end: int) -> None:
        if (end - start) * BLOCKS_PER_CHUNK > len(self._free):
            self.finish_stores()
        blocks = self._take(end - start)
        for chunk in range(start, end):
            data = pattern(self._identity(request, chunk, self.layout.name), self.layout.object_bytes)
            self._write(self._blocks_of(blocks, chunk - start), data)
        asked = m.Store(request.key(self.setting.model, start, end, self.shard), self.instance_id, [blocks], HANDLE)
        self._stores[self.connection.start(asked)] = blocks

    def finish_store(self) -> None:
        """The answer may come later, as in an engine, which goes on meanwhile."""

    def finish_stores(self) -> None:
        while self._stores:
            uid, blocks = next(iter(self._stores.items()))
            handle, stored = self.connection.result(uid)
            if handle != b"" or type(stored) is not bool:
                raise WrongError(f"a store is answered {(handle, stored)}")
            self.setting.tally.add("stores done" if stored else "stores that failed")
            del self._stores[uid]
            self._give_back(blocks)

    def retrieve(self, request: Request, start: int, end: int, skip: int) -> Callable[[], bool]:
        """Sends it; what is returned waits for the answer."""
        if (end - start) * BLOCKS_PER_CHUNK > len(self._free):
            self.finish_stores()
        blocks = self._take(end - start)
        self._retrieves += 1
        keyed = request.key(self.setting.model, start, end, self.shard)
        uid = self.connection.start(m.Retrieve(keyed, self.instance_id, [blocks], HANDLE, skip * BLOCK_TOKENS))
        return lambda: self._finish_retrieve(uid, request, start, end, blocks, skip)

    def leave(self) -> None:
        """When it is answered nobody touches the memory any more."""
        self.finish_stores()
        self.connection.ask(m.UnregisterKVCache(self.instance_id))
        self._check_all("after it has left")
        self.connection.finish()
        self._path.unlink()

    def vanish(self) -> None:
        super().vanish()
        self._path.unlink()

    def _finish_retrieve(
        self, uid: bytes, request: Request, start: int, end: int, blocks: list[int], skip: int
    ) -> bool:
        handle, done = self.connection.result(uid)
        if handle != b"" or type(done) is not bool:
            raise WrongError(f"a retrieve is answered {(handle, done)}")
        self._retrieves -= 1
        for chunk in range(start, end):
            places = self._blocks_of(blocks, chunk - start)
            if done:
                identity = self._identity(request, chunk, self.layout.name)
                self._check(identity, places, skip if chunk == start else 0)
        for block in blocks:
            self._fill(block)
        self._free += blocks
        self._check_all("beside a retrieve")
        return done

    def _check(self, identity: Identity, blocks: list[int], skip: int) -> None:
        """These blocks have the object, but for the first `skip`, which were not to be written."""
        expected, found, size = bytearray(), bytearray(), self.layout.block_bytes
        data = pattern(identity, self.layout.object_bytes)
        for place, at in self._places(blocks):
            part = data[place * size : (place + 1) * size]
            if place % BLOCKS_PER_CHUNK < skip:
                part = self._expected[at : at + size]
            expected += part
            found += self._memory[at : at + size]
        self._compare(identity, bytes(found), bytes(expected))

    def _check_all(self, when: str) -> None:
        """Nobody has written where nothing was to be written."""
        if not self._retrieves and self._memory[:] != self._expected:
            pairs = enumerate(zip(self._memory[:], self._expected, strict=True))
            offset = next(index for index, (one, other) in pairs if one != other)
            seen = self._memory[offset : offset + 16]
            raise WrongError(f"byte {offset} of a worker's KV cache was written {when}: {seen!r}")

    def _places(self, blocks: list[int]) -> list[tuple[int, int]]:
        """Number of each piece within the object, and where its bytes are."""
        layout, per_chunk = self.layout, BLOCKS_PER_CHUNK
        return [
            (layer * per_chunk + index, layer * layout.layer_bytes + block * layout.block_bytes)
            for layer in range(layout.layers)
            for index, block in enumerate(blocks)
        ]

    def _write(self, blocks: list[int], data: bytes) -> None:
        size = self.layout.block_bytes
        for place, at in self._places(blocks):
            part = data[place * size : (place + 1) * size]
            self._memory[at : at + size] = part
            self._expected[at : at + size] = part

    def _fill(self, block: int) -> None:
        self._write(
            [block], (FILLER * (self.layout.block_bytes // len(FILLER))) * self.layout.layers * BLOCKS_PER_CHUNK
        )

    def _take(self, chunks: int) -> list[int]:
        self.setting.dice.shuffle(self._free)
        taken = self._free[: chunks * BLOCKS_PER_CHUNK]
        del self._free[: chunks * BLOCKS_PER_CHUNK]
        return taken

    def _give_back(self, blocks: list[int]) -> None:
        """The engine uses them for something else at once."""
        for block in blocks:
            self._fill(block)
        self._free += blocks

    def _blocks_of(self, blocks: list[int], index: int) -> list[int]:
        return blocks[index * BLOCKS_PER_CHUNK : (index + 1) * BLOCKS_PER_CHUNK]

    def _segment(self) -> tuple[Path, mmap.mmap]:
        size = self.layout.layers * self.layout.layer_bytes
        path = SHM / f"lmcache_kv_{os.getpid()}_{next(_segments)}"
        path.write_bytes(FILLER * (size // len(FILLER)))
        with path.open("r+b") as file:
            return path, mmap.mmap(file.fileno(), size)


class LentWorker(Worker):
    """Copies by itself, into and out of slots of the shared pool."""

    def __init__(self, setting: Setting, instance_id: int, shard: int, layout: EngineCopies) -> None:
        super().__init__(setting, instance_id, shard)
        self.layout = layout
        self._pool: mmap.mmap | None = None
        self._lent: tuple[Request, int, int, float, m.PrepareStoreReply] | None = None

    def register(self) -> None:
        model, sent = self.setting.model, time.monotonic()
        asked = self.layout.registration(self.instance_id, model.name, model.world_size)
        pool = msgspec.convert(self.connection.ask(asked), m.RegisterEngineDrivenReply)
        if not pool.shm_name or not pool.pool_size:
            raise WrongError("a worker that copies by itself is offered no pool")
        if self._pool is None:
            with (SHM / pool.shm_name).open("r+b") as file:
                self._pool = mmap.mmap(file.fileno(), pool.pool_size)
        self.heard, self.must_register = sent, False
        self.setting.tally.add("registrations")

    def move(self) -> None:
        """Registers once more."""
        self.register()

    def start_store(self, request: Request, start: int, end: int) -> None:
        keyed, sent = request.key(self.setting.model, start, end, self.shard), time.monotonic()
        reply = self.connection.ask(m.PrepareStore(keyed, self.instance_id))
        self.heard = sent
        lent = msgspec.convert(reply, m.PrepareStoreReply)
        self._check_slots(lent.context.slots)
        places = lent.context.chunk_indices
        if (
            len(places) != len(lent.context.slots)
            or places != sorted(set(places))
            or not all(0 <= place < end - start for place in places)
        ):
            raise WrongError(f"slots are lent for the chunks {places} of {end - start}")
        self._lent = request, start, end, sent, lent

    def finish_store(self) -> None:
        """Writes, and commits; some are never committed, as if the worker had died between."""
        if self._lent is None:
            return
        (request, start, end, sent, lent), self._lent = self._lent, None
        slots = lent.context.slots
        if not slots:
            self.setting.tally.add("stores that were skipped")
            return
        for slot in slots:
            self._put(slot, UNCOMMITTED * (slot.length // len(UNCOMMITTED)), sent)
        self._dawdle()
        if self.setting.dice.random() < 0.02:
            self.setting.tally.add("stores given up between prepare and commit")
            return
        objects = [self._identity(request, start + index, self.layout.name) for index in lent.context.chunk_indices]
        for slot, identity in zip(slots, objects, strict=True):
            self._put(slot, pattern(identity, slot.length), sent)
        self._dawdle()
        for slot, identity in zip(slots, objects, strict=True):
            self._verify(slot, identity, sent)
        keyed = request.key(self.setting.model, start, end, self.shard)
        stored = self.connection.ask(m.CommitStore(keyed, self.instance_id, b""))
        if type(stored) is not bool:
            raise WrongError(f"commit_store is answered {stored!r}")
        self.setting.tally.add("stores done" if stored else "stores that failed")

    def finish_stores(self) -> None:
        """Nothing is left for later."""

    def retrieve(self, request: Request, start: int, end: int, skip: int) -> Callable[[], bool]:
        keyed, sent = request.key(self.setting.model, start, end, self.shard), time.monotonic()
        uid = self.connection.start(m.PrepareRetrieve(keyed, self.instance_id))
        return lambda: self._finish_retrieve(uid, request, start, end, sent)

    def leave(self) -> None:
        self.connection.ask(m.UnregisterEngineDriven(self.instance_id))
        self.connection.finish()
        self._close_pool()

    def vanish(self) -> None:
        super().vanish()
        self._close_pool()

    def _finish_retrieve(self, uid: bytes, request: Request, start: int, end: int, sent: float) -> bool:
        reply = msgspec.convert(self.connection.result(uid), m.PrepareRetrieveReply)
        self.heard = sent
        slots = reply.context.slots or []
        if reply.success:
            if len(slots) != end - start:
                raise WrongError(f"{len(slots)} slots for {end - start} chunks")
            self._check_slots(slots)
            objects = [self._identity(request, chunk, self.layout.name) for chunk in range(start, end)]
            for _ in range(2):
                for slot, identity in zip(slots, objects, strict=True):
                    self._verify(slot, identity, sent)
                self._dawdle()
        keyed = request.key(self.setting.model, start, end, self.shard)
        if self.connection.ask(m.CommitRetrieve(keyed, self.instance_id)) is not True and reply.success:
            self._in_time(sent)
            raise WrongError("commit_retrieve is not answered True")
        return reply.success

    def _verify(self, slot: m.Slot, identity: Identity, sent: float) -> None:
        assert self._pool is not None
        found, expected = self._pool[slot.offset : slot.offset + slot.length], pattern(identity, slot.length)
        if found != expected:
            self._in_time(sent)
        self._compare(identity, found, expected)

    def _put(self, slot: m.Slot, data: bytes, sent: float) -> None:
        assert self._pool is not None
        self._in_time(sent)
        self._pool[slot.offset : slot.offset + slot.length] = data

    def _in_time(self, sent: float) -> None:
        """Raises StalledError unless the slots are still ours: later the server may take us for dead."""
        if time.monotonic() - max(sent, self.heard) > WORKER_TIMEOUT / 2:
            raise StalledError(f"a worker held slots for more than {WORKER_TIMEOUT / 2:g} s without a sign of life")

    def _check_slots(self, slots: list[m.Slot]) -> None:
        assert self._pool is not None
        end = 0
        for slot in sorted(slots, key=lambda slot: slot.offset):
            if slot.offset < end or slot.offset + slot.length > len(self._pool):
                raise WrongError(f"slots overlap, or lie outside of the pool: {slots}")
            if slot.length != self.layout.object_bytes or list(slot.shape) != self.layout.shape:
                raise WrongError(f"a slot of another size or shape: {slot}")
            end = slot.offset + slot.length

    def _dawdle(self) -> None:
        """So that others, and a kill, have time to come in between; sometimes longer than leases and reservations live.

        A worker that pings all the while keeps what it was lent.
        """
        dice = self.setting.dice
        seconds = dice.uniform(4, 8) if dice.random() < SLOW else dice.expovariate(100)
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0 and not self.setting.stop.wait(min(left, 0.1)):
            self.setting.idle()

    def _close_pool(self) -> None:
        if self._pool is not None:
            self._pool.close()
            self._pool = None


assert LIMIT > WORKER_TIMEOUT
