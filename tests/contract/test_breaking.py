"""Probes over a real engine that is broken in a real way: each failure has a name within 3 seconds, and so has its end.

The stalls are held by gates; the threads, the sockets and the HTTP application are the real ones.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest
import zmq
from falcon.testing import TestClient

from engine import MIB, EngineSettings, Runtime, SupervisedThread, Supervisor
from engine.core import Engine
from engine.events import Copy, Effect, Event
from engine.loop import EngineLoop
from engine.pins import Pins
from engine.transfer.torch_copier import TorchCopier
from engine.wire import messages as m
from service.app import create_app
from tests.support.fake_engine import context
from tests.support.polling import until
from tests.unit.engine.support import HANDLE, Client, Segment, cpu_tensor, key, packed, register

HEALTHCHECK, LIVEZ, READYZ = "/api/healthcheck", "/api/livez", "/api/readyz"
PROBES = (HEALTHCHECK, LIVEZ, READYZ)
WITHIN = 3.0
"""Seconds in which a probe tells."""

Break = Callable[["Broken"], AbstractContextManager[None]]


class Broken:
    """A real engine behind the real application, and a client with a KV cache of 8 blocks, two to a chunk."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.monkeypatch = monkeypatch
        self.deaths: list[BaseException] = []
        self.supervisor = Supervisor()
        settings = EngineSettings(port=0, chunk_size=16, l1_size=MIB)
        self.runtime = Runtime(settings, self.deaths.append, supervisor=self.supervisor)
        self._http = TestClient(create_app(context(self.runtime), validate_responses=True))
        self._zmq = zmq.Context()
        self._segment = Segment(4096)
        self.client = Client(self._zmq, self.runtime.endpoint)
        self.client.ask(register(1, [cpu_tensor([8, 2, 8, 16], shm_name=self._segment.name)]))

    def told(self, path: str) -> str | None:
        """What a probe says is wrong; None if nothing is."""
        result = self._http.simulate_get(path)
        assert result.status_code in (200, 503)
        return None if result.status_code == 200 else str(result.json.get("reason") or result.json["detail"])

    def store(self, chunk: int, chunks: int = 1) -> bytes:
        """Begins to store chunks of a prompt of this number; returns the uid of the request."""
        tokens = range(1000 * chunk, 1000 * chunk + 16 * chunks)
        return self.client.start(m.Store(key(tokens, worker_id=0), 1, [[1, 2] * chunks], HANDLE))

    def on_engine_thread(self, action: Callable[[], None]) -> None:
        """Has something done between two steps of the loop."""
        done, step = threading.Event(), EngineLoop._step

        def acting(loop: EngineLoop) -> None:
            self.monkeypatch.setattr(EngineLoop, "_step", step)
            action()
            done.set()
            step(loop)

        self.monkeypatch.setattr(EngineLoop, "_step", acting)
        assert done.wait(20)

    def close(self) -> None:
        self.client.close()
        self.runtime.stop()
        self._zmq.term()
        self._segment.remove()


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> Iterator[Broken]:
    made = Broken(monkeypatch)
    yield made
    made.close()


@contextmanager
def a_stalled_loop(broken: Broken) -> Iterator[None]:
    go_on = threading.Event()
    holder = threading.Thread(target=broken.on_engine_thread, args=(lambda: go_on.wait(20) and None,))
    holder.start()
    yield
    go_on.set()
    holder.join()


@contextmanager
def a_stalled_transfer(broken: Broken) -> Iterator[None]:
    at_work, go_on, copy = threading.Event(), threading.Event(), TorchCopier.copy

    def held(self: TorchCopier, job: Copy) -> None:
        at_work.set()
        assert go_on.wait(20)
        copy(self, job)

    broken.monkeypatch.setattr(TorchCopier, "copy", held)
    broken.store(1)
    assert at_work.wait(20)
    yield
    go_on.set()


@contextmanager
def an_unbound_socket(broken: Broken) -> Iterator[None]:
    socket, endpoint = broken.runtime._loop._router.socket, broken.runtime.endpoint
    broken.on_engine_thread(lambda: socket.unbind(endpoint))
    yield
    broken.on_engine_thread(lambda: socket.bind(endpoint))


@contextmanager
def a_loop_that_has_ended(broken: Broken) -> Iterator[None]:
    ended = SupervisedThread(broken.supervisor, "config", lambda thread: None)
    ended.start()
    yield
    broken.supervisor.remove(ended)


@contextmanager
def a_job_that_fails_with_every_tick(broken: Broken) -> Iterator[None]:
    def fail(pins: Pins, now: float) -> None:
        raise KeyError("a defect")

    tick = Pins.tick
    broken.monkeypatch.setattr("engine.supervision.FAILURES_TO_TELL", 2)
    broken.monkeypatch.setattr(Pins, "tick", fail)
    yield
    broken.monkeypatch.setattr(Pins, "tick", tick)


