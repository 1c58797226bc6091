"""Small workers of both transfer modes with their scheduler: chunks of 16 tokens, and every byte of them known.

The server has to be started with `CHUNK_FLAGS`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import zmq

from engine.wire import messages as m
from tests.support.polling import until
from tests.support.server import Server
from tests.unit.engine.support import HANDLE, SHM, Client, Segment, cpu_tensor, key, register, register_engine_driven

CHUNK = 16
CHUNK_FLAGS = ("--chunk-size", str(CHUNK))
BLOCKS, BLOCK_TOKENS = 16, 8
BLOCK_BYTES = 512
OBJECT_BYTES = 1024
"""Of a chunk, in both modes."""


def chunks_of(tokens: Sequence[int]) -> int:
    return len(tokens) // CHUNK


class _Worker:
    """Registered while its context lasts, with a connection of its own, on which it also looks up."""

    model = ""

    def __init__(self, server: Server, instance_id: int = 1) -> None:
        self.server = server
        self.instance_id = instance_id
        self._context = zmq.Context()
        self.client = Client(self._context, server.url)

    def lookup(self, tokens: Sequence[int], request: str = "r") -> int:
        """The number of leading chunks that were found and are leased now."""
        self.client.ask(m.Lookup(key(tokens, model_name=self.model, request_id=request), b"\x01"))
        hits: int | None = until(lambda: self._collected(request), "the lookup is answered")[0]
        assert hits is not None
        return hits

    def end(self, request: str = "r") -> None:
        self.client.ask(m.EndSession(request))

    def ping(self) -> bool:
        return bool(self.client.ask(m.Ping(self.instance_id)))

    def is_ready(self) -> bool:
        workers = self.server.get("/api/workers")[1]["workers"]
        return any(each["instance_id"] == self.instance_id and each["state"] == "ready" for each in workers)

    def _collected(self, request: str) -> list[int | None]:
        hits = self.client.ask(m.QueryPrefetchStatus(request))
        return [] if hits is None else [hits]

    def _key(self, tokens: Sequence[int], request: str) -> m.Key:
        return key(tokens, worker_id=0, model_name=self.model, request_id=request)

    def __enter__(self) -> Self:
        # As the stock client begins: a connection that begins with a ping has lost replies.
        assert self.client.ask(m.GetChunkSize()) == CHUNK
        self._register()
        until(self.is_ready, "the worker is ready")
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()
        self._context.term()
        self._forget()

    def _register(self) -> None:
        raise NotImplementedError

    def _forget(self) -> None:
        raise NotImplementedError


class ServerCopied(_Worker):
    """The server copies its blocks. Its KV cache has 16 blocks of 8 tokens, with random bytes."""

    model = "copied"

    def store(self, tokens: Sequence[int], blocks: Sequence[int], request: str = "r") -> bool:
        """Stores the chunks of a prompt from these blocks, two for each."""
        answer = self.client.ask(m.Store(self._key(tokens, request), self.instance_id, [list(blocks)], HANDLE))
        return bool(answer[1])

    def retrieve(self, tokens: Sequence[int], blocks: Sequence[int], request: str = "r") -> bool:
        wanted = self._key(tokens, request)
        return bool(self.client.ask(m.Retrieve(wanted, self.instance_id, [list(blocks)], HANDLE, 0))[1])

    def contents(self, blocks: Sequence[int]) -> bytes:
        """The bytes of these blocks, one after the other."""
        return self._segment.bytes.reshape(BLOCKS, BLOCK_BYTES)[list(blocks)].tobytes()

    def erase(self, blocks: Sequence[int]) -> None:
        """Zeros in all of these blocks."""
        self._segment.bytes.reshape(BLOCKS, BLOCK_BYTES)[list(blocks)] = 0

    def _register(self) -> None:
        self._segment = Segment(BLOCKS * BLOCK_BYTES)
        tensor = cpu_tensor([BLOCKS, 2, BLOCK_TOKENS, 16], shm_name=self._segment.name)
        self.client.ask(register(self.instance_id, [tensor], model_name=self.model))

    def _forget(self) -> None:
        self._segment.remove()


class SelfCopying(_Worker):
    """It copies by itself, into and out of the shared pool."""

    model = "lending"

    def store(self, tokens: Sequence[int], data: bytes, request: str = "r") -> bool:
        """Writes a prompt's chunks, of which none may be there."""
        assert len(self.prepare_store(tokens, request)) == chunks_of(tokens)
        return self.fill_and_commit(tokens, data, request)

    def prepare_store(self, tokens: Sequence[int], request: str = "r") -> list[dict[str, Any]]:
        reply = self.client.ask(m.PrepareStore(self._key(tokens, request), self.instance_id))
        self._lent: list[dict[str, Any]] = reply["context"]["slots"]
        return self._lent

    def fill_and_commit(self, tokens: Sequence[int], data: bytes, request: str = "r") -> bool:
        """Writes so many bytes to the slots that were lent last."""
        for index, slot in enumerate(self._lent):
            self.write(slot, data[index * OBJECT_BYTES : (index + 1) * OBJECT_BYTES])
        return self.commit_store(tokens, request)

    def write(self, slot: dict[str, Any], data: bytes) -> None:
        self._pool[slot["offset"] : slot["offset"] + slot["length"]] = np.frombuffer(data, np.uint8)

    def commit_store(self, tokens: Sequence[int], request: str = "r") -> bool:
        return bool(self.client.ask(m.CommitStore(self._key(tokens, request), self.instance_id, b"")))

    def retrieve(self, tokens: Sequence[int], request: str = "r") -> bytes | None:
        """The bytes of all chunks; None if they are refused."""
        reply = self.client.ask(m.PrepareRetrieve(self._key(tokens, request), self.instance_id))
        slots = reply["context"].get("slots") or []
        found = b"".join(self._pool[each["offset"] : each["offset"] + each["length"]].tobytes() for each in slots)
        assert self.client.ask(m.CommitRetrieve(self._key(tokens, request), self.instance_id)) is True
        assert not reply["success"] or len(slots) == chunks_of(tokens)
        return found if reply["success"] else None

    def _register(self) -> None:
        reply = self.client.ask(register_engine_driven(self.instance_id, model_name=self.model))
        self._pool = arena_of(reply["shm_name"])

    def _forget(self) -> None:
        del self._pool


def arena_of(name: str) -> np.memmap[Any, np.dtype[np.uint8]]:
    """The shared memory of a server by its name, writable."""
    path = SHM / Path(name).name
    return np.memmap(path, np.uint8, "r+")
