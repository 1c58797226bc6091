"""The HTTP server: bound before it serves, answers in full before it ends."""

from __future__ import annotations

import socket
import threading
import urllib.request

import pytest
from waitress import wasyncore

from service.http_server import Channel, HttpServer, ListenError
from tests.support.polling import until


def ok(environ, start_response):
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]


def never(error: BaseException) -> None:
    raise AssertionError(error)


def get(server: HttpServer) -> bytes:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(server.url, timeout=10) as answer:
        return bytes(answer.read())


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


ipv6 = pytest.mark.skipif(not has_ipv6(), reason="no IPv6 loopback here")


@pytest.mark.parametrize("host", ["127.0.0.1", pytest.param("::1", marks=ipv6), "localhost"])
def test_a_free_port_is_picked_and_told(host: str) -> None:
    server = HttpServer(ok, host, 0, 2, never)
    server.start()
    try:
        assert server.port != 0
        assert get(server) == b"ok"
    finally:
        server.stop()


def test_a_taken_port_is_known_at_once() -> None:
    first = HttpServer(ok, "127.0.0.1", 0, 1, never)
    first.start()
    try:
        with pytest.raises(ListenError, match="Address already in use; give another address"):
            HttpServer(ok, "127.0.0.1", first.port, 1, never)
    finally:
        first.stop()


def test_a_port_is_free_again_after_the_end() -> None:
    first = HttpServer(ok, "127.0.0.1", 0, 1, never)
    first.start()
    assert get(first) == b"ok"
    first.stop()
    second = HttpServer(ok, "127.0.0.1", first.port, 1, never)
    second.start()
    assert get(second) == b"ok"
    second.stop()


def test_no_thread_is_left() -> None:
    before = set(threading.enumerate())
    server = HttpServer(ok, "127.0.0.1", 0, 3, never)
    server.start()
    get(server)
    server.stop()
    for thread in set(threading.enumerate()) - before:
        thread.join(5)
    assert set(threading.enumerate()) <= before


def test_an_answer_under_way_is_finished_before_the_end() -> None:
    entered, leave = threading.Event(), threading.Event()

    def slow(environ, start_response):
        entered.set()
        leave.wait(10)
        return ok(environ, start_response)

    server = HttpServer(slow, "127.0.0.1", 0, 1, never)
    server.start()
    answers: list[bytes] = []
    asking = threading.Thread(target=lambda: answers.append(get(server)))
    asking.start()
    assert entered.wait(10)
    stopping = threading.Thread(target=server.stop)
    stopping.start()
    leave.set()
    stopping.join(10)
    asking.join(10)
    assert answers == [b"ok"]


def test_the_loop_leaves_a_connection_alone_while_its_answer_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise it turns round and round for as long as the writing takes, and takes the interpreter from it."""
    asked = []
    flush = Channel._flush_some

    def spy(channel: Channel, do_close: bool = True) -> bool:
        if threading.current_thread().name != "waitress":
            asked.append((channel.total_outbufs_len > 0, channel.writable()))
        return bool(flush(channel, do_close))

    monkeypatch.setattr(Channel, "_flush_some", spy)
    server = HttpServer(ok, "127.0.0.1", 0, 1, never)
    server.start()
    try:
        assert get(server) == b"ok"
    finally:
        server.stop()
    assert set(asked) == {(True, False)}


@pytest.mark.parametrize("piece", [1 << 14, 1 << 20, 40 << 20])
def test_an_answer_larger_than_every_buffer_arrives_whole(piece: int) -> None:
    size = 40 << 20
    body = [bytes([number % 251]) * piece for number in range(size // piece)]

    def large(environ, start_response):
        start_response("200 OK", [("Content-Length", str(len(body) * piece))])
        return body

    server = HttpServer(large, "127.0.0.1", 0, 1, never)
    server.start()
    try:
        assert get(server) == b"".join(body)
    finally:
        server.stop()


def test_a_loop_that_breaks_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    deaths: list[BaseException] = []
    server = HttpServer(ok, "127.0.0.1", 0, 1, deaths.append)
    looped = []

    def broken(**options: object) -> None:
        looped.append(options)
        raise OSError("no more file descriptors")

    monkeypatch.setattr("service.http_server.wasyncore.loop", broken)
    server.start()
    until(lambda: deaths, "it is given up")
    server.stop()
    assert [str(error) for error in deaths] == ["no more file descriptors"]
    assert len(looped) == 5


def test_a_loop_that_breaks_once_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    loop, errors = wasyncore.loop, [OSError("no more file descriptors")]

    def broken(**options: object) -> None:
        if errors:
            raise errors.pop()
        loop(**options)

    monkeypatch.setattr("service.http_server.wasyncore.loop", broken)
    server = HttpServer(ok, "127.0.0.1", 0, 1, never)
    server.start()
    try:
        assert get(server) == b"ok"
    finally:
        server.stop()
    assert not errors
