"""The composition root, with an engine that dies or refuses at will; real ones die too rarely."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable

import pytest

import service.__main__ as root
from engine import EngineStuckError, StartError
from service import assets
from service.document import Document
from tests.support.fake_engine import FakeEngine
from tests.support.server import http

FLAGS = ("--port", "0", "--http-port", "0")


class FakeRuntime(FakeEngine):
    """Counts its stops, and hands out its own death."""

    made: FakeRuntime | None = None

    def __init__(
        self,
        settings: object,
        on_death: Callable[[BaseException], None],
        progress: Callable[[int], None],
        supervisor: object,
    ) -> None:
        super().__init__()
        self.progress = progress
        self.on_death = on_death
        self.stops = 0
        FakeRuntime.made = self

    @property
    def endpoint(self) -> str:
        return "tcp://127.0.0.1:1"

    def drain(self, timeout: float) -> None:
        """Nothing runs."""

    def stop(self) -> None:
        self.stops += 1


@pytest.fixture(autouse=True)
def fake_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(root, "Runtime", FakeRuntime)
    monkeypatch.setattr(root, "_catch_signals", lambda stops: None)
    monkeypatch.setattr(root, "_catch_hangup", lambda watch: None)
    FakeRuntime.made = None


def http_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("waitress")]


def test_a_dead_engine_ends_the_process_in_order(monkeypatch, capsys, caplog) -> None:
    """Dies when it is asked for its endpoint, by when HTTP has it."""

    def die(self: FakeRuntime) -> str:
        self.on_death(RuntimeError("broken invariant"))
        return "tcp://127.0.0.1:1"

    monkeypatch.setattr(FakeRuntime, "endpoint", property(die))
    assert root.main(FLAGS) == 1
    assert FakeRuntime.made is not None
    assert FakeRuntime.made.stops == 1
    assert "broken invariant" in caplog.text
    assert capsys.readouterr().out.startswith("kvkeep ready tcp://127.0.0.1:1 http://127.0.0.1:")
    assert http_threads() == []


@pytest.mark.parametrize(
    ("reason", "health", "live", "code"),
    [
        (RuntimeError("x"), "the engine has ended", (503, "failed: RuntimeError: x"), 1),
        (signal.SIGTERM, "the server is stopping", (200, None), 0),
    ],
)
def test_probes_tell_why_the_engine_stops(monkeypatch, capsys, reason, health: str, live, code: int) -> None:
    answers = {}

    def stop(self: FakeRuntime) -> None:
        url = capsys.readouterr().out.split()[-1]
        answers.update({path: http("GET", url + path) for path in ("/api/healthcheck", "/api/livez", "/api/readyz")})

    def endpoint(self: FakeRuntime) -> str:
        self.on_death(reason)
        return "tcp://127.0.0.1:1"

    monkeypatch.setattr(FakeRuntime, "endpoint", property(endpoint))
    monkeypatch.setattr(FakeRuntime, "stop", stop)
    assert root.main(FLAGS) == code
    assert answers["/api/healthcheck"] == (503, {"status": "unhealthy", "reason": health})
    status, body = answers["/api/livez"]
    assert (status, body.get("detail")) == live
    assert answers["/api/readyz"][0] == 503


def test_an_engine_that_does_not_stop_is_no_success(monkeypatch, caplog) -> None:
    def stop(self: FakeRuntime) -> None:
        raise EngineStuckError("threads that do not end: transfer")

    def endpoint(self: FakeRuntime) -> str:
        self.on_death(signal.SIGTERM)
        return "tcp://127.0.0.1:1"

    monkeypatch.setattr(FakeRuntime, "endpoint", property(endpoint))
    monkeypatch.setattr(FakeRuntime, "stop", stop)
    assert root.main(FLAGS) == 1
    assert "threads that do not end: transfer; the process ends without them" in caplog.text
    assert http_threads() == []


def test_a_thread_that_does_not_end_is_left_behind_by_the_process(monkeypatch, caplog) -> None:
    go_on, codes = threading.Event(), []
    monkeypatch.setattr(root.os, "_exit", codes.append)
    monkeypatch.setattr(root.logging, "shutdown", lambda: None)
    wedged = threading.Thread(target=go_on.wait, name="wedged")
    wedged.start()
    root.leave(0)
    go_on.set()
    wedged.join()
    assert codes == [1]
    assert "wedged" in caplog.text


@pytest.mark.parametrize("code", [0, 1, 2])
def test_without_such_a_thread_the_exit_code_is_what_it_was(monkeypatch, code: int) -> None:
    monkeypatch.setattr(root.threading, "enumerate", lambda: [threading.main_thread()])
    with pytest.raises(SystemExit) as left:
        root.leave(code)
    assert left.value.code == code


def test_a_stop_during_the_start_ends_it_at_once(monkeypatch, capsys) -> None:
    """The signal comes while L1 is being allocated."""

    def start(
        self: FakeRuntime,
        settings: object,
        on_death: Callable[..., None],
        progress: Callable[..., None],
        supervisor: object,
    ) -> None:
        on_death(signal.SIGTERM)
        progress(1)
        raise AssertionError("the start goes on")

    monkeypatch.setattr(FakeRuntime, "__init__", start)
    assert root.main(FLAGS) == 0
    assert capsys.readouterr().out == ""
    assert http_threads() == []


@pytest.mark.parametrize(
    ("error", "has_stack"), [(StartError("it does not fit"), False), (ValueError("a defect"), True)]
)
def test_a_start_that_fails_is_told_and_with_its_stack_only_where_that_helps(
    monkeypatch, caplog, error: Exception, has_stack: bool
) -> None:
    def start(self: FakeRuntime, settings: object, on_death: Callable[..., None], *more: object) -> None:
        on_death(signal.SIGTERM)
        raise error

    monkeypatch.setattr(FakeRuntime, "__init__", start)
    assert root.main(FLAGS) == 1
    [record] = [each for each in caplog.records if "could not be initialised" in each.getMessage()]
    assert record.getMessage().endswith(f"HTTP goes on answering that it is not there: {error}")
    assert bool(record.exc_info) == has_stack


def test_what_a_failed_start_had_is_free_while_http_goes_on_answering(monkeypatch) -> None:
    """Its frames would keep the memory of L1, and the operator may want it for something else."""
    freed = threading.Event()

    class Memory:
        def __del__(self) -> None:
            freed.set()

    def start(self: FakeRuntime, settings: object, on_death: Callable[..., None], *more: object) -> None:
        memory = Memory()
        threading.Thread(target=lambda: (freed.wait(10), on_death(signal.SIGTERM))).start()
        raise StartError(f"it is held by this frame: {bool(memory)}")

    monkeypatch.setattr(FakeRuntime, "__init__", start)
    assert root.main(FLAGS) == 1
    assert freed.is_set()


def test_a_difference_between_code_and_document_refuses_the_start(monkeypatch, capsys) -> None:
    create = root.create_app
    monkeypatch.setattr(root, "create_app", lambda *a, **k: create(*a, **k, resources="service"))
    assert root.main(FLAGS) == 2
    operations = list(Document.load(assets.openapi_path()).operations())
    heading = f"kvkeep does not start.\nthe API's code and openapi.yaml differ ({len(operations)}):\n"
    assert capsys.readouterr().err.startswith(heading)
    assert FakeRuntime.made is None


def test_a_policy_without_a_name_in_the_schema_refuses_the_start(monkeypatch, capsys) -> None:
    monkeypatch.setattr(root, "policy_names", lambda: ("fifo", "lru", "mru"))
    assert root.main(FLAGS) == 2
    assert "mru_policy.py exists, but config/schema.json does not allow 'mru'" in capsys.readouterr().err
