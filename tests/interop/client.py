"""One engine's view of the cache through the client's public adapters, with a deadline on every wait."""

from __future__ import annotations

import itertools
import random
import warnings
from collections.abc import Sequence
from typing import Any

import torch
import zmq

from tests.interop import kv
from tests.support.polling import until

with warnings.catch_warnings():
    # What the client deprecates while it is imported is not ours to fix.
    warnings.simplefilter("ignore")
    from lmcache.integration.vllm.vllm_multi_process_adapter import (
        LMCacheMPSchedulerAdapter,
        LMCacheMPWorkerAdapter,
        LoadStoreOp,
        ParallelStrategy,
    )
    from lmcache.v1.multiprocess.custom_types import IPCCacheServerKey
    from lmcache.v1.multiprocess.group_view import EngineGroupInfo

SERVER_COPIES = "lmcache_driven"
ENGINE_COPIES = "engine_driven"
MODES = (SERVER_COPIES, ENGINE_COPIES)

DEADLINE = 20.0
"""Seconds after which an answer counts as missing; the client's own default is 300."""

_names = itertools.count(1)
_tokens = random.Random(20261)


def fresh(word: str) -> str:
    """A name nobody used before in this process: a request id, a model."""
    return f"{word}-{next(_names)}"


def prompt(tokens: int) -> list[int]:
    """Random tokens that share no prefix with any other prompt."""
    return [_tokens.randrange(1, 32_000) for _ in range(tokens)]


def strategy(rank: int = 0, world: int = 1, *, mla: bool = False) -> ParallelStrategy:
    """One tensor-parallel group of ``world`` ranks behind one server."""
    return ParallelStrategy(
        mla_only=mla, vllm_world_size=world, vllm_worker_id=rank, tp_size=world, pp_size=1, n_servers=1
    )


def answer(future: Any) -> Any:
    """What the server answered to a call of the typed client."""
    return future.result(timeout=DEADLINE)


def settings(mode: str | None, heartbeat: float) -> dict[str, Any]:
    """The connector's extra configuration; without a mode the client chooses by the device."""
    extra: dict[str, Any] = {"lmcache.mp.mq_timeout": DEADLINE, "lmcache.mp.heartbeat_interval": heartbeat}
    if mode is not None:
        extra["lmcache.mp.mp_transfer_mode"] = mode
    return extra


def one_group(layout: kv.Layout) -> list[EngineGroupInfo]:
    """The group list a vLLM without hybrid layers sends."""
    return [EngineGroupInfo(0, tuple(range(layout.layers)), layout.block_size)]


class Worker:
    """One worker rank: its KV tensors and the adapter that stores from them and loads into them."""

    def __init__(
        self,
        url: str,
        model: str,
        layout: kv.Layout = kv.FUSED_HND,
        mode: str | None = None,
        *,
        rank: int = 0,
        world: int = 1,
        mla: bool = False,
        heartbeat: float = 10.0,
        groups: Sequence[EngineGroupInfo] | None = None,
        kv_events: bool = False,
    ) -> None:
        self.layout = layout
        self.tensors = layout.allocate()
        self._context = _context()
        self.adapter = LMCacheMPWorkerAdapter(
            url,
            self._context,
            model,
            layout.block_size,
            strategy(rank, world, mla=mla),
            extra_config=settings(mode, heartbeat),
            enable_kv_events=kv_events,
        )
        infos = one_group(layout) if groups is None else groups
        self.adapter.register_kv_caches(self.tensors, infos, layout.hints)

    @property
    def instance_id(self) -> int:
        return self.adapter.instance_id

    @property
    def client(self) -> Any:
        """The typed request client of the adapter, for calls that the adapter's own checks would not let through."""
        return self.adapter.req_client

    def key(self, tokens: list[int], start: int = 0, end: int | None = None, **changed: Any) -> IPCCacheServerKey:
        """The key the adapter would send, or a changed one."""
        fields: dict[str, Any] = {
            "model_name": self.adapter.model_name,
            "world_size": self.adapter.world_size,
            "worker_id": self.adapter.worker_id,
            "token_ids": tuple(tokens),
            "start": start,
            "end": len(tokens) if end is None else end,
            "request_id": fresh("request"),
            "num_kv_readers": 1,
        }
        return IPCCacheServerKey(**{**fields, **changed})

    def fill(self, blocks: list[int]) -> list[bytes]:
        """Write random bytes into ``blocks`` and return them."""
        kv.fill(list(self.tensors.values()), self.layout.block_dim, blocks)
        return self.contents(blocks)

    def contents(self, blocks: list[int]) -> list[bytes]:
        return kv.contents(list(self.tensors.values()), self.layout.block_dim, blocks)

    def submit_store(
        self, request: str, tokens: list[int], blocks: list[Any], start: int = 0, end: int | None = None, salt: str = ""
    ) -> None:
        operation = _operation(tokens, blocks, start, end)
        self.adapter.submit_store_request(request, operation, self.adapter.create_recorded_event(), cache_salt=salt)

    def store(self, request: str, *arguments: Any, **options: Any) -> bool:
        """Store and wait for the answer: whether the server says it worked."""
        self.submit_store(request, *arguments, **options)
        future = self.adapter.store_futures.get(request)
        stored = future is None or bool(future.result(timeout=DEADLINE))
        self.adapter.get_finished({request})
        return stored

    def submit_retrieve(
        self,
        request: str,
        tokens: list[int],
        blocks: list[Any],
        start: int = 0,
        end: int | None = None,
        skip: int = 0,
        salt: str = "",
    ) -> None:
        operation = _operation(tokens, blocks, start, end)
        operation.skip_first_n_tokens = skip
        self.adapter.submit_retrieve_request(request, operation, self.adapter.create_recorded_event(), cache_salt=salt)

    def retrieve(self, request: str, *arguments: Any, **options: Any) -> bool:
        """Load and wait until the client reports the request: whether every block was loaded."""
        self.submit_retrieve(request, *arguments, **options)
        self.finish_retrieve(request)
        return request not in self.adapter.get_failed_request_ids()

    def finish_retrieve(self, *requests: str) -> None:
        """Poll the client as an engine step does, until it has reported every one of ``requests`` as received."""
        waiting = set(requests)

        def all_received() -> bool:
            waiting.difference_update(self.adapter.get_finished(set())[1] or ())
            return not waiting

        until(all_received, f"{', '.join(requests)} received", DEADLINE)

    def beat(self) -> None:
        """Let the heartbeat run its next cycle now. The client has no public way to ask for one."""
        heartbeat = self.adapter._heartbeat
        assert heartbeat is not None, "the heartbeat starts with the first transfer"
        _one_cycle(heartbeat)

    def close(self) -> None:
        """Unregister, and let go of the tensors: their shared memory goes when nothing refers to them any more."""
        self.adapter.shutdown()
        self._context.term()
        self.adapter.kv_caches = {}
        self.tensors = {}


