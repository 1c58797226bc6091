"""Tells systemd how the process does, where it asked to be told; anywhere else nothing happens."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Mapping

log = logging.getLogger("kvkeep")

_SEND_SECONDS = 1.0


class Notifier:
    """Sends datagrams to the socket that `NOTIFY_SOCKET` names, a path or an abstract name."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        name = environ.get("NOTIFY_SOCKET", "")
        self._address = "\0" + name[1:] if name.startswith("@") else name
        self.watchdog_interval = _interval(environ) if name else None
        """Seconds between two signs of life, half of what systemd waits for; None if it does not wait for any."""

    def ready(self, status: str) -> None:
        """The service serves."""
        self._send("READY=1", f"STATUS={status}")

    def stopping(self, status: str) -> None:
        """The service ends."""
        self._send("STOPPING=1", f"STATUS={status}")

    def status(self, status: str) -> None:
        """One line for `systemctl status`."""
        self._send(f"STATUS={status}")

    def alive(self) -> None:
        """The sign of life that the watchdog waits for."""
        self._send("WATCHDOG=1")

    def _send(self, *assignments: str) -> None:
        if not self._address:
            return
        # NOTE: One assignment is one line, so a message of several lines must not become several assignments.
        text = "\n".join(" ".join(each.splitlines()) for each in assignments)
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                sender.settimeout(_SEND_SECONDS)
                sender.sendto(text.encode(), self._address)
        except OSError as error:
            log.warning("systemd could not be told %s: %s", assignments[0], error)


def _interval(environ: Mapping[str, str]) -> float | None:
    """`WATCHDOG_PID` names the process that the watchdog is for, if it is not whichever reads this."""
    microseconds = environ.get("WATCHDOG_USEC", "")
    if environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()) or not microseconds.isdecimal():
        return None
    return int(microseconds) / 2e6 or None
