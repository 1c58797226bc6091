"""Reloading a real server: by request, by SIGHUP and by its own watch on the file."""

from __future__ import annotations

import json
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine import MIB
from service.config_watch import INTERVAL
from tests.support.polling import until
from tests.support.server import Server, free_port, http


class FromFile(Server):
    """A server whose size of L1 is the file's."""

    def __init__(self, file: Path, text: str = "l1: {size: 64MiB}\n", *flags: str) -> None:
        super().__init__("--config", str(file), *flags)
        self.file = file
        if text:
            file.write_text(text)

    def command(self) -> list[str]:
        arguments = super().command()
        assert arguments[3] == "--l1-size-gb"
        return [*arguments[:3], *arguments[5:]]

    def hang_up(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGHUP)

    def reload(self, **body: object) -> tuple[int, Any]:
        url = f"{self.http_url}/api/config/reload"
        return http("POST", url, json.dumps(body).encode(), headers={"Content-Type": "application/json"})

    def setting(self, name: str) -> dict[str, Any]:
        [found] = [each for each in self.get("/api/config")[1]["settings"] if each["setting"] == name]
        return found

    def last(self) -> tuple[str, str]:
        report = self.get("/api/config")[1]["last_reload"]
        return report["trigger"], report["outcome"]

    def policy(self) -> str:
        return self.get("/api/status")[1]["storage_manager"]["eviction_controller"]["eviction_policy"]

    def capacity(self) -> int:
        return self.get("/api/status")[1]["storage_manager"]["l1_manager"]["memory_total_bytes"]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "kvkeep.yaml"


@pytest.fixture
def server(file: Path) -> Iterator[FromFile]:
    with FromFile(file) as running:
        yield running


def test_a_request_a_signal_and_a_new_file_each_change_the_size(file: Path) -> None:
    with FromFile(file, "l1: {size: 64MiB, max_size: 128MiB}\n") as server:
        file.write_text("l1:\n  max_size: 128MiB\n  size: 128MiB\n")
        status, body = server.reload()
        assert (status, body["applied"], body["changes"][0]["new"]) == (200, True, "128MiB")
        assert server.setting("l1.size")["origin"] == f"{file}:3"
        until(lambda: server.capacity() == 128 * MIB, "grown")

        file.write_text("l1: {size: 32MiB, max_size: 128MiB}\n")
        server.hang_up()
        until(lambda: server.last() == ("signal", "applied"), "the reload by SIGHUP")
        until(lambda: server.capacity() == 32 * MIB, "shrunk")

        file.write_text("l1: {size: 48MiB, max_size: 128MiB, eviction_policy: FIFO}\n")
        until(lambda: server.last() == ("watch", "applied"), "the reload by the watch")
        until(lambda: server.capacity() == 48 * MIB, "grown again")
        assert server.policy() == "fifo"
        assert server.get("/api/healthcheck") == (200, {"status": "healthy"})


def test_more_than_max_size_needs_a_restart(file: Path) -> None:
    with FromFile(file, "l1: {size: 64MiB, max_size: 128MiB}\n") as server:
        file.write_text("l1: {size: 129MiB, max_size: 129MiB}\n")
        status, body = server.reload()
        assert (status, [each["is_live"] for each in body["changes"]]) == (409, [False, False])
        assert server.capacity() == 64 * MIB


def test_a_mounted_config_map_is_followed(tmp_path: Path) -> None:
    """As the kubelet does it: the file leads through a link to a folder, and that link is exchanged at once."""

    def version(name: str, text: str) -> None:
        (tmp_path / name).mkdir()
        (tmp_path / name / "kvkeep.yaml").write_text(text)
        (tmp_path / "..data_tmp").symlink_to(name)
        (tmp_path / "..data_tmp").rename(tmp_path / "..data")

    version("..2026_01_01", "l1: {size: 64MiB}\n")
    (tmp_path / "kvkeep.yaml").symlink_to("..data/kvkeep.yaml")
    with FromFile(tmp_path / "kvkeep.yaml", "") as server:
        version("..2026_01_02", "l1: {size: 63MiB}\n")
        until(lambda: server.last() == ("watch", "applied"), "the new version")
        assert server.setting("l1.size")["value"] == "63MiB"


def test_a_dry_run_tells_and_does_nothing(server: FromFile) -> None:
    server.file.write_text("l1: {size: 32MiB}\nserver: {chunk_size: 16}\n")
    status, body = server.reload(dry_run=True)
    assert (status, body["applied"]) == (200, False)
    assert {each["setting"]: each["is_live"] for each in body["changes"]} == {
        "l1.size": True,
        "server.chunk_size": False,
    }
    assert (server.setting("l1.size")["value"], server.capacity()) == ("64MiB", 64 * MIB)


def test_what_needs_a_restart_is_named_and_nothing_is_applied(server: FromFile) -> None:
    server.file.write_text("l1: {size: 32MiB}\nserver: {chunk_size: 16}\n")
    status, body = server.reload()
    assert status == 409
    assert "server.chunk_size is read at the start only" in body["detail"]
    _, shown = server.get("/api/config")
    assert shown["pending_restart"] == body["changes"]
    assert (server.setting("l1.size")["value"], server.capacity()) == ("64MiB", 64 * MIB)
    assert server.setting("server.chunk_size")["value"] == 256


