"""More than there is room for: refusals are values that clients understand, are counted by reason, and end."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from engine.wire import messages as m
from engine.wire.limits import MAX_TOKENS, MIB
from tests.faults.running import l1, server_with, workers
from tests.faults.workload import CHUNK, CHUNKS, MODES, PROMPTS, EngineCopies, Load, ServerCopies, prompt
from tests.support.polling import until
from tests.support.server import Server
from tests.unit.engine.support import Client, key, packed

SLOTS = 256
"""That L1 has, of 4,096 bytes: it cannot be made smaller than 1 MiB."""
CLIENTS = 200

Connect = Callable[[Server, str], Load]


@pytest.fixture
def connect() -> Iterator[Connect]:
    """Makes workers."""
    made: list[Load] = []

    def worker(server: Server, mode: str) -> Load:
        made.append(MODES[mode](server.url, len(made)))
        made[-1].register()
        return made[-1]

    yield worker
    for each in made:
        each.close()


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def refusals(server: Server) -> dict[str, int]:
    """Objects that found no room, by reason."""
    lines = server_metrics(server).splitlines()
    found = [line for line in lines if line.startswith("kvkeep_l1_refusals_total{")]
    return {line.split('reason="')[1].split('"')[0]: int(float(line.rsplit(" ", 1)[1])) for line in found}


def server_metrics(server: Server) -> str:
    with socket.create_connection(("127.0.0.1", server.http_port)) as connection:
        connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        return b"".join(iter(lambda: connection.recv(1 << 16), b"")).decode()


def long_prompt(server: Server, worker: EngineCopies, chunks: int, number: int) -> int:
    """Chunks that were lent for a prompt of so many, and are stored."""
    tokens = [number] * (chunks * CHUNK)
    lent = worker.prepare(tokens, 0, "long")
    assert not lent or worker.finish(tokens, 0, "long", lent)
    return len(lent)


def test_a_request_larger_than_l1_is_stored_as_far_as_there_is_room(tmp_path: Path, connect: Connect) -> None:
    with server_with(tmp_path, size="1MiB") as server:
        worker = connect(server, EngineCopies.mode)
        assert isinstance(worker, EngineCopies)
        assert long_prompt(server, worker, SLOTS + 44, 7) == SLOTS
        until(lambda: refusals(server)["in_use"] == 44, "what did not fit is counted")
        assert worker.once(0, "after") == (0, True)
        assert worker.once(0, "again") == (CHUNKS, True)


def test_while_all_is_promised_nothing_is_stored_and_then_it_is_again(
    tmp_path: Path, connect: Connect, mode: str
) -> None:
    with server_with(tmp_path, size="1MiB", worker_timeout=60) as server:
        filler, worker = connect(server, EngineCopies.mode), connect(server, mode)
        assert isinstance(filler, EngineCopies)
        assert long_prompt(server, filler, SLOTS, 7) == SLOTS
        tokens = [7] * (SLOTS * CHUNK)
        filler.client.ask(m.Lookup(key(tokens, model_name=filler.model, request_id="held"), packed(1)))
        until(lambda: l1(server)["leased_object_count"] == SLOTS, "all is promised")
        # Skipped, which costs the client nothing: it is answered as done.
        assert worker.once(0, "refused") == (0, True)
        assert worker.once(0, "refused again") == (0, True)
        until(lambda: refusals(server)["in_use"] >= 2 * CHUNKS, "it is counted")
        assert filler.load(tokens, "held"), "a promise was broken"
        filler.client.ask(m.EndSession("held"))
        assert worker.once(0, "after")[1]
        assert worker.once(0, "again") == (CHUNKS, True)


def test_two_hundred_clients_are_all_served_and_leave_nothing_behind(tmp_path: Path, connect: Connect) -> None:
    with server_with(tmp_path, size="2MiB", worker_timeout=60) as server:
        before = open_files(server)
        loads = [connect(server, list(MODES)[index % 2]) for index in range(CLIENTS)]
        assert server.get("/api/status")[1]["is_healthy"]
        for load in loads:
            assert load.once(load.instance_id % PROMPTS, f"r{load.instance_id}")[1]
        asked = [load.client.start(m.Ping(load.instance_id)) for load in loads]
        assert [load.client.receive()[0] for load in loads] == asked
        for load in loads:
            load.client.ask(m.UnregisterKVCache(load.instance_id))
            load.client.close()
        until(lambda: open_files(server) <= before + 2, "their connections are closed")
        until(lambda: not workers(server), "nobody is known any more")


def open_files(server: Server) -> int:
    return len(os.listdir(f"/proc/{server.pid}/fd"))  # noqa: PTH208 -- the names do not matter


class TestFileDescriptors:
    def test_the_server_takes_as_many_as_it_may(self, tmp_path: Path) -> None:
        with server_with(tmp_path) as server:
            soft, hard = resource.prlimit(server.pid, resource.RLIMIT_NOFILE)
            assert soft == min(hard, 65_536)

    def test_few_of_them_are_told_at_the_start(self, tmp_path: Path) -> None:
        server = server_with(tmp_path)
        before = resource.getrlimit(resource.RLIMIT_NOFILE)
        command = server.command()
        server.command = lambda: ["/bin/sh", "-c", 'ulimit -n 256; exec "$@"', "sh", *command]  # type: ignore[method-assign]
        with server:
            assert "only 256 file descriptors may be open at once" in server.output()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == before

    def test_when_there_are_none_left_those_who_are_connected_are_served_and_others_later(
        self, tmp_path: Path, connect: Connect
    ) -> None:
        l2 = "l2: [{type: filesystem, name: nvme, path: kv, keep_free: 0}]\n"
        with server_with(tmp_path, l2, worker_timeout=60) as server, zmq.Context() as context:
            here = [connect(server, mode) for mode in MODES]
            until(lambda: tier(server)["state"] == "open", "the tier is open")
            for load in here:
                assert load.once(0, "before") == (0, True)
            until(lambda: tier(server)["saved_objects"] == 2 * CHUNKS, "all is saved")
            _, hard = resource.prlimit(server.pid, resource.RLIMIT_NOFILE)
            resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (open_files(server) + 2, hard))
            others = [Client(context, server.url) for _ in range(6)]
            waiting = [other.start(m.Noop()) for other in others]
            until(lambda: not answers(server), "HTTP turns connections away")
            for load in here:
                for number in range(1, 6):
                    assert load.once(number, f"while{number}")[1]
                    assert load.once(number, f"while {number}") == (CHUNKS, True)
            assert any(not other._socket.poll(0) for other in others)
            resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (4096, hard))
            assert [other.receive()[0] for other in others] == waiting
            until(lambda: answers(server), "HTTP is back")
            for load in here:
                assert load.once(6, "after")[1]
            until(lambda: server.get("/api/livez")[0] == 200, "all checks are green again")
            assert len(server.output().splitlines()) < 200, "the log was flooded"
            for other in others:
                other.close()

    def test_memory_of_a_worker_that_could_not_be_opened_is_opened_later(
        self, tmp_path: Path, connect: Connect
    ) -> None:
        with server_with(tmp_path, worker_timeout=60) as server:
            worker = ServerCopies(server.url, 1)
            until(lambda: server.get("/api/livez")[0] == 200, "it is well")
            _, hard = resource.prlimit(server.pid, resource.RLIMIT_NOFILE)
            resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (lowest_free(server), hard))
            worker.register()
            assert worker.once(0, "while") == (0, False)
            resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (4096, hard))
            until(lambda: [each["state"] for each in workers(server)] == ["ready"], "it is tried again")
            assert worker.once(0, "after") == (0, True)
            worker.close()


def lowest_free(server: Server) -> int:
    """So low a limit that nothing further can be opened."""
    taken = {int(name) for name in os.listdir(f"/proc/{server.pid}/fd")}  # noqa: PTH208 -- no paths are needed
    return next(number for number in range(len(taken) + 1) if number not in taken)


def answers(server: Server) -> bool:
    with contextlib.suppress(OSError):
        return server.get("/api/livez")[0] == 200
    return False


class TestMemory:
    def test_requests_that_find_no_memory_cost_neither_the_server_nor_others_anything(
        self, tmp_path: Path, connect: Connect
    ) -> None:
        with server_with(tmp_path, worker_timeout=60) as server, zmq.Context() as context:
            here = [connect(server, mode) for mode in MODES]
            # The first chunk is there, so that the whole prompt has to be read to find the next.
            here[0].once(0, "before")
            large = [*prompt(0)[:CHUNK], *[1 << 30] * (MAX_TOKENS - CHUNK)]
            _, hard = resource.prlimit(server.pid, resource.RLIMIT_AS)
            # Some is left: the C library itself ends a process that has none at all for a thread's own data.
            resource.prlimit(server.pid, resource.RLIMIT_AS, (address_space(server) + 16 * MIB, hard))
            greedy = [Client(context, server.url) for _ in range(4)]
            for client in greedy:
                client.start(m.Lookup(key(large, model_name=here[0].model, request_id="large"), packed(1)))
            for number in range(PROMPTS):
                for load in here:
                    load.once(number, f"while{number}")
            resource.prlimit(server.pid, resource.RLIMIT_AS, (hard, hard))
            for load in here:
                assert load.once(0, "after")[1]
            assert server.get("/api/livez")[0] == 200
            assert server.get("/api/status")[1]["failed_requests"] > 0, "there was memory for all of it"
            for client in greedy:
                client.close()


def address_space(server: Server) -> int:
    pages = Path(f"/proc/{server.pid}/statm").read_text().split()[0]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], check=False, capture_output=True)
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.decode()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_costs_its_saves_only(tmp_path: Path, connect: Connect, small_disk: Path) -> None:
    l2 = f"l2: [{{type: filesystem, name: nvme, path: {small_disk}/kv, keep_free: 0}}]\n"
    ballast = small_disk / "ballast"
    with server_with(tmp_path, l2, worker_timeout=60) as server:
        load = connect(server, EngineCopies.mode)
        with contextlib.suppress(OSError):
            ballast.write_bytes(bytes(4 << 20))
        for number in range(20):
            assert load.once(number, f"full{number}")[1]
            assert load.once(number, f"full {number}") == (CHUNKS, True)
        until(lambda: not_saved(server) > 0, "saves fail, and are counted")
        ballast.unlink()
        saved = tier(server)["saved_objects"]
        numbers = iter(range(20, PROMPTS))

        def is_saved() -> bool:
            load.once(next(numbers, 59), "again")
            server.post("/api/clear-cache")
            return bool(tier(server)["saved_objects"] > saved)

        until(is_saved, "it saves again", 30)


def not_saved(server: Server) -> int:
    found = tier(server)
    return int(found["dropped_saves"] + sum(count for how, count in found["saves"].items() if how != "done"))


def tier(server: Server) -> dict[str, Any]:
    [found] = server.get("/api/status")[1]["storage_manager"]["l2_adapters"]
    return dict(found)
