"""Shared memory that workers leave behind when they are killed: their KV caches, which only they would remove.

A worker keeps its segment open, by descriptor or mapping, from its creation until it removes the name; only servers
open one by its name. So a segment that no process has open is nobody's, and will never be again. Whether that is so the
kernel tells: it grants a write lease only on a file that nobody else has open, in whatever container or process
namespace, where process ids would mislead.
"""

from __future__ import annotations

import fcntl
import os
import re
import signal
from pathlib import Path
from typing import Final

SHM_FOLDER: Final = "/dev/shm"
_CLIENTS: Final = re.compile(r"lmcache_kv_\d+_\d+")
"""How the stock client names them. What is called otherwise may be kept by nobody and wanted all the same."""


def remove_leftovers() -> list[str]:
    """Removes every client's segment that no process has open; returns their names.

    NOTE: Besides the memory this is about process ids: a worker that gets the id of a killed one, as in a container
    that was started again, cannot create a segment of that name.
    """
    return [path.name for path in sorted(Path(SHM_FOLDER).iterdir()) if remove_if_unused(path.name)]


def remove_if_unused(name: str) -> bool:
    """Removes a client's segment if no process has it open. What belongs to another user is left alone."""
    if not _CLIENTS.fullmatch(name):
        return False
    path = Path(SHM_FOLDER, name)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        _lease(descriptor)
        path.unlink()
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


def _lease(descriptor: int) -> None:
    """Takes a write lease, which ends when the file is closed. Raises OSError if anybody else has the file open.

    NOTE: Whoever opens the file meanwhile waits, and we are told by a signal. The one that is usual would end us.
    """
    fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGURG)
    fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_WRLCK)