def test_an_invalid_file_changes_nothing_and_is_logged_once(server: FromFile) -> None:
    server.file.write_text("l1:\n  sise: 96MiB\n")
    until(lambda: server.last() == ("watch", "invalid"), "the refusal")
    line = f'{server.file}:2: l1.sise: unknown key, did you mean "size"?'
    assert server.get("/api/config")[1]["last_reload"]["message"] == line
    assert server.setting("l1.size")["value"] == "64MiB"
    assert server.get("/api/healthcheck") == (200, {"status": "healthy"})

    # The file is put right, and the watch has looked at it: until then it has said so once.
    server.file.write_text("l1: {size: 64MiB}\n")
    until(lambda: server.last() == ("watch", "unchanged"), "the file put right")
    assert server.output().count("l1.sise: unknown key") == 1


def test_a_file_that_is_still_being_written_is_not_read(server: FromFile) -> None:
    """One line after the other, for longer than the watch takes between two looks; each but the last is wrong."""
    with server.file.open("w") as writing:
        rounds = int(2 * INTERVAL / 0.25)
        for number in range(rounds):
            writing.write(f"not_yet_{number}: 1\n")
            writing.flush()
            assert server.last() == ("start", "applied")
            with pytest.raises(AssertionError):
                until(lambda: server.last() != ("start", "applied"), "a reading", timeout=0.25)
    server.file.write_text("l1: {size: 64MiB}\n# whole\n")
    until(lambda: server.last() == ("watch", "unchanged"), "the whole file")
    assert "not_yet" not in server.output()


def test_a_flag_wins_over_the_file_on_reload_too(file: Path) -> None:
    file.write_text("l1: {size: 64MiB}\n")
    with Server("--config", str(file), l1_size_gb=0.03125) as server:
        file.write_text("l1: {size: 128MiB}\nserver: {port: 1}\n")
        assert server.post("/api/config/reload") == (200, {"applied": True, "dry_run": False, "changes": []})
        [size] = [each for each in server.get("/api/config")[1]["settings"] if each["setting"] == "l1.size"]
        assert (size["value"], size["origin"]) == (32 * MIB, "flag --l1-size-gb")


def test_sighup_without_a_file_is_told_in_the_log_and_ends_nothing() -> None:
    with Server() as server:
        assert server.process is not None
        server.process.send_signal(signal.SIGHUP)
        until(lambda: "SIGHUP has no effect" in server.output(), "the line")
        assert server.get("/api/healthcheck") == (200, {"status": "healthy"})
        assert server.stop() == 0


class Spawned(FromFile):
    """The same on a known HTTP port, to be asked before it is ready."""

    def __init__(self, file: Path, port: int = 0) -> None:
        super().__init__(file)
        self.port, self.http_port = port, free_port()

    def __enter__(self) -> Spawned:
        return self.spawn()


def test_sighup_during_the_start_is_served_after_it(file: Path) -> None:
    with Spawned(file) as server:
        server.seconds_to("/", 0)
        server.hang_up()
        until(server.is_ready, "ready")
        until(lambda: server.last() == ("signal", "unchanged"), "the reload")
        assert server.stop() == 0


def test_an_engine_that_could_not_start_cannot_be_reloaded(file: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with Spawned(file, taken.getsockname()[1]) as server:
            until(lambda: "could not be initialised" in server.output(), "the failure in the log")
            assert server.reload()[0] == 503
            server.hang_up()
            assert server.get("/api/config")[0] == 200
            assert server.stop() == 1


def quotas(server: FromFile) -> list[tuple[str, int | None, str]]:
    return [(each["cache_salt"], each["limit"], each["origin"]) for each in server.get("/api/quotas")[1]["tenants"]]


def put(server: FromFile, path: str, **body: object) -> tuple[int, Any]:
    headers = {"Content-Type": "application/json"}
    return http("PUT", f"{server.http_url}{path}", json.dumps(body).encode(), headers=headers)


def test_what_operators_have_set_outlives_a_reload_and_the_rest_is_the_files(file: Path) -> None:
    tenants = "quotas: {tenants: [{cache_salt: a, limit: %s}, {cache_salt: b, limit: %s}]}\n"
    with FromFile(file, "l1: {size: 64MiB}\n" + tenants % ("8MiB", "8MiB")) as server:
        assert put(server, "/api/quotas/a", limit=4 * MIB)[0] == 200
        pinned = put(server, "/api/cache/pins", model="m", tokens=[1] * 256, ttl_seconds=600)[1]["id"]
        file.write_text("l1: {size: 64MiB, pin_budget: 1MiB}\n" + tenants % ("16MiB", "16MiB"))
        status, body = server.reload()
        assert (status, body["applied"]) == (200, True)
        assert quotas(server) == [("a", 4 * MIB, "api"), ("b", 16 * MIB, "config")]
        pins = server.get("/api/cache/pins")[1]
        assert ([each["id"] for each in pins["pins"]], pins["budget"]) == ([pinned], MIB)
        assert http("DELETE", f"{server.http_url}/api/quotas/a")[1]["limit"] == 16 * MIB


def test_reservations_and_the_size_they_need_change_together(file: Path) -> None:
    reserved = "l1: {size: %dMiB, max_size: 64MiB}\nquotas: {tenants: [{cache_salt: a, reservation: %dMiB}]}\n"
    with FromFile(file, reserved % (16, 8)) as server:
        for size, reservation in ((64, 60), (16, 4)):
            file.write_text(reserved % (size, reservation))
            assert server.reload()[0] == 200
            until(lambda size=size: server.capacity() == size * MIB, "resized")
        assert put(server, "/api/quotas/b", reservation=60 * MIB)[0] == 409
