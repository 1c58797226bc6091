"""The server ends under load, orderly or not, and another one takes its place; and two servers meet."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.running import Running, flags, l1, server_with, workers
from tests.faults.workload import CHUNKS, MODES, PROMPTS, Load, prompt
from tests.support.polling import until
from tests.support.server import START_TIMEOUT, Server, Spawned
from tests.support.shm import FOLDER, segments_of


@contextlib.contextmanager
def load_on(server: Server) -> Iterator[list[Running]]:
    """Workers of both modes that work on; the last to leave removes what is theirs."""
    with contextlib.ExitStack() as stack:
        made = [stack.enter_context(Running(server.url, mode, seed)) for seed in range(2) for mode in MODES]
        yield [each.begin() for each in made]


def test_a_server_that_is_told_to_stop_under_load_ends_well(tmp_path: Path) -> None:
    with server_with(tmp_path) as server, load_on(server):
        until(lambda: l1(server)["stores"] > 50, "they work")
        began = time.monotonic()
        assert server.process is not None
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(20) == 0
        assert time.monotonic() - began < 12, "it waited for those who do not leave"
        assert segments_of(server.pid) == []
        assert "drained" in server.output()
        assert "Traceback" not in server.output()


def test_what_a_killed_server_and_its_workers_left_is_removed_by_the_next_start(tmp_path: Path) -> None:
    with server_with(tmp_path) as server, load_on(server) as running:
        assert server.process is not None
        dead = server.pid
        server.process.kill()
        server.process.wait(20)
        [arena] = segments_of(dead)
        killed, living = running[1], running[3]
        killed.kill()
        [left], [kept] = killed.segments, living.segments
        server.start()
        assert not arena.exists()
        assert not left.exists()
        assert kept.exists(), "a living worker has lost its segment"


@pytest.mark.parametrize("mode", MODES)
def test_a_worker_is_told_once_by_the_new_server_and_goes_on(tmp_path: Path, mode: str) -> None:
    from engine.wire import messages as m

    with server_with(tmp_path, worker_timeout=60) as server:
        worker = MODES[mode](server.url, 1)
        worker.register()
        assert worker.once(0, "before") == (0, True)
        server.restart(gently=False)
        assert worker.client.ask(m.Ping(1)) is False
        assert worker.client.ask(m.Ping(1)) is True
        worker.register()
        assert worker.once(0, "after") == (0, True)
        assert worker.once(0, "again") == (CHUNKS, True)
        worker.client.ask(m.UnregisterKVCache(1))
        worker.close()


def test_a_second_server_on_the_data_port_says_so_and_leaves_the_first_alone(tmp_path: Path) -> None:
    with server_with(tmp_path) as first, load_on(first):
        second = Spawned(*flags(tmp_path))
        second.port, second.l1_size_gb = first.port, 1 / 256
        with second:
            told = f"cannot listen on 127.0.0.1:{first.port}: Address already in use"
            until(lambda: told in second.output(), "it says so", START_TIMEOUT)
            assert "choose another one with --port, or end that server" in second.output()
            until(lambda: second.get("/api/livez")[0] == 503, "its probes are red")
            assert segments_of(second.pid) == []
            assert second.stop() == 1
        assert first.get("/api/healthcheck")[0] == 200
        assert len([path for path in FOLDER.iterdir() if path in segments_of(first.pid)]) == 1


def test_a_second_server_on_the_http_port_ends_with_1_and_leaves_the_first_alone(tmp_path: Path) -> None:
    with server_with(tmp_path) as first:
        second = server_with(tmp_path)
        second.http_port = first.http_port
        try:
            assert second.spawn().process is not None
            assert second.process is not None
            assert second.process.wait(30) == 1
            told = f"cannot listen on 127.0.0.1 port {first.http_port}: Address already in use"
            assert told in second.output()
        finally:
            second.__exit__()
        assert first.get("/api/healthcheck")[0] == 200


def test_two_servers_share_a_folder_of_l2(tmp_path: Path) -> None:
    folder = "l2: [{type: filesystem, name: nvme, path: shared, keep_free: 0}]\n"
    with server_with(tmp_path, folder) as first, server_with(tmp_path, folder) as second:
        loads: list[Load] = []
        for server in (first, second):
            for mode in MODES:
                loads.append(MODES[mode](server.url, len(loads)))
                loads[-1].register()
        for load in loads[:2]:
            for number in range(PROMPTS // 4):
                assert load.once(number, f"s{number}")[1]
        for load in loads[2:]:
            until(lambda load=load: load.once(0, "l")[0] == CHUNKS, "what the other has stored is found")
        assert len(workers(first)) == len(workers(second)) == 2
        assert len(prompt(0)) == CHUNKS * 16
        for load in loads:
            load.close()
