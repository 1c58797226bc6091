"""Run by itself, in a network namespace of its own: serves on every address there and asks from two sides.

Prints what happened as JSON. In that namespace nobody else can reach the server, whatever it opens.
"""

from __future__ import annotations

import fcntl
import json
import socket
import struct
import sys
from http.client import HTTPConnection
from typing import Any

from service import assets
from service.document import Document
from tests.support.example_requests import example_request
from tests.support.polling import until
from tests.support.server import Server, http

DOCUMENT = Document.load(assets.openapi_path())
HERE, ELSEWHERE = "127.0.0.1", "192.0.2.1"
CLAIMS = {"X-Forwarded-For": HERE, "Forwarded": f"for={HERE}", "X-Real-IP": HERE}

# From <linux/sockios.h> and <linux/if.h>.
_SET_FLAGS, _SET_ADDRESS, _UP = 0x8914, 0x8916, 0x1


def bring_up() -> None:
    """Gives the namespace a loopback, and on it an address that is not a loopback one."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, _SET_FLAGS, struct.pack("16sH14x", b"lo", _UP))
        address = struct.pack("16sHH4s8x", b"lo:1", socket.AF_INET, 0, socket.inet_aton(ELSEWHERE))
        fcntl.ioctl(control, _SET_ADDRESS, address)


def walk(server: Server, address: str) -> dict[str, int]:
    """The status of every operation's example, asked at an address; a caller's own address is the one it asks at."""
    found = {}
    for operation in DOCUMENT.operations():
        asked = example_request(DOCUMENT, operation)
        connection = HTTPConnection(address, server.http_port, timeout=20)
        connection.request(asked.method, asked.target, asked.body, {**asked.headers, **CLAIMS})
        found[str(operation)] = connection.getresponse().status
        connection.close()
    return found


def served(text: str) -> dict[str, Any]:
    """What a server with this configuration answers to both sides, and what it warns of."""
    server = Server("--host", "0.0.0.0", "--http-host", "0.0.0.0")
    (server.folder / "f.yaml").write_text(text)
    server.flags = ("--config", str(server.folder / "f.yaml"), *server.flags)
    with server:
        until(lambda: http("GET", f"{server.http_url}/api/healthcheck")[0] == 200, "healthy")
        found: dict[str, Any] = {address: walk(server, address) for address in (HERE, ELSEWHERE)}
        lines = [json.loads(line) for line in server.output().splitlines() if line.startswith("{")]
    # Those of the service: what killed servers and workers of other tests have left is told, too.
    own = [line for line in lines if line["logger"] == "kvkeep"]
    found["warnings"] = [line["message"] for line in own if line["level"] == "WARNING"]
    return found


if __name__ == "__main__":
    bring_up()
    json.dump([served(text) for text in sys.argv[1:]], sys.stdout)
