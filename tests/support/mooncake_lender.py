"""The program of a client that lends memory to a Mooncake cluster, and puts and gets objects for whoever asks by HTTP.

Started with the master, the metadata server, the bytes to lend and the port to listen on.
"""

from __future__ import annotations

import sys
from http.server import BaseHTTPRequestHandler, HTTPServer

from mooncake.store import MooncakeDistributedStore

_BUFFER_BYTES = 64 << 20


class _Handler(BaseHTTPRequestHandler):
    store: MooncakeDistributedStore

    def do_PUT(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        code = self.store.upsert(self.path[1:], content)
        self._answer(200 if code == 0 else 500, str(code).encode())

    def do_GET(self) -> None:
        key = self.path[1:]
        if self.store.is_exist(key) != 1:
            self._answer(404, b"")
        else:
            self._answer(200, self.store.get(key))

    def do_DELETE(self) -> None:
        removed = self.store.remove_by_regex(f"^{self.path[1:]}.*", True)
        self._answer(200 if removed >= 0 else 500, str(removed).encode())

    def log_message(self, *_: object) -> None:
        """Nothing."""

    def _answer(self, status: int, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def main(master: str, metadata: str, size: str, port: str) -> None:
    _Handler.store = MooncakeDistributedStore()
    code = _Handler.store.setup("127.0.0.1", metadata, int(size), _BUFFER_BYTES, "tcp", "", master)
    if code != 0:
        sys.exit(f"the lender could not join the cluster: {code}")
    HTTPServer(("127.0.0.1", int(port)), _Handler).serve_forever()


main(*sys.argv[1:])
