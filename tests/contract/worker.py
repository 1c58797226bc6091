"""A worker of an inference engine: registered at a server, it makes a model's layout known, and stores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import zmq

from engine.wire import messages as m
from tests.support.polling import until
from tests.support.server import ServerProcess
from tests.unit.engine.support import HANDLE, Client, Segment, cpu_tensor, key, register

BLOCKS = 8
BLOCK_TOKENS = 8
BLOCK_BYTES = 512


class Worker:
    """Ready while its context lasts. Its KV cache has 8 blocks of 8 tokens, 512 bytes each, if nothing else is said."""

    def __init__(
        self,
        server: ServerProcess,
        model: str,
        instance_id: int = 1,
        *,
        blocks: int = BLOCKS,
        block_bytes: int = BLOCK_BYTES,
    ) -> None:
        self._server = server
        self._model = model
        self._instance_id = instance_id
        self._context = zmq.Context()
        self._client = Client(self._context, server.url)
        self._shape = [blocks, 2, BLOCK_TOKENS, block_bytes // (2 * BLOCK_TOKENS * 2)]
        self._segment = Segment(blocks * block_bytes)

    def store(self, tokens: Sequence[int]) -> None:
        """Stores the complete chunks of a prompt; what is in their bytes does not matter."""
        blocks = [number % BLOCKS for number in range(len(tokens) // BLOCK_TOKENS)]
        wanted = key(tokens, worker_id=0, model_name=self._model)
        stored = self._client.ask(m.Store(wanted, self._instance_id, [blocks], HANDLE))
        assert stored[-1] is True, stored

    def __enter__(self) -> Self:
        tensors = [cpu_tensor(self._shape, shm_name=self._segment.name)]
        self._client.ask(register(self._instance_id, tensors, model_name=self._model))
        until(self._is_ready, "the worker is ready")
        return self

    def __exit__(self, *_: object) -> None:
        self._client.ask(m.UnregisterKVCache(self._instance_id))
        self._client.close()
        self._context.term()
        self._segment.remove()

    def _is_ready(self) -> bool:
        workers = self._server.get("/api/workers")[1]["workers"]
        return any(each["instance_id"] == self._instance_id and each["state"] == "ready" for each in workers)