@pytest.mark.parametrize(
    ("broke", "name"),
    [
        (a_stalled_loop, "engine: no beat for"),
        (a_stalled_transfer, "transfer: nothing has moved for"),
        (an_unbound_socket, "socket: no answer to a ping within"),
        (a_loop_that_has_ended, "loops: config: the thread has ended"),
        (a_job_that_fails_with_every_tick, "loops: tick:pins: it has failed 2 times in a row: KeyError"),
    ],
)
def test_what_has_stopped_is_named_within_3_seconds_and_forgotten_within_3(
    broken: Broken, broke: Break, name: str
) -> None:
    assert [broken.told(path) for path in PROBES] == [None] * 3
    with broke(broken):
        began = time.monotonic()
        until(lambda: all(name in (broken.told(path) or "") for path in PROBES), f"503 with {name!r}", WITHIN)
        assert time.monotonic() - began <= WITHIN
        status = broken._http.simulate_get("/api/status").json
        assert not status["is_healthy"]
        assert name in " ".join(status["problems"])
    until(lambda: not any(broken.told(path) for path in PROBES), "200 again", WITHIN)


def test_a_stalled_transfer_leaves_the_other_checks_alone(broken: Broken) -> None:
    with a_stalled_transfer(broken):
        until(lambda: broken.told(LIVEZ), "503", WITHIN)
        [failing] = broken.runtime.checks().failing(liveness_only=False)
        assert failing.name == "transfer"
        assert broken.client.ask(m.Noop()) == "OK"


def test_an_engine_that_has_ended_stays_a_failure(broken: Broken) -> None:
    handle = Engine.handle

    def fail(self: Engine, event: Event) -> list[Effect]:
        if type(event).__name__ == "Tick":
            raise ValueError("a broken invariant")
        return handle(self, event)

    broken.monkeypatch.setattr(Engine, "handle", fail)
    name = "engine: the engine thread has ended"
    until(lambda: all(name in (broken.told(path) or "") for path in PROBES), "503", WITHIN)
    assert len(broken.deaths) == 1


def test_a_storage_that_a_restart_would_not_cure_touches_readiness_alone(broken: Broken) -> None:
    why: list[str | None] = ["no such folder"]
    broken.runtime._monitor.add_check("l2.fs", lambda: why[0], "readiness")
    assert until(lambda: broken.told(READYZ), "503", WITHIN) == "l2.fs: no such folder"
    assert [broken.told(path) for path in (HEALTHCHECK, LIVEZ)] == [None, None]
    why[0] = None
    until(lambda: broken.told(READYZ) is None, "200 again", WITHIN)


def test_work_that_moves_on_is_healthy_however_long_it_takes(broken: Broken) -> None:
    """Three copies of 20 pieces, a piece takes a twelfth of what a stall would, and a copy twice that."""
    broken.monkeypatch.setattr("engine.monitor.PATIENCE_SECONDS", 0.7)
    never, move = threading.Event(), TorchCopier._move

    def slowly(self: TorchCopier, *arguments: object) -> None:
        never.wait(0.06)
        move(self, *arguments)  # type: ignore[arg-type]

    broken.monkeypatch.setattr(TorchCopier, "_move", slowly)
    began = time.monotonic()
    waiting = {broken.store(number, chunks=20) for number in range(3)}
    told = []
    while waiting:
        told.append(broken.told(LIVEZ))
        while broken.client._socket.poll(10):
            reply = broken.client.receive()
            assert reply[2] == packed([b"", True])
            waiting.discard(reply[0])
    assert time.monotonic() - began > 3.5
    assert set(told) == {None}


def test_a_monitor_that_has_ended_is_named(broken: Broken) -> None:
    def end() -> None:
        raise SystemExit

    broken.monkeypatch.setattr(broken.runtime._monitor, "_publish", end)
    name = "monitor: the monitor thread has ended"
    until(lambda: all(name in (broken.told(path) or "") for path in PROBES), "503", WITHIN)


def test_a_monitor_that_is_stuck_is_named_when_its_findings_are_stale(broken: Broken) -> None:
    go_on = threading.Event()

    def wait() -> None:
        assert go_on.wait(20)

    broken.runtime._monitor.add_check("waits", wait, "liveness")
    name = "monitor: no look at the checks for 3."
    until(lambda: all(name in (broken.told(path) or "") for path in PROBES), "503", WITHIN + 1)
    go_on.set()
    until(lambda: not any(broken.told(path) for path in PROBES), "200 again", WITHIN)
