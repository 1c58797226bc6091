"""A worker of an engine as a process of its own: it stores, looks up and loads without end, and checks every byte.

What a chunk holds follows from its tokens, so every reader knows what it should see, whoever has written it.

Started as `python -m tests.faults.workload URL MODE SEED [STEP]`; it waits for a line on its input before it begins.
With a STEP it stops there and says so: `registered`, `prepared` (the first of the slots lent to it is half written),
`pinned`, `copying`.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import random
import sys
import time
from itertools import count
from pathlib import Path

import zmq

from engine.wire import messages as m
from tests.unit.engine.support import HANDLE, Client, cpu_tensor, key, packed, register, register_engine_driven

CHUNK = 16
OBJECT_BYTES = 1024
CHUNKS = 4
"""Of each prompt."""
PROMPTS = 60
MODEL = "m"
_BLOCK_BYTES = 512
_BLOCKS = 1 + 4 * CHUNKS
"""One that means no block, those that are stored from, and those that are loaded into."""
_ROUNDS_TO_A_PING = 20
_numbers = count()


class WrongByteError(Exception):
    """Something was loaded that nobody can have stored."""


def prompt(number: int) -> list[int]:
    """Prompts share their first chunks with others."""
    return [number // 2**index % 5 if index < 2 else number for index in range(CHUNKS) for _ in range(CHUNK)]


def content(mode: str, tokens: list[int]) -> bytes:
    """What the last chunk of these tokens holds, for workers of this mode."""
    words = b"".join(token.to_bytes(4, "little") for token in tokens)
    seed = hashlib.sha256(mode.encode() + words).digest()
    return seed * (OBJECT_BYTES // len(seed))


class Load:
    """One worker with its scheduler, on one connection."""

    mode = ""

    def __init__(self, url: str, instance_id: int) -> None:
        self.instance_id = instance_id
        self.client = Client(zmq.Context.instance(), url)
        self.model = f"{MODEL}-{self.mode}"
        self.client.ask(m.GetChunkSize())

    def key(self, tokens: list[int], start: int, request: str) -> m.Key:
        return key(tokens, start, worker_id=0, model_name=self.model, request_id=request)

    def run(self, numbers: random.Random) -> None:
        """For ever."""
        turn = 0
        while True:
            turn += 1
            self.once(numbers.randrange(PROMPTS), f"{self.instance_id}-{turn}")
            if turn % _ROUNDS_TO_A_PING == 1:
                self.client.ask(m.Ping(self.instance_id))

    def once(self, number: int, request: str) -> tuple[int, bool]:
        """One request: chunks that were loaded, and whether the others were stored."""
        tokens = prompt(number)
        self.client.ask(m.Lookup(key(tokens, model_name=self.model, request_id=request), packed(1)))
        while (hits := self.client.ask(m.QueryPrefetchStatus(request))) is None:
            time.sleep(0.001)
        if hits:
            self.load(tokens[: hits * CHUNK], request)
        stored = hits == CHUNKS or self.store(tokens, hits * CHUNK, request)
        self.client.ask(m.EndSession(request))
        return hits, stored

    def register(self) -> None:
        raise NotImplementedError

    def store(self, tokens: list[int], start: int, request: str) -> bool:
        raise NotImplementedError

    def load(self, tokens: list[int], request: str) -> bool:
        raise NotImplementedError

    def close(self) -> None:
        self.client.close()

    def check(self, tokens: list[int], chunk: int, found: bytes) -> None:
        if found != content(self.mode, tokens[: (chunk + 1) * CHUNK]):
            raise WrongByteError(f"chunk {chunk} of {tokens[-1]}: {found[:8].hex()}...")


class EngineCopies(Load):
    """Copies by itself, into and out of the pool of the server."""

    mode = "engine_driven"

    def register(self) -> None:
        name = self.client.ask(register_engine_driven(self.instance_id, model_name=self.model))["shm_name"]
        with Path("/dev/shm", name).open("r+b") as file:
            self.pool = mmap.mmap(file.fileno(), 0)

    def prepare(self, tokens: list[int], start: int, request: str) -> list[tuple[int, int]]:
        """Chunk of the prompt and offset of each slot that is lent."""
        context = self.client.ask(m.PrepareStore(self.key(tokens, start, request), self.instance_id))["context"]
        first = start // CHUNK
        return [
            (first + index, slot["offset"])
            for index, slot in zip(context["chunk_indices"], context["slots"], strict=True)
        ]

    def store(self, tokens: list[int], start: int, request: str) -> bool:
        return self.finish(tokens, start, request, self.prepare(tokens, start, request))

    def finish(self, tokens: list[int], start: int, request: str, lent: list[tuple[int, int]]) -> bool:
        """Writes what was prepared, and commits it."""
        for chunk, offset in lent:
            self.pool[offset : offset + OBJECT_BYTES] = content(self.mode, tokens[: (chunk + 1) * CHUNK])
        return not lent or bool(self.client.ask(m.CommitStore(self.key(tokens, start, request), self.instance_id, b"")))

    def pin(self, tokens: list[int], request: str) -> list[int]:
        """Offsets of the objects; none if they are not there."""
        answer = self.client.ask(m.PrepareRetrieve(self.key(tokens, 0, request), self.instance_id))
        return [slot["offset"] for slot in answer["context"]["slots"]] if answer["success"] else []

    def load(self, tokens: list[int], request: str) -> bool:
        offsets = self.pin(tokens, request)
        for chunk, offset in enumerate(offsets):
            self.check(tokens, chunk, self.pool[offset : offset + OBJECT_BYTES])
        self.client.ask(m.CommitRetrieve(self.key(tokens, 0, request), self.instance_id))
        return bool(offsets)


class ServerCopies(Load):
    """Lets the server copy, from and to a segment that is named as the stock client names its own."""

    mode = "lmcache_driven"

    def register(self) -> None:
        if not hasattr(self, "memory"):
            self.path = Path("/dev/shm", f"lmcache_kv_{os.getpid()}_{next(_numbers)}")
            with self.path.open("x+b") as file:
                file.truncate(_BLOCKS * _BLOCK_BYTES)
                self.memory = mmap.mmap(file.fileno(), 0)
        tensors = [cpu_tensor([_BLOCKS, 2, 8, 16], shm_name=f"/{self.path.name}")]
        self.client.ask(register(self.instance_id, tensors, model_name=self.model))

    def submit(self, tokens: list[int], start: int, request: str) -> bytes:
        """Begins a store; returns the uid."""
        count = len(tokens) // CHUNK - start // CHUNK
        for index in range(count):
            end = start + (index + 1) * CHUNK
            where = (1 + 2 * index) * _BLOCK_BYTES
            self.memory[where : where + OBJECT_BYTES] = content(self.mode, tokens[:end])
        blocks = list(range(1, 1 + 2 * count))
        return self.client.start(m.Store(self.key(tokens, start, request), self.instance_id, [blocks], HANDLE))

    def store(self, tokens: list[int], start: int, request: str) -> bool:
        self.submit(tokens, start, request)
        return self.client.receive()[2] == packed([b"", True])

    def load(self, tokens: list[int], request: str) -> bool:
        first, count = 1 + 2 * CHUNKS, len(tokens) // CHUNK
        blocks = list(range(first, first + 2 * count))
        message = m.Retrieve(self.key(tokens, 0, request), self.instance_id, [blocks], HANDLE, 0)
        done = bool(self.client.ask(message)[1])
        for chunk in range(count if done else 0):
            where = (first + 2 * chunk) * _BLOCK_BYTES
            self.check(tokens, chunk, self.memory[where : where + OBJECT_BYTES])
        return done

    def close(self) -> None:
        super().close()
        self.path.unlink(missing_ok=True)


MODES: dict[str, type[Load]] = {EngineCopies.mode: EngineCopies, ServerCopies.mode: ServerCopies}


def stop_at(load: Load, step: str) -> None:
    """Goes as far as that, and waits to be killed; one that was about to write may also go on."""
    tokens, lent = prompt(0), []
    if step != "registered":
        load.client.ask(m.Ping(load.instance_id))
    if step == "prepared":
        assert isinstance(load, EngineCopies)
        lent = load.prepare(tokens, 0, "r")
        load.pool[lent[0][1] : lent[0][1] + OBJECT_BYTES // 2] = bytes(OBJECT_BYTES // 2)
    elif step == "pinned":
        assert isinstance(load, EngineCopies)
        assert load.store(tokens, 0, "r")
        assert load.pin(tokens, "r")
    elif step == "copying":
        assert isinstance(load, ServerCopies)
        load.submit(tokens, 0, "r")
    print(step, flush=True)
    sys.stdin.readline()
    if step == "prepared":
        assert isinstance(load, EngineCopies)
        print("committed" if load.finish(tokens, 0, "r", lent) else "refused", flush=True)
        sys.stdin.readline()


def main(url: str, mode: str, seed: str, step: str = "") -> None:
    load = MODES[mode](url, 100 * os.getpid())
    sys.stdin.readline()
    load.register()
    if step:
        stop_at(load, step)
        return
    load.once(int(seed) % PROMPTS, "first")
    print("running", flush=True)
    load.run(random.Random(int(seed)))


if __name__ == "__main__":
    main(*sys.argv[1:])