class Scheduler:
    """The scheduler of one engine."""

    def __init__(
        self,
        url: str,
        model: str,
        block_size: int = kv.BLOCK_SIZE,
        *,
        world: int = 1,
        mla: bool = False,
        heartbeat: float = 10.0,
    ) -> None:
        self._context = _context()
        self.adapter = LMCacheMPSchedulerAdapter(
            [url],
            self._context,
            model,
            block_size,
            strategy(0, world, mla=mla),
            extra_config=settings(None, heartbeat),
        )
        self.url = url

    @property
    def client(self) -> Any:
        """The typed request client of the adapter, for calls that no adapter method waits for."""
        return self.adapter.req_clients[self.url]

    def lookup(self, request: str, tokens: list[int], salt: str = "") -> int:
        """Hit tokens of a new lookup; its chunks stay leased for ``request``."""
        self.adapter.maybe_submit_lookup_request(request, tokens, cache_salt=salt)
        return self.hits(request)

    def hits(self, request: str) -> int:
        """Poll a submitted lookup as scheduler steps do."""
        results: list[int] = []

        def answered() -> bool:
            hit = self.adapter.check_lookup_result(request)
            results.extend([] if hit is None else [hit])
            return bool(results)

        until(answered, f"lookup of {request}", DEADLINE)
        return results[0]

    def end(self, request: str) -> None:
        """The request is done, as the connector says it: clean up, then tell the server."""
        self.adapter.end_session(request)
        self.adapter.cleanup_lookup_result(request)

    def peek(self, tokens: list[int], salt: str = "") -> int:
        """Hit tokens, without keeping anything leased."""
        request = fresh("peek")
        hit = self.lookup(request, tokens, salt)
        self.adapter.free_lookup_locks(tokens, 0, hit, request, cache_salt=salt)
        self.end(request)
        return hit

    def beat(self) -> None:
        """Let the heartbeat run its next cycle now."""
        heartbeats = self.adapter._heartbeats
        assert heartbeats is not None, "the heartbeat starts with the first lookup"
        _one_cycle(heartbeats[self.url])

    def close(self) -> None:
        self.adapter.shutdown()
        self._context.term()


class Engine:
    """A scheduler and one worker: an engine without tensor parallelism."""

    def __init__(self, url: str, mode: str | None, layout: kv.Layout = kv.FUSED_HND, model: str = "", **options: Any):
        self.model = model or fresh("model")
        self.worker = Worker(url, self.model, layout, mode, **options)
        heartbeat = options.get("heartbeat", 10.0)
        self.scheduler = Scheduler(url, self.model, layout.block_size, heartbeat=heartbeat)
        self.chunk = self.worker.adapter.lmcache_tokens_per_chunk
        self.blocks_per_chunk = self.worker.adapter.num_blocks_per_chunk()

    def blocks(self, chunks: int, first: int = 1) -> list[int]:
        """Scattered block ids for ``chunks`` chunks: every second one from ``first``, backwards."""
        count = chunks * self.blocks_per_chunk
        return list(range(first, first + 2 * count, 2))[::-1]

    def close(self) -> None:
        self.worker.close()
        self.scheduler.close()


def _context() -> zmq.Context[zmq.Socket[bytes]]:
    """One context for each adapter: in a shared one the client's monitor sockets can meet names not freed yet."""
    context = zmq.Context()
    context.linger = 1000
    return context


def _one_cycle(heartbeat: Any) -> None:
    """Wake the heartbeat once and wait for that cycle; its interval must be long, or cycles cannot be told apart."""
    until(lambda: heartbeat.total_runs > 0, "the first heartbeat", DEADLINE)
    runs = heartbeat.total_runs
    heartbeat.wake()
    until(lambda: heartbeat.total_runs > runs, "a heartbeat cycle", DEADLINE)


def _operation(tokens: list[int], blocks: list[Any], start: int, end: int | None) -> LoadStoreOp:
    lists = blocks if blocks and isinstance(blocks[0], list) else [blocks]
    return LoadStoreOp(tokens, lists, start, len(tokens) if end is None else end)


def use_one_thread() -> None:
    """Keep torch from spreading small copies over threads, which makes them slower on few cores."""
    torch.set_num_threads(1)
