"""The command line of the client's package, which nobody here wrote, as an operator runs it against the HTTP API."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks.reference import ReferenceServer
from tests.interop import kv
from tests.interop.client import ENGINE_COPIES, SERVER_COPIES, Engine, EngineGroupInfo, fresh, prompt
from tests.support.polling import until
from tests.support.server import Server, ServerProcess, free_port

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from lmcache.cli.commands.bench.engine_bench.config import resolve_tokens_per_gb

PROGRAM = Path(sys.executable).with_name("lmcache")
TIMEOUT = 60.0
"""Seconds; nearly all of what a run takes is importing torch."""

Run = subprocess.CompletedProcess[str]


def lmcache(*arguments: str) -> Run:
    """One run of the command, without the environment's proxies, which would never reach a loopback port."""
    environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    command = [str(PROGRAM), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=TIMEOUT, check=False)


def answers(run: Run) -> dict[str, Any]:
    """The metrics of a run with ``--format json`` that succeeded."""
    assert run.returncode == 0, run.stderr
    metrics: dict[str, Any] = json.loads(run.stdout)["metrics"]
    return metrics


def describe(server: ServerProcess) -> dict[str, Any]:
    return answers(lmcache("describe", "kvcache", "--url", server.http_url, "--format", "json"))


def two_groups() -> list[EngineGroupInfo]:
    """The three layers of a layout, block ids of their own for the middle one."""
    return [EngineGroupInfo(0, (0, 2), kv.BLOCK_SIZE), EngineGroupInfo(1, (1,), kv.BLOCK_SIZE)]


@pytest.fixture(scope="module")
def cache() -> Iterator[Server]:
    """A server that nobody else uses, so that its numbers can be told."""
    with Server("--chunk-size", str(kv.CHUNK)) as running:
        yield running


@pytest.fixture(scope="module")
def engines(cache: Server) -> Iterator[dict[str, Engine]]:
    """One for each way to be registered. Each has stored two chunks, and looked them up in a request that goes on."""
    found = {
        "groups": Engine(cache.url, SERVER_COPIES, kv.FUSED_NHD, "groups", groups=two_groups()),
        "latent": Engine(cache.url, SERVER_COPIES, kv.LATENT, "latent"),
        "pool": Engine(cache.url, ENGINE_COPIES, kv.FUSED_HND, "pool"),
    }
    for engine in found.values():
        tokens, blocks = prompt(2 * kv.CHUNK), engine.blocks(2)
        engine.worker.fill(blocks)
        per_group = [blocks, blocks] if engine is found["groups"] else blocks
        assert engine.worker.store(fresh("request"), tokens, per_group)
        assert engine.scheduler.lookup(fresh("request"), tokens) == 2 * kv.CHUNK
    yield found
    for engine in found.values():
        engine.close()


@pytest.fixture(scope="module")
def described(cache: Server, engines: dict[str, Engine]) -> dict[str, Any]:
    until(lambda: cache.get("/status")[1]["active_sessions"] >= len(engines), "the lookups are reported")
    return describe(cache)


def test_ping(cache: Server) -> None:
    assert answers(lmcache("ping", "kvcache", "--url", cache.http_url, "--format", "json"))["status"] == "OK"


def test_ping_of_nobody_fails() -> None:
    run = lmcache("ping", "kvcache", "--url", f"http://127.0.0.1:{free_port()}")
    assert (run.returncode, "FAIL" in run.stdout) == (1, True)


def test_the_overview_tells_the_cache(described: dict[str, Any], cache: Server, engines: dict[str, Engine]) -> None:
    overview = {name: value for name, value in described.items() if not isinstance(value, list)}
    used = cache.get("/status")[1]["storage_manager"]["l1_manager"]["memory_used_bytes"]
    assert used > 0
    assert overview == {
        "health": "OK",
        "url": cache.http_url,
        "engine_type": "MPCacheEngine",
        "chunk_size": kv.CHUNK,
        "l1_capacity_gb": 0.25,
        "l1_used_gb": f"{used / (1 << 30):.2f} ({100 * used / (1 << 28):.1f}%)",
        "eviction_policy": "hit_density",
        "cached_objects": 6,
        "active_sessions": 3,
    }


def test_every_model_is_described(described: dict[str, Any], engines: dict[str, Engine]) -> None:
    models = {model["model"]: model for model in described["models"]}
    assert len(models) == len(engines)
    for name, blocks, per_token in [("groups", 48, 192), ("latent", 48, 240), ("pool", None, 192)]:
        assert models[name] == {
            "model": name,
            "world_size": 1,
            "gpu_ids": str(engines[name].worker.instance_id),
            "num_layers": 3,
            # An engine that copies by itself does not tell how many blocks it has.
            "num_blocks": blocks,
            "cache_size_per_token": per_token,
        }


