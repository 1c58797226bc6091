"""Well-behaved clients on a server that others do their worst to: they must not notice.

Each has a model, a worker and a cache salt of its own, and goes on storing prompts, finding them and loading them. What
was a hit once has to stay one, every byte has to be right, and every answer has to come in time.
"""

from __future__ import annotations

import secrets
import threading
import time
from mmap import mmap
from typing import Any, Final, Self

import msgspec
import numpy as np
import zmq

from engine.wire import messages as m
from tests.fuzz.wellformed import CHUNK
from tests.support.polling import until
from tests.support.server import Server
from tests.unit.engine.support import HANDLE, SHM, Client, Segment, cpu_tensor, key, register, register_engine_driven

PATIENCE: Final = 10.0
"""Seconds after which a client of the protocol takes a server that does not answer for gone."""
CHUNKS: Final = 4
BLOCK_BYTES: Final = 512
OBJECT_BYTES: Final = 1024
_PROMPTS: Final = 400
_BLOCKS: Final = 64


class Bystander:
    """One client, with a thread of its own while its context lasts; `check` raises what it has noticed."""

    model: str
    """Nobody else may say this name."""

    def __init__(self, server: Server, salt: str) -> None:
        self.instance_id = secrets.randbits(63)
        self.slowest = 0.0
        """Seconds that the slowest answer took."""
        self.rounds = self.hits = 0
        """Chunks that were found and had the right bytes."""
        self._salt = salt
        self._context = zmq.Context()
        self.client = Client(self._context, server.url)
        self._random = np.random.default_rng(self.instance_id)
        self._prompts: dict[int, tuple[np.ndarray, int]] = {}
        """By number: the bytes of the prompt's chunks, and how many of them were a hit."""
        self._stop = threading.Event()
        self._noticed: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=self.model)

    def check(self) -> None:
        if self._noticed is not None:
            raise AssertionError(f"{self.model} has noticed something: {self._noticed}") from self._noticed

    def ask(self, message: m.Message) -> Any:
        started = time.monotonic()
        answer = self.client.ask(message)
        took = time.monotonic() - started
        self.slowest = max(self.slowest, took)
        assert took < PATIENCE, f"{type(message).__name__} was answered after {took:.1f} s"
        return answer

    def __enter__(self) -> Self:
        self.ask(m.GetChunkSize())
        self.open()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        try:
            self.close()
        finally:
            self.client.close()
            self._context.term()

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                self._round()
                self.rounds += 1
        except BaseException as error:
            self._noticed = error

    def _round(self) -> None:
        number = int(self._random.integers(_PROMPTS))
        tokens = [1_000_000 + number, *range(CHUNK * CHUNKS - 1)]
        request = f"{self.model}-{self.rounds}"
        assert self.ask(m.Ping(self.instance_id)) is True, "a ping was answered False"
        chunks, promised = self._prompts.get(number, (None, 0))
        if chunks is None:
            chunks = self._random.integers(0, 256, (CHUNKS, OBJECT_BYTES), np.uint8)
            self.store(self._key(tokens, CHUNKS, request), chunks)
        hits = self._look_up(tokens, request)
        assert hits >= promised, f"{hits} of {promised} chunks were left of prompt {number}"
        self._prompts[number] = chunks, hits
        if hits:
            wanted = int(self._random.integers(1, hits + 1))
            found = self.load(self._key(tokens, wanted, request), wanted)
            assert np.array_equal(found, chunks[:wanted]), f"prompt {number} has other bytes than were stored"
            self.hits += wanted
        self.ask(m.EndSession(request))

    def _look_up(self, tokens: list[int], request: str) -> int:
        self.ask(m.Lookup(msgspec.structs.replace(self._key(tokens, CHUNKS, request), worker_id=None), b"\x01"))
        while (hits := self.ask(m.QueryPrefetchStatus(request))) is None:
            pass
        return int(hits)

    def _key(self, tokens: list[int], chunks: int, request: str) -> m.Key:
        return key(
            tokens,
            0,
            chunks * CHUNK,
            worker_id=0,
            model_name=self.model,
            request_id=request,
            cache_salt=self._salt,
        )

    def open(self) -> None:
        """Registers."""
        raise NotImplementedError

    def close(self) -> None:
        """Unregisters."""
        raise NotImplementedError

    def store(self, wanted: m.Key, chunks: np.ndarray) -> None:
        """Stores the chunks: [CHUNKS, OBJECT_BYTES]."""
        raise NotImplementedError

    def load(self, wanted: m.Key, count: int) -> np.ndarray:
        """The bytes of chunks that were found: [count, OBJECT_BYTES]."""
        raise NotImplementedError


