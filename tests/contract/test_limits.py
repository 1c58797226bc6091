"""What the HTTP server and the application do with requests that are too large or none at all."""

from __future__ import annotations

import http.client
import json
import socket

import pytest

from service.http_server import SERVER_BODY_LIMIT
from service.validation import BODY_LIMIT
from tests.support.server import Server

PIECE = b"x" * (1 << 16)


def clear(server: Server, size: int, *, chunked: bool) -> tuple[int, str, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=20)
    body = (PIECE for _ in range(size // len(PIECE))) if chunked else b"x" * size
    try:
        connection.request("POST", "/api/clear-cache", body, encode_chunked=chunked)
        answer = connection.getresponse()
        return answer.status, answer.headers.get_content_type(), answer.read()
    finally:
        connection.close()


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_at_the_limit_is_ignored(server: Server, chunked: bool) -> None:
    status, _, body = clear(server, BODY_LIMIT, chunked=chunked)
    assert (status, json.loads(body)) == (200, {"status": "ok"})


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_over_the_limit_is_a_problem(server: Server, chunked: bool) -> None:
    status, media_type, body = clear(server, BODY_LIMIT + len(PIECE), chunked=chunked)
    assert (status, media_type) == (413, "application/problem+json")
    assert json.loads(body)["detail"] == "the body may have 1048576 bytes"


def test_the_server_stops_reading_a_body_far_over_the_limit(server: Server) -> None:
    with socket.create_connection(("127.0.0.1", server.http_port), timeout=20) as peer:
        head = f"POST /api/clear-cache HTTP/1.1\r\nHost: x\r\nContent-Length: {SERVER_BODY_LIMIT + 1}\r\n\r\n"
        peer.sendall(head.encode())
        assert peer.recv(12) == b"HTTP/1.1 413"


@pytest.mark.parametrize("raw", [b"\x00\x01\x02\r\n\r\n", b"GET\r\n\r\n", b"GET / HTTP/1.1\r\nA b: c\r\n\r\n"])
def test_what_is_not_http_is_refused_and_the_server_lives_on(server: Server, raw: bytes) -> None:
    with socket.create_connection(("127.0.0.1", server.http_port), timeout=20) as peer:
        peer.sendall(raw)
        assert peer.recv(12) in (b"HTTP/1.0 400", b"HTTP/1.1 400")
    assert server.get("/api/healthcheck") == (200, {"status": "healthy"})
