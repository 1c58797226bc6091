"""Servers, sockets and segments that end with the test; nothing may be left behind."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator

import pytest
import zmq

from engine import MIB, EngineSettings, Runtime
from tests.support.shm import segments_of
from tests.unit.engine.support import Client, Segment


@pytest.fixture(autouse=True)
def _leaves_nothing_behind() -> Iterator[None]:
    """Every thread and every segment of shared memory that a test makes is gone at its end."""
    threads = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= threads
    assert segments_of(os.getpid()) == []


@pytest.fixture
def segment() -> Iterator[Callable[[int], Segment]]:
    """Makes client segments of so many bytes."""
    made: list[Segment] = []

    def make(nbytes: int) -> Segment:
        made.append(Segment(nbytes))
        return made[-1]

    yield make
    for one in made:
        one.remove()


@pytest.fixture
def start_server() -> Iterator[Callable[..., Runtime]]:
    """Starts servers with chunks of 16 tokens and 1 MiB of L1 on free ports, unless told otherwise."""
    started: list[Runtime] = []

    def start(on_death: Callable[[BaseException], None] = _unexpected, **settings: object) -> Runtime:
        defaults: dict[str, object] = {"port": 0, "chunk_size": 16, "l1_size": MIB}
        started.append(Runtime(EngineSettings(**{**defaults, **settings}), on_death))  # type: ignore[arg-type]
        return started[-1]

    yield start
    for server in started:
        server.stop()


def _unexpected(error: BaseException) -> None:
    raise error


@pytest.fixture
def connect() -> Iterator[Callable[[Runtime], Client]]:
    """Connects clients to servers."""
    made: list[Client] = []
    with zmq.Context() as context:

        def make(server: Runtime) -> Client:
            made.append(Client(context, server.endpoint))
            return made[-1]

        yield make
        for client in made:
            client.close()
