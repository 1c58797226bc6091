"""A TCP proxy on loopback that a test lets drop, delay and cut what goes through it."""

from __future__ import annotations

import asyncio
import socket
import threading
from typing import Self

_PIECE = 1 << 16


class Proxy:
    """Passes connections on to a port. It runs on a thread of its own; every method may be called from any thread.

    `drop`, `delay` and `refuse` hold until they are taken back, for connections that exist and for new ones.
    """

    def __init__(self, target: int) -> None:
        self._target = target
        self._drops = False
        self._refuses = False
        self._delay = 0.0
        self._writers: set[asyncio.StreamWriter] = set()
        self._accepted = 0
        self._loop = asyncio.new_event_loop()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._thread = threading.Thread(target=self._run, name="proxy")

    @property
    def url(self) -> str:
        return f"tcp://127.0.0.1:{self.port}"

    @property
    def accepted(self) -> int:
        """Connections that were passed on so far."""
        return self._accepted

    def drop(self, dropping: bool = True) -> None:
        """Swallows every byte; nobody is told."""
        self._drops = dropping

    def delay(self, seconds: float) -> None:
        """Holds back each piece for so long, in either direction."""
        self._delay = seconds

    def refuse(self, refusing: bool = True) -> None:
        """Closes new connections as soon as they are made."""
        self._refuses = refusing

    def cut(self) -> None:
        """Ends every connection at once, with what is under way in it."""
        self._loop.call_soon_threadsafe(self._cut)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(20)
        self._listener.close()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._serve, sock=self._listener))
        self._loop.run_forever()
        server.close()
        self._cut()
        others = asyncio.all_tasks(self._loop)
        for task in others:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*others, return_exceptions=True))
        self._loop.close()

    def _cut(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._refuses:
            writer.transport.abort()
            return
        try:
            there, back = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.transport.abort()
            return
        self._accepted += 1
        self._writers |= {writer, back}
        try:
            await asyncio.gather(self._pass_on(reader, back), self._pass_on(there, writer))
        finally:
            self._writers -= {writer, back}

    async def _pass_on(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        try:
            while piece := await source.read(_PIECE):
                if self._delay:
                    await asyncio.sleep(self._delay)
                if not self._drops:
                    target.write(piece)
                    await target.drain()
        except OSError:
            target.transport.abort()
        finally:
            target.close()
