"""The servers that are compared, started side by side and ended together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from tests.benchmarks import reference
from tests.benchmarks.geometry import CHUNK
from tests.benchmarks.progress import say
from tests.support.server import Server, ServerProcess

OURS = Server.name
REFERENCE = reference.ReferenceServer.name


def names(wanted: Sequence[str] | None = None) -> list[str]:
    """Ours, and the reference where this environment holds it; or those of them that are wanted."""
    known = [OURS, REFERENCE] if reference.available() else [OURS]
    return [name for name in known if wanted is None or name in wanted]


@contextmanager
def running(wanted: Sequence[str], l1_size_gb: float) -> Iterator[dict[str, ServerProcess]]:
    """All of ``wanted``, ready."""
    kinds = {OURS: Server, REFERENCE: reference.ReferenceServer}
    with ExitStack() as stack:
        started: dict[str, ServerProcess] = {}
        for name in wanted:
            say(f"starting {name}")
            server = kinds[name]("--chunk-size", str(CHUNK), l1_size_gb=l1_size_gb)
            started[name] = stack.enter_context(server)
        yield started