def test_every_group_is_described(described: dict[str, Any]) -> None:
    def group(model: str, index: int, **fields: Any) -> dict[str, Any]:
        sizes = {"tokens_per_block": kv.BLOCK_SIZE, "slots_per_block": kv.BLOCK_SIZE}
        places = {"kernel_group_idx": index, "engine_group_idx": index, "object_group_idx": 0}
        return {"model": model, **places, **sizes, **fields}

    fused = {"dtype": "float16", "is_mla": False, "engine_kv_shape": "NL x [NB, BS, NH, CS]"}
    backends = [entry.pop("attention_backend") for entry in described["kernel_groups"]]
    assert described["kernel_groups"] == [
        group("groups", 0, num_layers=2, engine_kv_concrete_shape="2 x [48, 16, 2, 16]", **fused),
        group("groups", 1, num_layers=1, engine_kv_concrete_shape="1 x [48, 16, 2, 16]", **fused),
        group(
            "latent",
            0,
            num_layers=3,
            dtype="bfloat16",
            is_mla=True,
            engine_kv_shape="NL x [NB, BS, HS]",
            engine_kv_concrete_shape="3 x [48, 16, 40]",
        ),
        # The shape of a chunk in the cache; "One plane" is all that this mode tells of fused keys and values.
        group(
            "pool",
            0,
            num_layers=3,
            dtype="bfloat16",
            is_mla=True,
            engine_kv_shape="[NL, CHUNK, HS]",
            engine_kv_concrete_shape="[3, 32, 32]",
        ),
    ]
    assert [bool(backend) for backend in backends] == [True, True, True, False]


def test_a_terminal_shows_the_same_sections(cache: Server, engines: dict[str, Engine]) -> None:
    run = lmcache("describe", "kvcache", "--url", cache.http_url)
    assert run.returncode == 0, run.stderr
    for title in ("LMCache KV Cache Service", "Model: groups", "Kernel group 1 (groups)", "Kernel group 0 (pool)"):
        assert f" {title} " in run.stdout


def test_an_operator_finds_how_many_tokens_fit(cache: Server, engines: dict[str, Engine]) -> None:
    """What ``lmcache bench engine --lmcache-url`` asks for before it begins."""
    for name, per_token in [("groups", 192), ("latent", 240), ("pool", 192)]:
        assert resolve_tokens_per_gb(cache.http_url, name) == (1 << 30) // per_token


def test_a_bench_of_the_server_finds_its_bytes_again(cache: Server) -> None:
    """Stores and loads of a client that is not vLLM's, which compares the checksums by itself where it copies."""
    endpoint = ["--rpc-url", cache.url, "--url", cache.http_url]
    kind = ["--mode", "cpu", "--transfer-mode", ENGINE_COPIES, "--end", "2", "--interval", "0"]
    run = lmcache("bench", "server", *endpoint, *kind)
    assert run.returncode == 0, run.stderr
    results = dict(re.findall(r"^([\w ]+):\s+(\d+)$", run.stdout, re.MULTILINE))
    assert (results["Total requests"], results["Checksum OK"], results["Checksum FAIL"]) == ("2", "2", "0")


def test_clear_empties_the_cache(cache: Server, make_engine: Callable[..., Engine]) -> None:
    engine = make_engine(SERVER_COPIES, url=cache.url)
    tokens, blocks = prompt(kv.CHUNK), engine.blocks(1)
    engine.worker.fill(blocks)
    assert engine.worker.store(fresh("request"), tokens, blocks)
    assert engine.scheduler.peek(tokens) == kv.CHUNK

    run = lmcache("kvcache", "clear", "--url", cache.http_url)
    assert run.returncode == 0, run.stderr
    assert "OK" in run.stdout
    assert engine.scheduler.peek(tokens) == 0


@pytest.mark.parametrize("layout", [kv.SPLIT_NHD, kv.INTERLEAVED_NHD, kv.LATENT], ids=lambda layout: layout.name)
def test_the_reference_server_describes_a_worker_in_the_same_way(
    cache: Server, reference: ReferenceServer, layout: kv.Layout
) -> None:
    ours, theirs = (_layout(server, layout) for server in (cache, reference))
    for name in ("num_layers", "num_blocks", "cache_size_per_token"):
        assert ours[name] == theirs[name]
    for our_group, their_group in zip(ours["kernel_groups"], theirs["kernel_groups"], strict=True):
        # The label of a backend is for people; the names of types differ by the library's prefix.
        assert our_group.pop("attention_backend")
        assert their_group.pop("attention_backend")
        assert their_group.pop("dtype") == f"torch.{our_group.pop('dtype')}"
        assert our_group == their_group


@pytest.fixture(scope="module")
def reference() -> Iterator[ReferenceServer]:
    with ReferenceServer("--chunk-size", str(kv.CHUNK)) as running:
        yield running


def _layout(server: ServerProcess, layout: kv.Layout) -> dict[str, Any]:
    engine = Engine(server.url, SERVER_COPIES, layout, fresh("same"))
    try:
        workers = server.get("/status")[1]["cache_context_meta"]
        found: dict[str, Any] = workers[str(engine.worker.instance_id)]["kv_cache_layout"]
        return found
    finally:
        engine.close()
