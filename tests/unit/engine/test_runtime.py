"""The whole engine, started and stopped, over real sockets and with real shared memory."""

from __future__ import annotations

import errno
import gc
import mmap
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine import (
    MIB,
    AmbiguousError,
    Cleared,
    EngineSettings,
    EngineStoppedError,
    EngineStuckError,
    EngineTimeoutError,
    Liveness,
    NoMemoryError,
    Question,
    Runtime,
    StartError,
)
from engine.commands import ClearAll
from engine.core import Engine
from engine.events import CommandAsked, Copy, Effect, Event, Tick
from engine.l1.arena import PREFIX
from engine.l1.preflight import Room
from engine.transfer.torch_copier import TorchCopier
from engine.wire import messages as m
from engine.wire.codec import OPERATIONS
from engine.wire.pinger import Pinger
from tests.support.polling import until
from tests.support.server import free_port
from tests.support.shm import segments_of
from tests.unit.engine.support import (
    HANDLE,
    SHM,
    Client,
    Segment,
    cpu_tensor,
    key,
    packed,
    register,
    register_engine_driven,
    unpacked,
)

Connect = Callable[[Runtime], Client]
MakeSegment = Callable[[int], Segment]
MAPS = Path("/proc/self/maps")
THREADS = ["advisor", "engine", "monitor", "recorder", "transfer"]
TOKENS = list(range(32))
"""Two chunks."""
OTHERS = list(range(100, 116))


@pytest.fixture
def server(start_server: Callable[..., Runtime]) -> Runtime:
    return start_server()


@pytest.fixture
def client(server: Runtime, connect: Connect) -> Client:
    return connect(server)


def lookup(client: Client, tokens: list[int] = TOKENS) -> Any:
    client.ask(m.Lookup(key(tokens), packed(1)))
    return client.ask(m.QueryPrefetchStatus("r"))


def mapped(client: Client, segment: Segment, instance_id: int = 1) -> np.ndarray:
    """Registers a worker with one tensor of 8 blocks of 512 bytes; returns the blocks."""
    client.ask(register(instance_id, [cpu_tensor([8, 2, 8, 16], shm_name=segment.name)]))
    return segment.bytes.reshape(8, 512)