class Copied(Bystander):
    """Its blocks are copied by the server."""

    def __init__(self, server: Server, salt: str) -> None:
        self.model = f"bystander-copied-{secrets.token_hex(8)}"
        self._segment = Segment(_BLOCKS * BLOCK_BYTES)
        self._blocks = self._segment.bytes.reshape(_BLOCKS, BLOCK_BYTES)
        super().__init__(server, salt)

    @property
    def segment_name(self) -> str:
        return self._segment.name

    def open(self) -> None:
        tensor = cpu_tensor([_BLOCKS, 2, 8, 16], shm_name=self._segment.name)
        self.ask(register(self.instance_id, [tensor], model_name=self.model))

    def close(self) -> None:
        try:
            self.ask(m.UnregisterKVCache(self.instance_id))
        finally:
            self._segment.remove()

    def store(self, wanted: m.Key, chunks: np.ndarray) -> None:
        ids = self._some_blocks(len(chunks))
        self._blocks[ids] = chunks.reshape(-1, BLOCK_BYTES)
        assert self.ask(m.Store(wanted, self.instance_id, [ids], HANDLE)) == [b"", True], "a store has failed"

    def load(self, wanted: m.Key, count: int) -> np.ndarray:
        ids = self._some_blocks(count)
        answer = self.ask(m.Retrieve(wanted, self.instance_id, [ids], HANDLE, 0))
        assert answer == [b"", True], "a retrieve of hits has failed"
        return self._blocks[ids].reshape(count, OBJECT_BYTES)

    def _some_blocks(self, chunks: int) -> list[int]:
        """Two for each chunk; block 0 has no content."""
        return [int(block) for block in self._random.permutation(np.arange(1, _BLOCKS))[: 2 * chunks]]


class Lent(Bystander):
    """It copies by itself, to and from the shared pool."""

    def __init__(self, server: Server, salt: str) -> None:
        self.model = f"bystander-lent-{secrets.token_hex(8)}"
        super().__init__(server, salt)

    def open(self) -> None:
        pool = self.ask(register_engine_driven(self.instance_id, model_name=self.model))
        with (SHM / pool["shm_name"]).open("r+b") as file:
            self._pool = mmap(file.fileno(), pool["pool_size"])

    def close(self) -> None:
        self.ask(m.UnregisterEngineDriven(self.instance_id))
        self._pool.close()

    def store(self, wanted: m.Key, chunks: np.ndarray) -> None:
        context = self.ask(m.PrepareStore(wanted, self.instance_id))["context"]
        for slot, index in zip(context["slots"], context["chunk_indices"], strict=True):
            self._pool[slot["offset"] : slot["offset"] + OBJECT_BYTES] = chunks[index].tobytes()
        if context["slots"]:
            assert self.ask(m.CommitStore(wanted, self.instance_id, b"")) is True, "a commit has failed"

    def load(self, wanted: m.Key, count: int) -> np.ndarray:
        answer = self.ask(m.PrepareRetrieve(wanted, self.instance_id))
        assert answer["success"] is True, "a retrieve of hits has failed"
        slots = answer["context"]["slots"]
        assert len(slots) == count
        read = b"".join(self._pool[slot["offset"] : slot["offset"] + OBJECT_BYTES] for slot in slots)
        assert self.ask(m.CommitRetrieve(wanted, self.instance_id)) is True
        return np.frombuffer(read, np.uint8).reshape(count, OBJECT_BYTES)


def wait_until_ready(server: Server, count: int) -> None:
    """All of them can be served."""

    def ready() -> bool:
        workers = server.get("/api/workers")[1]["workers"]
        return sum(each["state"] == "ready" for each in workers) >= count

    until(ready, "the bystanders' workers are ready")
