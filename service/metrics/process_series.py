"""The process and its build, as metrics."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from typing import Final

from prometheus_client import ProcessCollector
from prometheus_client.core import Metric

from service import __version__
from service.metrics.families import gauges

PROTOCOL: Final = "0.5"
"""The version of LMCache whose request protocol is spoken."""

_BUILD: Final = {"version": __version__, "python": platform.python_version(), "lmcache_protocol": PROTOCOL}
_process: Final = ProcessCollector(registry=None)


def process_series() -> Iterator[Metric]:
    """What runs, and what the system says of it: memory, processor time, open files, when it started."""
    yield gauges("kvkeep_build_info", "Always 1; the labels say what runs.", list(_BUILD), [(list(_BUILD.values()), 1)])
    yield from _process.collect()