class TestService:
    def test_it_serves_when_it_is_made(self, server: Runtime, client: Client) -> None:
        assert server.endpoint.startswith("tcp://127.0.0.1:")
        assert client.ask(m.GetChunkSize()) == 16
        assert server.status().is_healthy

    def test_it_has_five_threads_and_no_daemon(self, server: Runtime) -> None:
        ours = [thread for thread in threading.enumerate() if thread.name in THREADS]
        assert sorted(thread.name for thread in ours) == THREADS
        assert not any(thread.daemon for thread in ours)

    def test_what_was_stored_is_retrieved_into_other_blocks(self, client: Client, segment: MakeSegment) -> None:
        blocks = mapped(client, segment(4096))
        before = np.array(blocks)
        assert client.ask(m.Store(key(TOKENS, worker_id=0), 1, [[1, 2, 3, 4]], HANDLE)) == [b"", True]
        assert lookup(client) == 2
        assert client.ask(m.Retrieve(key(TOKENS, worker_id=0), 1, [[7, 5, 6, 4]], HANDLE, 0)) == [b"", True]
        assert np.array_equal(blocks[[7, 5, 6, 4]], before[[1, 2, 3, 4]])

    def test_what_an_engine_wrote_into_the_pool_is_read_from_it(self, client: Client) -> None:
        pool = client.ask(register_engine_driven(1))
        assert pool["pool_size"] == MIB
        with (SHM / pool["shm_name"]).open("r+b") as file, mmap.mmap(file.fileno(), pool["pool_size"]) as memory:
            written = client.ask(m.PrepareStore(key(TOKENS, worker_id=0), 1))["context"]
            for index, slot in zip(written["chunk_indices"], written["slots"], strict=True):
                memory[slot["offset"] : slot["offset"] + slot["length"]] = bytes([65 + index]) * slot["length"]
            assert client.ask(m.CommitStore(key(TOKENS, worker_id=0), 1, b"")) is True
            assert lookup(client) == 2
            read = client.ask(m.PrepareRetrieve(key(TOKENS, worker_id=0), 1))
            data = [memory[slot["offset"] : slot["offset"] + slot["length"]] for slot in read["context"]["slots"]]
        assert data == [b"A" * 1024, b"B" * 1024]
        assert client.ask(m.CommitRetrieve(key(TOKENS, worker_id=0), 1)) is True

    def test_a_worker_whose_segment_is_missing_is_broken(self, server: Runtime, client: Client) -> None:
        assert client.ask(register(1, [cpu_tensor([8, 2, 8, 16], shm_name="/kvkeep_test_nobody_made_this")])) is None
        assert client.ask(m.Store(key(TOKENS, worker_id=0), 1, [[1, 2, 3, 4]], HANDLE)) == [b"", False]

        def problems() -> list[str]:
            return [str(worker.problem) for worker in server.status().workers if worker.state == "broken"]

        [problem] = until(problems, "the worker is reported as broken")
        assert "kvkeep_test_nobody_made_this" in problem

    def test_who_has_left_has_no_mapping_when_it_is_answered(self, client: Client, segment: MakeSegment) -> None:
        one = segment(4096)
        mapped(client, one)
        del one.bytes
        assert one.name in MAPS.read_text()
        assert client.ask(m.UnregisterKVCache(1)) is None
        assert one.name not in MAPS.read_text()

    def test_clients_do_not_get_each_others_answers(self, server: Runtime, connect: Connect) -> None:
        clients = [connect(server) for _ in range(5)]
        uids = [[client.start(m.Noop()) for _ in range(20)] for client in clients]
        assert [[client.receive()[0] for _ in range(20)] for client in clients] == uids


GARBAGE = [
    pytest.param([b""], id="one empty frame"),
    pytest.param([b"1"], id="only a uid"),
    pytest.param([b"1", b"", b"ack"], id="a word about a stream"),
    pytest.param([b"1", b"", b"a", b"b", b"c"], id="several words"),
    pytest.param([b"1", b"\xc1"], id="malformed operation"),
    pytest.param([b"1", b"\xa2\xff\xfe"], id="an operation that is no UTF-8"),
    pytest.param([b"1", b"\x91" * 100_000], id="a nested operation"),
    pytest.param([b"1", b"\x81\x80\xc0"], id="an operation that cannot be hashed"),
    pytest.param([b"1", packed(11)], id="the retired operation"),
    pytest.param([b"1", packed(2**64 - 1)], id="an unknown number"),
    pytest.param([b"1", packed("x" * 10_000)], id="an unknown name"),
    pytest.param([b"1", packed("cb_unified_lookup"), b"x"], id="an operation nobody could answer"),
    pytest.param([bytes(range(256))] * 50, id="fifty frames"),
]


class TestGarbage:
    @pytest.mark.parametrize("frames", GARBAGE)
    def test_what_cannot_be_answered_is_survived(self, client: Client, frames: list[bytes]) -> None:
        client.send(*frames)
        assert client.fence() == []

    @pytest.mark.parametrize("payload", [b"", b"\xc1", b"\xa1\xff", b"\x91" * 100_000, packed({"a": [None]})])
    @pytest.mark.parametrize("op", [op for op in OPERATIONS if op.answers and op.arguments], ids=lambda op: op.name)
    def test_a_known_operation_is_answered_whatever_its_payload(self, client: Client, op: Any, payload: bytes) -> None:
        client.send(b"1", packed(op.name), *[payload] * len(op.arguments))
        [answer] = client.fence()
        assert answer[:2] == [b"1", packed(op.name)]
        value = unpacked(answer[2]) if len(answer) > 2 else None
        assert value == unpacked(packed(op.failure))

    def test_random_messages_are_survived(self, client: Client) -> None:
        names = st.sampled_from([packed(op.name) for op in OPERATIONS]) | st.binary(max_size=6)

        @given(st.lists(st.tuples(names, st.lists(st.binary(max_size=20), max_size=7)), max_size=10))
        @settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow], deadline=None)
        def send(messages: list[tuple[bytes, list[bytes]]]) -> None:
            for name, payload in messages:
                client.send(b"u", name, *payload)
            assert {answer[0] for answer in client.fence()} <= {b"u"}

        send()

    def test_what_was_refused_or_dropped_is_counted(self, server: Runtime, client: Client) -> None:
        client.send(b"1", packed("no_such_op"))
        client.send(b"1")
        client.send(b"1", packed("query_prefetch_status"), packed(5))
        report = until(lambda: (found := server.status()).failed_requests and found, "the refusal is reported")
        assert (report.failed_requests, report.dropped_messages, report.dropped_replies) == (1, 2, 0)


