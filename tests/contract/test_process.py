"""The process as operators and orchestrators meet it: real starts, real signals, real exit codes."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine import l2_types
from tests.contract.gated import START_GATE
from tests.support.polling import until
from tests.support.server import ROOT, Server, Spawned, http
from tests.support.shm import segments_of


def kvkeep(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """One run to its end, from a folder that is not the checkout."""
    command = [sys.executable, "-m", "service", *arguments]
    env = {**os.environ, "PYTHONPATH": str(ROOT), **environ}
    return subprocess.run(command, cwd="/", env=env, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def test_http_answers_before_the_engine_is_ready() -> None:
    with Spawned() as server:
        server.seconds_to("/", time.monotonic())
        first = server.get("/api/healthcheck")
        assert first == (503, {"status": "unhealthy", "reason": "engine not initialized"})
        assert server.get("/api/livez") == (200, {"status": "ok"})
        status, body = server.get("/api/readyz?verbose")
        assert (status, body["phase"], body["failure"]) == (503, "starting", None)
        until(lambda: server.get("/api/healthcheck")[0] == 200, "healthy")
        assert server.get("/api/readyz") == (200, {"status": "ok"})


class GatedStart(Spawned):
    """One whose allocation of 64 MiB stops half way until a file is there."""

    def __init__(self, gate: Path) -> None:
        super().__init__()
        self.l1_size_gb = 0.0625
        self.gate = gate

    def command(self) -> list[str]:
        return [sys.executable, "-m", "tests.contract.gated", *super().command()[3:]]

    def environment(self) -> dict[str, str]:
        return {**super().environment(), START_GATE: str(self.gate)}

    def __exit__(self, *failure: object) -> None:
        self.gate.touch()
        super().__exit__(*failure)

    def until_half_way(self) -> None:
        self.seconds_to("/api/livez", time.monotonic())
        until(lambda: self.get(VERBOSE)[1]["l1_allocated_ratio"] == 0.5, "half of L1 is allocated")


VERBOSE = "/api/readyz?verbose"


def test_http_answers_while_l1_is_being_allocated(tmp_path: Path) -> None:
    with GatedStart(tmp_path / "gate") as server:
        server.until_half_way()
        assert server.get("/api/livez") == (200, {"status": "ok"})
        assert server.get("/api/healthcheck") == (503, {"status": "unhealthy", "reason": "engine not initialized"})
        status, body = server.get(VERBOSE)
        assert (status, body["phase"], body["detail"]) == (503, "starting", "starting: engine not initialized")
        assert body["l1_bytes_per_second"] > 0
        assert body["l1_seconds_left"] > 0
        server.gate.touch()
        until(lambda: server.get("/api/readyz")[0] == 200, "ready")
        assert "L1: 100 % allocated, 0.1 of 0.1 GiB" in server.output()


def test_a_signal_during_the_allocation_ends_the_server_and_gives_the_memory_back(tmp_path: Path) -> None:
    with GatedStart(tmp_path / "gate") as server:
        server.until_half_way()
        assert len(segments_of(server.pid)) == 1
        assert server.process is not None
        server.process.send_signal(signal.SIGTERM)
        server.gate.touch()
        assert server.process.wait(20) == 0
        assert segments_of(server.pid) == []
        assert "kvkeep ready" not in server.output()


def test_an_l1_that_does_not_fit_is_told_by_probes_and_in_the_log() -> None:
    server = Spawned()
    server.l1_size_gb = 1 << 20
    with server:
        until(lambda: "could not be initialised" in server.output(), "the failure in the log")
        failure = server.get("/api/livez?verbose")[1]["failure"]
        assert failure.startswith("StartError: 1048576 GiB of L1 do not fit: /dev/shm has ")
        assert failure.endswith(" would fit: make l1.size smaller, or give it more")
        assert failure.removeprefix("StartError: ") in server.output()
        assert "Traceback" not in server.output()
        assert segments_of(server.pid) == []
        assert server.stop() == 1


def test_the_ready_line_is_the_only_output_and_tells_both_ports() -> None:
    command = [sys.executable, "-m", "service", "--port", "0", "--http-port", "0", "--l1-size-gb", "0.1"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        words = line.split()
        assert words[:2] == ["kvkeep", "ready"]
        assert words[2].startswith("tcp://127.0.0.1:")
        assert words[3].startswith("http://127.0.0.1:")
        assert not {words[2].rpartition(":")[2], words[3].rpartition(":")[2]} & {"0", "5555", "8080"}
        assert http("GET", words[3] + "/api/healthcheck") == (200, {"status": "healthy"})
        process.send_signal(signal.SIGTERM)
        assert (process.stdout.read(), process.wait(30)) == ("", 0)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_server_with_0(number: signal.Signals) -> None:
    with Server() as server:
        assert server.process is not None
        server.process.send_signal(number)
        assert server.process.wait(20) == 0


def test_a_signal_during_the_start_ends_the_server_too() -> None:
    began = time.monotonic()
    with Spawned() as server:
        server.seconds_to("/", began)
        assert server.stop() == 0


def test_a_client_that_keeps_its_connection_does_not_hold_up_the_end() -> None:
    with Server() as server, socket.create_connection(("127.0.0.1", server.http_port)) as idle:
        idle.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert idle.recv(12) == b"HTTP/1.1 200"
        began = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - began < 4


def test_an_engine_that_cannot_start_is_seen_by_probes_and_in_the_log(taken_port: int) -> None:
    unable = Spawned()
    unable.port = taken_port
    with unable as server:
        until(lambda: "could not be initialised" in server.output(), "the failure in the log")
        assert server.get("/") == (200, {"status": "ok", "service": "LMCache HTTP API"})
        assert server.get("/api/healthcheck") == (503, {"status": "unhealthy", "reason": "engine not initialized"})
        assert server.get("/api/status") == (503, {"error": "engine not initialized"})
        assert server.post("/api/clear-cache") == (503, {"status": "error", "reason": "engine not initialized"})
        for path in ("/api/livez", "/api/readyz"):
            status, body = server.get(path + "?verbose")
            assert (status, body["phase"], body["checks"]) == (503, "failed", [])
            assert body["failure"].startswith(f"StartError: cannot listen on 127.0.0.1:{taken_port}: ")
            assert body["detail"] == f"failed: {body['failure']}"
        assert str(taken_port) in server.output()
        assert "kvkeep ready" not in server.output()
        assert server.stop() == 1


def test_a_taken_http_port_is_told_with_the_remedy(taken_port: int) -> None:
    done = kvkeep("--port", "0", "--http-port", str(taken_port))
    assert done.returncode == 1
    assert f"cannot listen on 127.0.0.1 port {taken_port}: Address already in use" in done.stderr
    assert "--http-port (0 picks a free port)" in done.stderr


def test_an_http_host_that_is_none_is_told() -> None:
    done = kvkeep("--port", "0", "--http-port", "0", "--http-host", "no.such.host.invalid")
    assert done.returncode == 1
    assert "cannot listen on no.such.host.invalid port 0" in done.stderr


def test_a_wrong_configuration_refuses_the_start(tmp_path: Path) -> None:
    file = tmp_path / "f.yaml"
    file.write_text("server:\n  prot: 1\n  chunk_size: -1\n")
    done = kvkeep("--config", str(file), "--http-port", "99999")
    assert (done.returncode, done.stdout) == (2, "")
    assert f'{file}:2: server.prot = 1: unknown key, did you mean "port"?' in done.stderr
    assert f"{file}:3: server.chunk_size = -1: must be at least 1" in done.stderr
    assert "flag --http-port: http.port = 99999: must be at most 65535" in done.stderr


def test_check_config_says_ok_or_everything_that_is_wrong(tmp_path: Path) -> None:
    file = tmp_path / "f.yaml"
    file.write_text("server: {host: '${WHERE}'}\n")
    done = kvkeep("check-config", str(file), WHERE="::1")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{file}: ok\n", "")
    file.write_text("l1:\n  eviction_polcy: lru\nl2:\n  - type: fs\n")
    done = kvkeep("check-config", str(file))
    assert done.returncode == 2
    assert done.stdout.splitlines() == [
        f'{file}:2: l1.eviction_polcy = lru: unknown key, did you mean "eviction_policy"?',
        f"{file}:4: l2[0].type = fs: is not one of {', '.join(l2_types())}",
    ]


def test_show_config_prints_every_value_with_its_origin(tmp_path: Path) -> None:
    file = tmp_path / "f.yaml"
    file.write_text("server:\n  host: ${WHERE}\nl1:\n  size: 2GiB\n")
    done = kvkeep("show-config", "--config", str(file), "--port", "0", "--eviction-policy", "LRU", WHERE="::1")
    assert (done.returncode, done.stderr) == (0, "")
    rows = {line.split()[0]: line.split(maxsplit=2)[1:] for line in done.stdout.splitlines()}
    assert rows["server.host"] == ["***", f"environment WHERE ({file}:2)"]
    assert rows["server.port"] == ["0", "flag --port"]
    assert rows["server.chunk_size"] == ["256", "default"]
    assert rows["l1.size"] == ["2GiB", f"{file}:4"]
    assert rows["l1.eviction_policy"] == ["lru", "flag --eviction-policy"]
    origins = {
        line.rindex(f" {origin}") for line, (_, origin) in zip(done.stdout.splitlines(), rows.values(), strict=True)
    }
    assert len(origins) == 1, "the columns are aligned"


def test_a_start_imports_torch_only_with_the_engine() -> None:
    code = "import service.__main__, sys, json; print(json.dumps([*{'torch', 'zmq', 'numpy'} & {*sys.modules}]))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert json.loads(done.stdout) == []
