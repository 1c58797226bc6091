"""Servers and engines for the interop suite. A module shares one server; every test has a model of its own."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

# Read by the client when it is imported: nothing about a test run leaves this machine.
os.environ["LMCACHE_TRACK_USAGE"] = "false"
os.environ["LMCACHE_DISABLE_BANNER"] = "1"
os.environ["LMCACHE_LOG_LEVEL"] = "WARNING"

if find_spec("lmcache") is None:
    # Other environments collect the whole tree; the client lives in one of its own.
    collect_ignore_glob = ["test_*.py"]
else:
    from tests.interop import kv
    from tests.interop.client import MODES, Engine, use_one_thread
    from tests.interop.remote import WorkerHost
    from tests.support import server as servers
    from tests.support.shm import remove_segments_of

    use_one_thread()

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What the client's package deprecates is its own affair, also when it imports a part of itself late."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings("ignore::DeprecationWarning"))


@pytest.fixture(scope="module")
def server() -> Iterator[servers.ServerProcess]:
    with servers.Server("--chunk-size", str(kv.CHUNK)) as running:
        yield running


@pytest.fixture(params=MODES if find_spec("lmcache") else ())
def mode(request: pytest.FixtureRequest) -> str:
    """Who copies: the server or the engine."""
    return str(request.param)


@pytest.fixture
def make_engine(server: servers.ServerProcess) -> Iterator[Callable[..., Engine]]:
    """Engines that leave at the end of the test."""
    engines: list[Engine] = []

    def make(mode: str | None, layout: kv.Layout = kv.FUSED_HND, **options: Any) -> Engine:
        engines.append(Engine(options.pop("url", server.url), mode, layout, **options))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()


@pytest.fixture
def engine(make_engine: Callable[..., Engine], mode: str) -> Engine:
    return make_engine(mode)


@pytest.fixture(scope="session")
def hosts() -> Iterator[tuple[WorkerHost, WorkerHost]]:
    """Two worker processes: the ranks of a tensor-parallel pair."""
    pair = (WorkerHost(), WorkerHost())
    yield pair
    for host in pair:
        host.close()


@pytest.fixture(scope="session", autouse=True)
def no_segments_left() -> Iterator[None]:
    """The client unlinks its segments when its tensors die; a test that keeps them alive must not leave them behind."""
    yield
    remove_segments_of(os.getpid())
