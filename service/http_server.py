"""The HTTP server: waitress on a thread of its own, from the first second to the last.

Guarantees: the socket listens when the constructor returns, so a taken port is known before anything else starts;
`stop` returns after the last answer was written or the grace period ended, from whatever thread it is called.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from waitress import create_server, wasyncore
from waitress.channel import HTTPChannel
from waitress.task import ThreadedTaskDispatcher

from engine import SupervisedThread, Supervisor
from service.validation import BODY_LIMIT

# Far above the application's limit, so that it is the application which refuses, in its own error shape.
SERVER_BODY_LIMIT = 16 * BODY_LIMIT
STOP_GRACE = 5.0
_BACKLOG = 128
_WARNING_INTERVAL = 60.0
_NO_RESERVE_WAIT = 0.05
_POLL_SECONDS = 30.0
_ATTEMPTS = 5
"""Failures of the loop in a row after which it is given up: within two seconds."""

log = logging.getLogger("kvkeep")


class ListenError(Exception):
    """The address cannot be listened on."""


class Channel(HTTPChannel):  # type: ignore[misc]
    """A connection whose loop leaves it alone while the thread of a request writes the answer.

    PERF: waitress asks to be told when a socket can be written to for as long as there is something to write, and it
    always can, while the lock it then needs is held by the thread that is writing. So the loop turns round as fast as
    it can and takes the interpreter from that thread: four connections get less than one does.
    """

    _writing = False

    def service(self) -> None:
        """Called by the thread of a request, which has it in hand from here on."""
        thread = threading.current_thread()
        assert isinstance(thread, SupervisedThread)
        thread.works()
        super().service()
        thread.rests()

    def writable(self) -> bool:
        """Asked by the loop; a thread that waits for the loop to write has more than the high watermark waiting."""
        if self._writing and self.total_outbufs_len <= self.adj.outbuf_high_watermark:
            return bool(self.will_close or self.close_when_flushed)
        return bool(super().writable())

    def write_soon(self, data: Any) -> int:
        """Called by the thread of a request. The loop is woken for what it could not send."""
        self._writing = True
        try:
            return int(super().write_soon(data))
        finally:
            self._writing = False
            if self.total_outbufs_len:
                self.server.pull_trigger()


class Listener(socket.socket):
    """A listening socket that turns connections away when there is no file descriptor for them.

    Left alone they would stay acceptable, and the loop would turn round at full speed with a line in the log each time.
    """

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._reserve = _null()
        """Kept for the moment when there is none left; None while there is none even for that."""
        self._next_warning = 0.0

    def accept(self) -> tuple[socket.socket, Any]:
        """Raises BlockingIOError instead of what says that no more files can be open."""
        try:
            return super().accept()
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                raise
            self._turn_away(error)
            raise BlockingIOError(errno.EAGAIN, "a connection was turned away") from None

    def close(self) -> None:
        self._release()
        super().close()

    def _turn_away(self, why: OSError) -> None:
        now = time.monotonic()
        if now >= self._next_warning:
            self._next_warning = now + _WARNING_INTERVAL
            log.warning("connections to the HTTP API are turned away: %s", why.strerror)
        self._release()
        try:
            super().accept()[0].close()
        except OSError:
            # Somebody else was faster; the next descriptor that is given back may be for us.
            time.sleep(_NO_RESERVE_WAIT)
        self._reserve = _null()

    def _release(self) -> None:
        if self._reserve is not None:
            os.close(self._reserve)
            self._reserve = None


def _null() -> int | None:
    try:
        return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None


class Dispatcher(ThreadedTaskDispatcher):  # type: ignore[misc]
    """Waitress's threads of requests, each of them supervised."""

    def __init__(self, supervisor: Supervisor) -> None:
        super().__init__()
        self._supervisor = supervisor

    def start_new_thread(self, target: Callable[[int], None], thread_no: int) -> None:
        """Called by waitress; `target` returns when the thread shall end."""

        def body(thread: SupervisedThread) -> None:
            target(thread_no)
            thread.ask_to_end()

        # NOTE: A daemon, as waitress makes them: a request that does not end must not keep the process.
        SupervisedThread(self._supervisor, f"waitress-{thread_no}", body, daemon=True).start()


class HttpServer:
    """Serves one WSGI application."""

    def __init__(
        self,
        app: Any,
        host: str,
        port: int,
        threads: int,
        on_death: Callable[[BaseException], None],
        supervisor: Supervisor | None = None,
    ) -> None:
        """Binds and listens. Raises ListenError. `on_death` is called from its thread if the server ends by itself."""
        supervisor = supervisor or Supervisor()
        self._socket = _bound(host, port)
        self.host, self.port = self._socket.getsockname()[:2]
        self._channels: dict[int, Any] = {}
        dispatcher = Dispatcher(supervisor)
        self._server = create_server(
            app,
            map=self._channels,
            _dispatcher=dispatcher,
            sockets=[self._socket],
            ident="kvkeep",
            max_request_body_size=SERVER_BODY_LIMIT,
            backlog=_BACKLOG,
        )
        self._server.channel_class = Channel
        dispatcher.set_thread_count(threads)
        self._stopping = False
        self._thread = SupervisedThread(
            supervisor,
            "waitress",
            self._serve,
            attempts=_ATTEMPTS,
            patience=2 * _POLL_SECONDS,
            on_failure=on_death,
        )

    @property
    def url(self) -> str:
        """`http://HOST:PORT` with the real port."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    def start(self) -> None:
        """Begins to answer."""
        self._thread.start()

    def stop(self) -> None:
        """Stops listening, lets running answers end, and ends the threads."""
        self._thread.ask_to_end()
        self._stopping = True
        self._server.pull_trigger()
        self._thread.join()
        self._server.task_dispatcher.shutdown(timeout=STOP_GRACE)
        # NOTE: Only here, where nobody else is left to use them: the trigger is a pipe, and writing to its number after
        # it was closed would write into whatever was opened since.
        for channel in list(self._server.active_channels.values()):
            # Closes the files that large answers overflow into, which `close_all` leaves to the garbage collector.
            channel.handle_close()
        wasyncore.close_all(self._channels)
        self._socket.close()

    def _serve(self, thread: SupervisedThread) -> None:
        # NOTE: waitress's own loop ends by an exception in its thread only; this one looks at a flag between events,
        # and the trigger that waitress wakes itself with wakes it for the flag, too.
        while not self._stopping:
            thread.works()
            self._one_round(_POLL_SECONDS)
            thread.rests()
        self._drain()

    def _drain(self) -> None:
        self._server.accepting = False
        deadline = time.monotonic() + STOP_GRACE
        while self._busy() and time.monotonic() < deadline:
            self._one_round(0.05)

    def _one_round(self, timeout: float) -> None:
        wasyncore.loop(timeout=timeout, use_poll=True, map=self._channels, count=1)

    def _busy(self) -> bool:
        """Whether a request is being answered, or an answer being written."""
        return any(channel.requests or channel.total_outbufs_len for channel in self._server.active_channels.values())


def _bound(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = Listener(family, kind, protocol)
    except OSError as error:
        raise ListenError(_reason(host, port, error)) from error
    try:
        # So that a restart does not wait for the connections of the last run to be forgotten.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise ListenError(_reason(host, port, error)) from error
    return listener


def _reason(host: str, port: int, error: OSError) -> str:
    reason = error.strerror or str(error)
    return (
        f"the HTTP API cannot listen on {host} port {port}: {reason}; "
        "give another address with http.host and http.port, or --http-host and --http-port (0 picks a free port)"
    )
