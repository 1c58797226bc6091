"""File descriptors: every client, every HTTP connection and every connection to a storage takes one."""

from __future__ import annotations

import resource
from typing import Final

_WANTED: Final = 65_536
"""Far more than is ever needed, and few enough for those who go through all of them."""
_ENOUGH: Final = 1024


def raise_limit() -> str | None:
    """Lets this process have as many as it may; returns a warning if those are few.

    The usual soft limit is for programs that use select(2), which cannot wait for more than 1,024; nothing here does.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _WANTED if hard == resource.RLIM_INFINITY else min(hard, _WANTED)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    if most >= _ENOUGH:
        return None
    return (
        f"only {most} file descriptors may be open at once, and each client takes one: further ones will have to wait; "
        "raise the hard limit (ulimit -Hn, LimitNOFILE= of systemd, --ulimit nofile= of a container)"
    )