class TestClear:
    def test_it_says_what_was_made_invisible(self, server: Runtime, client: Client, segment: MakeSegment) -> None:
        mapped(client, segment(4096))
        client.ask(m.Store(key(TOKENS, worker_id=0), 1, [[1, 2, 3, 4]], HANDLE))
        assert server.ask(ClearAll(), 20) == Cleared(2, 2 * 4096)
        assert lookup(client) == 0
        assert server.ask(ClearAll(), 20) == Cleared(0, 0)

    def test_an_engine_that_does_not_answer_is_not_waited_for(
        self, server: Runtime, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ignore(CommandAsked, monkeypatch)
        with pytest.raises(EngineTimeoutError, match=r"did not answer within 0\.01 seconds"):
            server.ask(ClearAll(), 0.01)

    def test_who_waits_when_it_stops_is_told(self, server: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
        asked = ignore(CommandAsked, monkeypatch)
        stopper = threading.Thread(target=lambda: asked.wait(20) and server.stop())
        stopper.start()
        with pytest.raises(EngineStoppedError):
            server.ask(ClearAll(), 20)
        stopper.join()


def ignore(kind: type[Event], monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Makes engines do nothing about such events; returns what is set at the first one."""
    seen, handle = threading.Event(), Engine.handle

    def deaf(self: Engine, event: Event) -> list[Effect]:
        if isinstance(event, kind):
            seen.set()
            return []
        return handle(self, event)

    monkeypatch.setattr(Engine, "handle", deaf)
    return seen


class TestStop:
    def test_it_leaves_nothing(self, start_server: Callable[..., Runtime]) -> None:
        server = start_server()
        assert len(segments_of(os.getpid())) == 1
        server.stop()
        assert segments_of(os.getpid()) == []
        assert not any(thread.name in THREADS for thread in threading.enumerate())
        server.stop()

    def test_it_can_be_asked_nothing_any_more(self, server: Runtime) -> None:
        server.stop()
        with pytest.raises(EngineStoppedError):
            server.status()
        with pytest.raises(EngineStoppedError):
            server.ask(ClearAll(), 1)

    def test_its_end_is_no_death(self, start_server: Callable[..., Runtime]) -> None:
        start_server(on_death=pytest.fail).stop()

    def test_whoever_waits_for_a_transfer_is_answered(
        self, server: Runtime, client: Client, segment: MakeSegment, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The copy at hand is finished and counts; those behind it fail, and who leaves may go."""
        at_work, go_on = threading.Event(), threading.Event()
        copy = TorchCopier.copy

        def slow(self: TorchCopier, job: Copy) -> None:
            at_work.set()
            assert go_on.wait(20)
            copy(self, job)

        mapped(client, segment(4096))
        monkeypatch.setattr(TorchCopier, "copy", slow)
        waiting = [
            client.start(m.Store(key(TOKENS, worker_id=0), 1, [[1, 2, 3, 4]], HANDLE)),
            client.start(m.Store(key(range(100, 116), worker_id=0), 1, [[5, 6]], HANDLE)),
            client.start(m.UnregisterKVCache(1)),
        ]
        assert client.fence() == []
        assert at_work.wait(20)
        stopper = threading.Thread(target=server.stop)
        stopper.start()
        until(lambda: server._loop._transfers._stopping, "the transfers have been told to stop")
        go_on.set()
        answers = {reply[0]: reply[2:] for reply in (client.receive() for _ in range(3))}
        stopper.join()
        assert [answers[uid] for uid in waiting] == [[packed([b"", True])], [packed([b"", False])], []]

    def test_a_transfer_that_never_ends_is_left_behind(
        self, server: Runtime, client: Client, segment: MakeSegment, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Its client is not answered: it would use blocks that may still be written."""
        at_work, go_on = threading.Event(), threading.Event()
        monkeypatch.setattr(TorchCopier, "copy", lambda self, job: at_work.set() or go_on.wait(20))
        monkeypatch.setattr("engine.transfer.worker._STOP_SECONDS", 0.05)
        mapped(client, segment(4096))
        client.start(m.Store(key(TOKENS, worker_id=0), 1, [[1, 2, 3, 4]], HANDLE))
        assert at_work.wait(20)
        with pytest.raises(EngineStuckError, match="threads that do not end: transfer"):
            server.stop()
        assert not (SHM / server._arena.name).exists()
        assert not client._socket.poll(100)
        go_on.set()
        until(lambda: not server._transfers._thread.is_alive(), "the transfer thread has ended")
        server.stop()

    def test_an_engine_thread_that_never_ends_is_left_behind(
        self, server: Runtime, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        at_work, go_on = threading.Event(), threading.Event()
        monkeypatch.setattr(server._loop, "_step", lambda: at_work.set() or go_on.wait(20))
        monkeypatch.setattr("engine.runtime._STOP_SECONDS", 0.05)
        assert at_work.wait(20)
        with pytest.raises(EngineStuckError, match="threads that do not end: engine"):
            server.stop()
        assert not (SHM / server._arena.name).exists()
        go_on.set()
        until(lambda: not server._thread.is_alive(), "the engine thread has ended")
        server.stop()


class TestDrain:
    def test_what_runs_runs_out_and_nothing_begins(
        self, server: Runtime, client: Client, segment: MakeSegment, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        mapped(client, segment(4096))
        client.ask(m.Store(key(TOKENS, worker_id=0), 1, [[1, 2, 3, 4]], HANDLE))
        assert lookup(client) == 2
        at_work, go_on, copy = threading.Event(), threading.Event(), TorchCopier.copy

        def slow(self: TorchCopier, job: Copy) -> None:
            at_work.set()
            assert go_on.wait(20)
            copy(self, job)

        monkeypatch.setattr(TorchCopier, "copy", slow)
        running = client.start(m.Retrieve(key(TOKENS, worker_id=0), 1, [[7, 5, 6, 4]], HANDLE, 0))
        assert at_work.wait(20)
        server.drain(20)
        assert server.status().running_transfers == 1
        assert client.ask(m.Store(key(range(100, 116), worker_id=0), 1, [[5, 6]], HANDLE)) == [b"", True]
        assert lookup(client) == 0
        report = until(lambda: (found := server.status()).skipped_stores and found, "the skipped store is reported")
        assert (report.running_transfers, report.l1.stored_objects) == (1, 2)
        go_on.set()
        assert (reply := client.receive())[0] == running
        assert unpacked(reply[2]) == [b"", True]
        until(lambda: server.status().running_transfers == 0, "nothing runs")


class TestResize:
    """L1 of 1 MiB that can be grown to 4 MiB."""

    @pytest.fixture
    def server(self, start_server: Callable[..., Runtime]) -> Runtime:
        return start_server(l1_max_size=4 * MIB)

    def test_memory_comes_and_goes_with_the_capacity(self, server: Runtime) -> None:
        assert (taken(server), server._arena.length) == (MIB, 4 * MIB)
        for size in (4 * MIB, 2 * MIB, 3 * MIB + 4096, 4096):
            server.resize_l1(size)
            until(lambda size=size: taken(server) == size, "as much memory as capacity is taken")
            until(lambda size=size: server.status().l1.memory_total_bytes == size, "the capacity is reported")

    def test_what_lies_below_the_new_size_survives_and_what_lies_behind_goes(
        self, server: Runtime, client: Client, segment: MakeSegment
    ) -> None:
        blocks = mapped(client, segment(4096))
        before = np.array(blocks)
        client.ask(m.Store(key(TOKENS, worker_id=0), 1, [[1, 2, 3, 4]], HANDLE))
        client.ask(m.Store(key(OTHERS, worker_id=0), 1, [[5, 6]], HANDLE))
        server.resize_l1(2 * 4096)
        until(lambda: taken(server) == 2 * 4096, "the memory was given back")
        assert lookup(client, OTHERS) == 0
        server.resize_l1(2 * MIB)
        assert lookup(client) == 2
        assert client.ask(m.Retrieve(key(TOKENS, worker_id=0), 1, [[7, 5, 6, 4]], HANDLE, 0)) == [b"", True]
        assert np.array_equal(blocks[[7, 5, 6, 4]], before[[1, 2, 3, 4]])
        client.ask(m.Store(key(OTHERS, worker_id=0), 1, [[1, 2]], HANDLE))
        assert lookup(client, OTHERS) == 1
        assert client.ask(m.Retrieve(key(OTHERS, worker_id=0), 1, [[3, 7]], HANDLE, 0)) == [b"", True]
        assert np.array_equal(blocks[[3, 7]], before[[1, 2]])

    def test_what_was_promised_behind_the_new_size_is_still_kept(
        self, server: Runtime, client: Client, segment: MakeSegment
    ) -> None:
        blocks = mapped(client, segment(4096))
        before = np.array(blocks)
        client.ask(m.Store(key(TOKENS, worker_id=0), 1, [[1, 2, 3, 4]], HANDLE))
        assert lookup(client) == 2
        server.resize_l1(4096)
        assert taken(server) == MIB
        assert client.ask(m.Retrieve(key(TOKENS, worker_id=0), 1, [[7, 5, 6, 4]], HANDLE, 0)) == [b"", True]
        assert np.array_equal(blocks[[7, 5, 6, 4]], before[[1, 2, 3, 4]])
        until(lambda: taken(server) == 4096, "the memory was given back")
        assert lookup(client) == 1

    def test_a_shrink_that_waits_can_be_taken_back(self, server: Runtime, client: Client, segment: MakeSegment) -> None:
        mapped(client, segment(4096))
        client.ask(m.Store(key(TOKENS, worker_id=0), 1, [[1, 2, 3, 4]], HANDLE))
        assert lookup(client) == 2
        server.resize_l1(4096)
        server.resize_l1(2 * MIB)
        assert taken(server) == 2 * MIB
        until(lambda: server.status().l1.memory_total_bytes == 2 * MIB, "the capacity is reported")

    def test_engines_that_copy_by_themselves_map_all_that_it_can_become(self, server: Runtime, client: Client) -> None:
        assert client.ask(register_engine_driven(1))["pool_size"] == 4 * MIB

    @pytest.mark.parametrize("most", [None, 2 * MIB])
    def test_beyond_what_is_mapped_it_cannot_be_grown(
        self, start_server: Callable[..., Runtime], most: int | None
    ) -> None:
        server = start_server(l1_max_size=most)
        with pytest.raises(NoMemoryError, match=rf"beyond {most or MIB} bytes \(l1\.max_size\)"):
            server.resize_l1((most or MIB) + 1)
        assert taken(server) == MIB
        assert server.status().l1.memory_total_bytes == MIB

    def test_memory_that_is_not_there_changes_nothing(
        self, server: Runtime, client: Client, segment: MakeSegment, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*_: int) -> None:
            raise OSError(28, "No space left on device")

        mapped(client, segment(4096))
        client.ask(m.Store(key(TOKENS, worker_id=0), 1, [[1, 2, 3, 4]], HANDLE))
        with monkeypatch.context() as patched:
            patched.setattr(os, "posix_fallocate", refuse)
            with pytest.raises(NoMemoryError, match="No space left on device"):
                server.resize_l1(2 * MIB)
        assert (taken(server), lookup(client)) == (MIB, 2)
        assert server.status().l1.memory_total_bytes == MIB
        server.resize_l1(2 * MIB)
        assert taken(server) == 2 * MIB

    def test_a_growth_that_the_machine_has_no_room_for_changes_nothing(
        self, server: Runtime, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        full = Room("limit", "/sys/fs/cgroup/memory.max", MIB, 0)
        monkeypatch.setattr(server._arena, "_find_rooms", lambda: [full])
        with pytest.raises(NoMemoryError, match="1 MiB more of L1 do not fit: the memory limit /sys/fs"):
            server.resize_l1(2 * MIB)
        assert taken(server) == MIB
        assert server.status().l1.memory_total_bytes == MIB

    def test_the_size_it_has_changes_nothing(self, server: Runtime) -> None:
        server.resize_l1(MIB)
        assert taken(server) == MIB

    def test_one_that_has_stopped_is_not_resized(self, server: Runtime) -> None:
        server.stop()
        with pytest.raises(EngineStoppedError):
            server.resize_l1(2 * MIB)


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def taken(server: Runtime) -> int:
    """Bytes of memory behind L1."""
    return (SHM / server._arena.name).stat().st_blocks * 512


class TestChangeOfPolicy:
    def test_it_is_in_force_and_nothing_is_lost(self, server: Runtime, client: Client, segment: MakeSegment) -> None:
        mapped(client, segment(4096))
        client.ask(m.Store(key(TOKENS, worker_id=0), 1, [[1, 2, 3, 4]], HANDLE))
        server.change_policy("fifo")
        until(lambda: server.status().eviction_policy == "fifo", "the new policy is reported")
        assert lookup(client) == 2

    def test_one_that_there_is_not_is_refused_and_the_old_one_stays(self, server: Runtime) -> None:
        with pytest.raises(StartError, match="there is no eviction policy 'mru'"):
            server.change_policy("mru")
        assert server.status().eviction_policy == "hit_density"


class TestLook:
    def test_it_finds_what_a_lookup_of_the_same_tokens_finds(
        self, server: Runtime, client: Client, segment: MakeSegment
    ) -> None:
        mapped(client, segment(4096))
        client.ask(m.Store(key(TOKENS, worker_id=0), 1, [[1, 2, 3, 4]], HANDLE))
        for tokens in (TOKENS, [*TOKENS, 5], TOKENS[:16], OTHERS, []):
            assert server.look(Question(tokens, "m"), 20).hit_chunks == lookup(client, tokens)
        assert server.look(Question([*TOKENS, 5], "m"), 20).reason == "chunk_incomplete"
        assert server.look(Question(OTHERS, "m"), 20).reason == "never_stored"
        assert server.look(Question(TOKENS, "m", cache_salt="s"), 20).hit_chunks == 0

    def test_what_fits_several_models_raises(self, server: Runtime, client: Client) -> None:
        for instance_id, world_size in ((1, 1), (2, 2)):
            client.ask(register_engine_driven(instance_id, world_size=world_size))
        with pytest.raises(AmbiguousError, match="say which with world_size"):
            server.look(Question(TOKENS, "m"), 20)
        assert server.look(Question(TOKENS, "m", 2), 20).reason == "never_stored"


class TestDeath:
    def test_an_engine_thread_that_dies_is_told_once_and_seen(
        self, start_server: Callable[..., Runtime], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        handle, deaths = Engine.handle, []

        def fail(self: Engine, event: Event) -> list[Effect]:
            if isinstance(event, Tick):
                raise ValueError("a broken invariant")
            return handle(self, event)

        server = start_server(on_death=deaths.append)
        monkeypatch.setattr(Engine, "handle", fail)
        until(lambda: not server._thread.is_alive(), "the engine thread has ended")
        assert [repr(death.__cause__) for death in deaths] == ["ValueError('a broken invariant')"]
        assert str(deaths[0]) == "the engine thread has ended: ValueError: a broken invariant"
        with pytest.raises(EngineStoppedError):
            server.status()
        with pytest.raises(EngineStoppedError):
            server.ask(ClearAll(), 1)

    def test_a_transfer_thread_that_dies_costs_its_workers_and_the_health(
        self, server: Runtime, client: Client, segment: MakeSegment, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def die(self: TorchCopier, job: Copy) -> None:
            raise SystemExit("no more")

        mapped(client, segment(4096))
        monkeypatch.setattr(TorchCopier, "copy", die)
        store = m.Store(key(TOKENS, worker_id=0), 1, [[1, 2, 3, 4]], HANDLE)
        assert client.ask(store) == [b"", False]
        report = until(lambda: (found := server.status()).problems and found, "the death is reported")
        assert not report.is_healthy
        assert "the transfer thread has ended" in report.problems[0]
        until(lambda: server.checks().failing(liveness_only=True), "the monitor has found it, too")
        assert server.status().problems == report.problems
        assert client.ask(store) == [b"", False]
        assert client.ask(m.UnregisterKVCache(1)) is None
        assert client.ask(m.Ping(None)) is True

    def test_an_engine_thread_that_is_stuck_is_ill(self, server: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
        assert server.status().problems == ()
        monkeypatch.setattr("engine.monitor.PATIENCE_SECONDS", -1.0)
        report = until(lambda: (found := server.status()).problems and found, "the silence is reported")
        assert not report.is_healthy
        assert report.problems[0].startswith("engine: no beat for ")

    def test_an_idle_engine_reports_every_second(self, server: Runtime) -> None:
        first = server._loop.published[0]
        until(lambda: server._loop.published[0] > first, "a newer report", 5)


class TestStart:
    def test_a_port_that_is_taken_is_refused(self, server: Runtime) -> None:
        port = int(server.endpoint.rpartition(":")[2])
        with pytest.raises(StartError, match=rf"cannot listen on 127\.0\.0\.1:{port}: .*--port"):
            Runtime(EngineSettings(port=port, l1_size=MIB), pytest.fail)
        assert len(segments_of(os.getpid())) == 1

    def test_an_address_that_is_none_is_refused(self) -> None:
        with pytest.raises(StartError, match=r"cannot listen on 203\.0\.113\.1:0"):
            Runtime(EngineSettings(host="203.0.113.1", port=0, l1_size=MIB), pytest.fail)

    def test_an_unknown_policy_is_refused(self) -> None:
        with pytest.raises(StartError, match="there is no eviction policy 'mru'"):
            Runtime(EngineSettings(port=0, eviction_policy="mru", l1_size=MIB), pytest.fail)

    def test_an_l1_that_does_not_fit_is_refused_and_the_port_is_free_again(self, server: Runtime) -> None:
        port = int(server.endpoint.rpartition(":")[2])
        server.stop()
        with pytest.raises(StartError, match="do not fit: /dev/shm has"):
            Runtime(EngineSettings(port=port, l1_size=1 << 60), pytest.fail)
        with zmq.Context() as context, context.socket(zmq.ROUTER) as socket:
            socket.bind(f"tcp://127.0.0.1:{port}")

    @pytest.mark.parametrize("part", ["engine.loop.Mailbox", "engine.loop.EngineLoop", "engine.monitor.Monitor"])
    def test_a_part_that_cannot_be_made_leaves_nothing(self, monkeypatch: pytest.MonkeyPatch, part: str) -> None:
        def refuse(*_: object) -> None:
            raise OSError(errno.EMFILE, "Too many open files")

        port = free_port()
        gc.collect()
        descriptors = open_descriptors()
        monkeypatch.setattr(part, refuse)
        with pytest.raises(OSError, match="Too many open files"):
            Runtime(EngineSettings(port=port, l1_size=MIB), pytest.fail)
        assert segments_of(os.getpid()) == []
        gc.collect()
        assert open_descriptors() == descriptors
        with zmq.Context() as context, context.socket(zmq.ROUTER) as socket:
            socket.bind(f"tcp://127.0.0.1:{port}")

    def test_what_a_killed_server_left_is_removed(self, start_server: Callable[..., Runtime]) -> None:
        left = SHM / f"{PREFIX}0_left"
        left.write_bytes(b"nobody holds a lock on it")
        start_server()
        assert not left.exists()

    def test_a_start_can_be_watched_and_stopped(self, server: Runtime) -> None:
        port = int(server.endpoint.rpartition(":")[2])
        server.stop()
        told: list[int] = []

        def stop(done: int) -> None:
            told.append(done)
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            Runtime(EngineSettings(port=port, l1_size=MIB), pytest.fail, stop)
        assert told == [MIB]
        assert segments_of(os.getpid()) == []
        with zmq.Context() as context, context.socket(zmq.ROUTER) as socket:
            socket.bind(f"tcp://127.0.0.1:{port}")

    def test_an_engine_whose_socket_does_not_answer_does_not_start(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("engine.runtime._FIRST_PASS_SECONDS", 0.2)
        monkeypatch.setattr("engine.wire.pinger.reachable", lambda endpoint: "tcp://127.0.0.1:1")
        with pytest.raises(StartError, match=r"does not come to life within 0\.2 seconds: socket: no answer yet$"):
            Runtime(EngineSettings(port=0, l1_size=MIB), pytest.fail)
        assert not any(thread.name in THREADS for thread in threading.enumerate())

    def test_a_transfer_thread_that_never_begins_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        go_on = threading.Event()
        monkeypatch.setattr("engine.runtime._FIRST_PASS_SECONDS", 0.2)
        monkeypatch.setattr("engine.transfer.worker._STOP_SECONDS", 0.05)
        monkeypatch.setattr(TorchCopier, "prepare_thread", lambda self: go_on.wait(20))
        with pytest.raises(StartError, match="transfer: no answer yet"):
            Runtime(EngineSettings(port=0, l1_size=MIB), pytest.fail)
        assert segments_of(os.getpid()) == []
        go_on.set()
        until(lambda: not any(thread.name in THREADS for thread in threading.enumerate()), "the threads have ended")

    def test_an_engine_whose_monitor_cannot_begin_does_not_start(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        def refuse(self: Pinger) -> None:
            raise zmq.ZMQError(errno.EMFILE)

        monkeypatch.setattr("engine.runtime._FIRST_PASS_SECONDS", 0.2)
        monkeypatch.setattr(Pinger, "connect", refuse)
        with pytest.raises(StartError, match="monitor: the monitor thread has ended"):
            Runtime(EngineSettings(port=0, l1_size=MIB), pytest.fail)
        assert not any(thread.name in THREADS for thread in threading.enumerate())
        assert segments_of(os.getpid()) == []
        assert "Too many open files" in caplog.text

    def test_two_engines_do_not_meet(self, start_server: Callable[..., Runtime], connect: Connect) -> None:
        clients = [connect(start_server(chunk_size=size)) for size in (16, 32)]
        assert [client.ask(m.GetChunkSize()) for client in clients] == [16, 32]
        pools = {client.ask(register_engine_driven(1))["shm_name"] for client in clients}
        assert len(pools) == 2


def test_a_frame_that_is_too_large_costs_its_connection_and_nothing_else(server: Runtime, connect: Connect) -> None:
    greedy, other = connect(server), connect(server)
    with greedy.monitored(zmq.EVENT_DISCONNECTED) as disconnected:
        greedy.send(b"1", packed("noop"), bytes((64 << 20) + 1))
        assert disconnected.poll(20_000)
    assert other.ask(m.Noop()) == "OK"
    assert server.status().is_healthy


def test_silent_workers_are_given_up_by_the_running_engine(
    start_server: Callable[..., Runtime], connect: Connect
) -> None:
    server = start_server(liveness=Liveness(registration_grace=0.0, worker_timeout=0.0))
    client = connect(server)
    client.ask(register_engine_driven(1))
    until(lambda: server.status().workers, "the worker is there")
    client.close()
    until(lambda: not server.status().workers, "the worker is gone", 5)
