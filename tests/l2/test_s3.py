"""The adapter of S3 against a real server: the suite, and what servers do to their clients."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from engine.l2.base import AbsentError, DeniedError, L2Error, Stored, UnavailableError
from engine.l2.s3_l2 import Adapter
from tests.support.polling import until
from tests.support.seaweedfs import ACCESS_KEY_ID, BUCKET, SECRET_ACCESS_KEY, Gateway, SeaweedFS
from tests.unit.engine.l2.adapter_suite import MIB, AdapterSuite, BackDoor, Memory, noise

LIMIT = 1.0
"""Seconds that a call may take where a server does not answer."""
GRACE = 1.0
"""Seconds that this machine may take for the rest."""
CALLS: dict[str, Callable[[Adapter], object]] = {
    "open": lambda adapter: adapter.open([]),
    "contains": lambda adapter: adapter.contains(["name"]),
    "contains of many": lambda adapter: adapter.contains([f"name{number}" for number in range(100)]),
    "read_into": lambda adapter: adapter.read_into("name", into(4)),
    "write": lambda adapter: adapter.write("name", of(b"1234")),
    "write of much": lambda adapter: adapter.write("name", of(bytes(16 * MIB))),
    "delete": lambda adapter: adapter.delete(["name"]),
    "scan": lambda adapter: list(adapter.scan()),
}
_prefixes = count()


def of(content: bytes) -> list[memoryview]:
    return [memoryview(content)]


def into(size: int) -> list[memoryview]:
    return [memoryview(bytearray(size))]


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedFS]:
    with SeaweedFS(tmp_path_factory.mktemp("weed")) as server:
        yield server


@pytest.fixture(scope="module")
def gateway(storage: SeaweedFS, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with Gateway(tmp_path_factory.mktemp("s3"), storage) as server:
        yield server


@pytest.fixture
def folder() -> str:
    """Where nothing is yet."""
    return f"folder{next(_prefixes)}"


@pytest.fixture(autouse=True)
def no_credentials_around(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_REGION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))


def settings(gateway: Gateway, folder: str, **changes: Any) -> dict[str, Any]:
    """Those of an adapter; None takes one away."""
    keys = {"access_key_id": ACCESS_KEY_ID, "secret_access_key": SECRET_ACCESS_KEY}
    where = {"bucket": BUCKET, "endpoint": gateway.endpoint, "region": "us-east-1", "prefix": f"{folder}/"}
    return {key: value for key, value in (where | keys | {"timeout": LIMIT} | changes).items() if value is not None}


def opened(gateway: Gateway, folder: str, **changes: Any) -> Adapter:
    adapter = Adapter(**settings(gateway, folder, **changes))
    adapter.open([])
    return adapter


class FilesBelow(BackDoor):
    def __init__(self, storage: SeaweedFS, folder: str) -> None:
        self._storage = storage
        self._folder = folder

    def put(self, name: str, content: bytes) -> None:
        self._storage.put_file(f"{self._folder}/{name}", content)

    def get(self, name: str) -> bytes | None:
        return self._storage.get_file(f"{self._folder}/{name}")

    def names(self) -> set[str]:
        return self._storage.list_files(self._folder)


@pytest.fixture
def back_door(storage: SeaweedFS, folder: str) -> BackDoor:
    return FilesBelow(storage, folder)


class TestS3(AdapterSuite):
    @pytest.fixture
    def adapter(self, gateway: Gateway, folder: str) -> Iterator[Adapter]:
        adapter = opened(gateway, folder, timeout=20.0)
        yield adapter
        adapter.close()

    @pytest.fixture
    def back_door(self, storage: SeaweedFS, folder: str) -> BackDoor:
        return FilesBelow(storage, folder)


# What it is told


def test_what_others_have_in_the_bucket_is_not_touched(gateway: Gateway, folder: str, back_door: BackDoor) -> None:
    for path in ("mine", "mine/below", "minefield", "Not a name"):
        back_door.put(path.replace("mine/", "deeper/"), b"x")
    adapter = opened(gateway, folder)
    assert sorted(adapter.scan()) == [Stored("mine", 1), Stored("minefield", 1)]
    inner = opened(gateway, f"{folder}/deeper")
    assert list(inner.scan()) == [Stored("below", 1)]


def test_without_a_prefix_objects_are_at_the_top_of_the_bucket(
    gateway: Gateway, folder: str, storage: SeaweedFS
) -> None:
    adapter = opened(gateway, folder, prefix="")
    adapter.write(folder, of(b"top"))
    assert storage.get_file(folder) == b"top"
    adapter.delete([folder])


def test_a_bucket_in_the_name_of_the_host_is_asked_for_there(gateway: Gateway, folder: str) -> None:
    adapter = Adapter(**settings(gateway, folder, path_style=False, endpoint="http://localhost:1"))
    with pytest.raises(UnavailableError, match=f"http://{BUCKET}.localhost:1"):
        adapter.open([])


# Credentials


def test_credentials_come_from_the_environment(gateway: Gateway, folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY_ID)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_ACCESS_KEY)
    opened(gateway, folder, access_key_id=None, secret_access_key=None).write("name", of(b"1"))


@pytest.mark.parametrize("profile", [None, "other"])
def test_credentials_come_from_the_file(
    gateway: Gateway, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, profile: str | None
) -> None:
    write_credentials(tmp_path, profile or "default", SECRET_ACCESS_KEY)
    if profile:
        monkeypatch.setenv("AWS_PROFILE", profile)
    opened(gateway, folder, access_key_id=None, secret_access_key=None).write("name", of(b"1"))


def test_settings_win_over_environment_and_file(
    gateway: Gateway, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_credentials(tmp_path, "default", "a wrong one")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "somebody else")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a wrong one")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "a token of somebody else")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:1")
    opened(gateway, folder).write("name", of(b"1"))


@pytest.mark.parametrize("content", ["[default]\n", "[default]\naws_access_key_id = A\n", "a secret alone", ""])
def test_a_file_without_credentials_is_refused_without_repeating_it(
    gateway: Gateway, folder: str, tmp_path: Path, content: str
) -> None:
    (tmp_path / "credentials").write_text(content)
    with pytest.raises(DeniedError, match="no credentials of default") as raised:
        opened(gateway, folder, access_key_id=None, secret_access_key=None)
    assert "secret" not in str(raised.value)


def test_the_file_is_read_again(gateway: Gateway, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.l2.s3_l2._FILE_LIFETIME", timedelta(0))
    write_credentials(tmp_path, "default", SECRET_ACCESS_KEY)
    adapter = opened(gateway, folder, access_key_id=None, secret_access_key=None)
    write_credentials(tmp_path, "default", "a wrong secret")
    with pytest.raises(DeniedError, match="403"):
        adapter.contains(["name"])
    (tmp_path / "credentials").unlink()
    with pytest.raises(DeniedError, match="no credentials"):
        adapter.contains(["name"])
    write_credentials(tmp_path, "default", SECRET_ACCESS_KEY)
    assert adapter.contains(["name"]) == [False]


def test_no_credentials_at_all_are_told_from_a_store_that_is_not_there(
    gateway: Gateway, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(DeniedError, match="no credentials"):
        opened(gateway, folder, access_key_id=None, secret_access_key=None)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    "keys", [{"secret_access_key": "a wrong secret"}, {"access_key_id": "nobody"}], ids=["secret", "key"]
)
def test_wrong_credentials_are_denied_by_every_call(
    gateway: Gateway, folder: str, keys: dict[str, str], call: str
) -> None:
    adapter = Adapter(**settings(gateway, folder, **keys))
    with pytest.raises(DeniedError) as raised:
        adapter.open([])
    # As if the credentials were withdrawn later.
    adapter._opened = adapter._connected()
    with pytest.raises(DeniedError) as raised:
        CALLS[call](adapter)
    assert "secret" not in str(raised.value)


# What may be wrong with the storage


def test_a_bucket_that_is_not_there_is_named(gateway: Gateway, folder: str) -> None:
    with pytest.raises(UnavailableError, match="there is no bucket nowhere"):
        opened(gateway, folder, bucket="nowhere")


@pytest.mark.parametrize("call", sorted(CALLS.keys() - {"open"}))
def test_before_it_is_open_nothing_is_there(gateway: Gateway, folder: str, call: str) -> None:
    adapter = Adapter(**settings(gateway, folder))
    with pytest.raises(UnavailableError, match="not open"):
        CALLS[call](adapter)


def test_garbage_is_returned_as_it_is(gateway: Gateway, folder: str, back_door: BackDoor) -> None:
    garbage = noise(5000)
    back_door.put("name", garbage)
    buffers = into(5000)
    assert opened(gateway, folder).read_into("name", buffers) == 5000
    assert bytes(buffers[0]) == garbage


@pytest.fixture
def paused(gateway: Gateway, folder: str, back_door: BackDoor) -> Iterator[Adapter]:
    """An adapter whose server was stopped after it had connected."""
    back_door.put("name", b"1234")
    adapter = opened(gateway, folder)
    gateway.pause()
    try:
        yield adapter
    finally:
        gateway.resume()


@pytest.mark.parametrize("call", CALLS)
def test_a_server_that_does_not_answer_is_unavailable_in_time(paused: Adapter, gateway: Gateway, call: str) -> None:
    begin = time.monotonic()
    with pytest.raises(UnavailableError, match="does not answer within 1 s"):
        CALLS[call](paused)
    assert time.monotonic() - begin < LIMIT + GRACE
    gateway.resume()
    until(lambda: succeeds(lambda: paused.contains(["name"])), "the adapter is answered again")


def test_a_write_that_was_given_up_lets_go_of_its_buffers(paused: Adapter) -> None:
    content = bytearray(16 * MIB)
    with pytest.raises(UnavailableError):
        paused.write("name", [memoryview(content)])
    content.extend(b"resized")


def test_a_server_that_stops_in_the_middle_of_an_object_is_unavailable_in_time(gateway: Gateway, folder: str) -> None:
    adapter = opened(gateway, folder, timeout=20.0)
    adapter.write("name", of(bytes(64 * MIB)))
    impatient = opened(gateway, folder)
    # Ones, so that one can see what has come.
    buffer = memoryview(bytearray(b"\1" * (64 * MIB)))
    errors: list[L2Error] = []
    reader = threading.Thread(target=lambda: errors.extend(error_of(lambda: impatient.read_into("name", [buffer]))))
    reader.start()
    until(lambda: buffer[0] == 0, "the first bytes come")
    gateway.pause()
    try:
        begin = time.monotonic()
        reader.join()
        assert time.monotonic() - begin < LIMIT + GRACE
    finally:
        gateway.resume()
    assert [type(error) for error in errors] == [UnavailableError]


def test_a_killed_server_is_unavailable_until_it_is_back(gateway: Gateway, folder: str) -> None:
    adapter = opened(gateway, folder)
    adapter.write("name", of(b"1234"))
    gateway.kill()
    try:
        for call in CALLS.values():
            begin = time.monotonic()
            with pytest.raises(UnavailableError, match="cannot be reached"):
                call(adapter)
            assert time.monotonic() - begin < LIMIT + GRACE
    finally:
        gateway.start()
    buffers = into(4)
    until(lambda: succeeds(lambda: adapter.read_into("name", buffers)), "the adapter reads again")
    assert bytes(buffers[0]) == b"1234"


def test_what_a_killed_server_was_being_sent_is_not_seen(
    gateway: Gateway, folder: str, back_door: BackDoor, memory: Memory
) -> None:
    """Nor half of it."""
    adapter = opened(gateway, folder, timeout=20.0)
    adapter.contains(["name"])
    errors: list[L2Error] = []
    buffers = memory.cut(24 * MIB)
    writer = threading.Thread(target=lambda: errors.extend(error_of(lambda: adapter.write("name", buffers))))
    writer.start()
    time.sleep(0.01)
    gateway.kill()
    writer.join()
    gateway.start()
    assert [type(error) for error in errors] == [UnavailableError]
    assert back_door.names() == set()
    with pytest.raises(AbsentError):
        adapter.read_into("name", buffers)


@pytest.fixture
def memory() -> Memory:
    return Memory()


def succeeds(call: Callable[[], object]) -> bool:
    return not error_of(call)


def error_of(call: Callable[[], object]) -> list[L2Error]:
    try:
        call()
    except L2Error as error:
        return [error]
    return []


def write_credentials(folder: Path, profile: str, secret: str) -> None:
    lines = [f"[{profile}]", f"aws_access_key_id = {ACCESS_KEY_ID}", f"aws_secret_access_key = {secret}"]
    (folder / "credentials").write_text("\n".join(lines))
