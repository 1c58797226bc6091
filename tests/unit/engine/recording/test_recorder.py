"""Recordings of a running server, over its real socket."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from engine import RecordingError, RecordingSettings, Runtime
from engine.recording.files import TraceFiles
from engine.wire import messages as m
from tests.support.polling import until
from tests.unit.engine.support import Client, key, packed

Start = Callable[..., Runtime]
Connect = Callable[[Runtime], Client]

PLANTED = list(range(3_141_592_600, 3_141_592_700))
"""Tokens that are told from anything else, by each other too: six chunks and four tokens."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "recordings"


@pytest.fixture
def server(start_server: Start, folder: Path) -> Runtime:
    return start_server(recording=RecordingSettings(folder=str(folder)))


@pytest.fixture
def client(server: Runtime, connect: Connect) -> Client:
    return connect(server)


def look_up(client: Client, tokens: list[int] = PLANTED, **more: Any) -> None:
    client.ask(m.Lookup(key(tokens, **more), packed(1)))


def recorded(folder: Path) -> Iterator[dict[str, Any]]:
    for file in sorted(folder.iterdir()):
        for line in file.read_text().splitlines():
            yield json.loads(line)


def test_nothing_is_recorded_unless_it_is_asked_for(server: Runtime, client: Client, folder: Path) -> None:
    look_up(client)
    assert not server.recording().is_enabled
    assert server.recording().folder == str(folder)
    assert not folder.exists()


def test_lookups_are_recorded_while_it_is_on(server: Runtime, client: Client, folder: Path) -> None:
    look_up(client)
    server.record(True)
    look_up(client)
    look_up(client, PLANTED[:40])
    look_up(client, PLANTED[:40], cache_salt="tenant")
    server.record(False)
    look_up(client)
    report = server.recording()
    assert (report.is_enabled, report.file, report.lines, report.dropped, report.problem) == (False, None, 3, 0, None)
    one, two, three = recorded(folder)
    assert [one["input_length"], two["input_length"], three["input_length"]] == [100, 40, 40]
    assert two["hash_ids"] == one["hash_ids"][:2]
    assert not set(three["hash_ids"]) & set(one["hash_ids"])
    assert 0 <= one["timestamp"] <= two["timestamp"] <= three["timestamp"] < 60_000
    assert report.bytes == sum(file.stat().st_size for file in folder.iterdir())


def test_no_token_is_written(server: Runtime, client: Client, folder: Path) -> None:
    server.record(True)
    for _ in range(3):
        look_up(client)
    server.record(False)
    written = b"".join(file.read_bytes() for file in folder.iterdir())
    assert written.count(b"\n") == 3
    for token in PLANTED:
        assert str(token).encode() not in written
        assert token.to_bytes(4, "big") not in written
        assert token.to_bytes(4, "little") not in written


def test_two_recordings_have_nothing_in_common(server: Runtime, client: Client, folder: Path) -> None:
    for _ in range(2):
        server.record(True)
        look_up(client)
        server.record(False)
    one, two = recorded(folder)
    assert len(set(one["hash_ids"]) | set(two["hash_ids"])) == 12


def test_a_recording_that_is_on_goes_on(server: Runtime, client: Client, folder: Path) -> None:
    server.record(True)
    look_up(client)
    server.record(True)
    look_up(client)
    until(lambda: server.recording().lines == 2, "two lookups are recorded")
    assert len(list(folder.iterdir())) == 1
    assert server.recording().file == next(folder.iterdir()).name


def test_it_can_be_on_from_the_start_and_ends_with_the_server(
    start_server: Start, connect: Connect, folder: Path
) -> None:
    server = start_server(recording=RecordingSettings(enabled=True, folder=str(folder)))
    assert server.recording().is_enabled
    look_up(connect(server))
    server.stop()
    assert len(list(recorded(folder))) == 1


def test_files_follow_each_other(start_server: Start, connect: Connect, folder: Path) -> None:
    settings = RecordingSettings(enabled=True, folder=str(folder), max_file_size=1000, max_files=2)
    server = start_server(recording=settings)
    client = connect(server)
    for _ in range(40):
        look_up(client)
    server.record(False)
    assert server.recording().lines == 40
    assert [file.stat().st_size <= 1000 for file in folder.iterdir()] == [True, True]
    assert 0 < len(list(recorded(folder))) < 40


def test_a_lookup_too_long_for_a_file_is_dropped_and_counted(
    start_server: Start, connect: Connect, folder: Path
) -> None:
    server = start_server(recording=RecordingSettings(enabled=True, folder=str(folder), max_file_size=300))
    client = connect(server)
    look_up(client, list(range(16 * 50)))
    look_up(client)
    server.record(False)
    assert (server.recording().lines, server.recording().dropped) == (1, 1)


def test_without_a_folder_it_is_refused(start_server: Start) -> None:
    server = start_server()
    with pytest.raises(RecordingError, match=r"set recording\.folder"):
        server.record(True)
    assert server.recording().problem is not None


def test_a_folder_that_cannot_be_made_is_refused_and_does_not_keep_the_server_from_starting(
    start_server: Start, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder.write_bytes(b"")
    server = start_server(recording=RecordingSettings(enabled=True, folder=str(folder / "below")))
    assert "the traffic is not recorded: recordings cannot be written to" in caplog.text
    with pytest.raises(RecordingError, match="Not a directory"):
        server.record(True)
    assert not server.recording().is_enabled


def test_a_disk_that_fails_ends_the_recording_and_nothing_else(
    server: Runtime, client: Client, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.record(True)
    look_up(client)
    until(lambda: server.recording().lines == 1, "a lookup is recorded")
    with monkeypatch.context() as patch:
        patch.setattr(TraceFiles, "_append", _full)
        look_up(client)
        until(lambda: not server.recording().is_enabled, "the recording has ended")
    report = server.recording()
    assert report.problem is not None
    assert report.problem.endswith("could not be written: No space left on device")
    assert (report.lines, report.file) == (1, None)
    look_up(client)
    assert server.status().is_healthy
    server.record(True)
    assert (server.recording().problem, server.recording().lines) == (None, 0)
    assert len(list(recorded(folder))) == 1


def _full(self: TraceFiles, line: bytes) -> None:
    raise OSError(28, "No space left on device")


_LIMITED = """
import resource, sys
from engine import MIB, EngineSettings, RecordingSettings, Runtime
from tests.support.polling import until
from tests.unit.engine.support import Client, key, packed
from engine.wire import messages as m
import zmq

if __name__ == "__main__":
    recording = RecordingSettings(folder=sys.argv[1])
    server = Runtime(EngineSettings(port=0, chunk_size=16, l1_size=MIB, recording=recording), print)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
    server.record(True)
    with zmq.Context() as context:
        client = Client(context, server.endpoint)
        for _ in range(20):
            client.ask(m.Lookup(key(list(range(100))), packed(1)))
        until(lambda: not server.recording().is_enabled, "the recording has ended")
        client.ask(m.Noop())
        client.close()
    print(server.recording().problem, server.recording().lines, server.status().is_healthy)
    server.stop()
"""


def test_a_real_limit_of_the_system_ends_it_with_whole_lines(folder: Path) -> None:
    command = [sys.executable, "-c", _LIMITED, str(folder)]
    told = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True).stdout.strip()
    lines = list(recorded(folder))
    assert told.endswith(f"could not be written: File too large {len(lines)} True")
    assert 0 < len(lines) < 20
    assert all(len(line["hash_ids"]) == 6 for line in lines)
