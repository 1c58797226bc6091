"""What a deployment has to grant for an L1 of a size: the formulas of config/deploy/kubernetes/README.md."""

from __future__ import annotations

import re

from engine import GIB, MIB
from service.sizes import parse_size

_UNITS = {"Mi": MIB, "Gi": GIB}


def memory(l1: int) -> int:
    """Bytes of the container: L1, page tables and index, and the process."""
    return l1 + l1 // 64 + 512 * MIB


def shm(l1: int) -> int:
    """Bytes of a volume at /dev/shm: L1, and the engine's own segments."""
    return l1 + GIB


def start_seconds(l1: int) -> int:
    """Patience for a start: a quarter of a GiB per second, a third of what the slowest machine seen did."""
    return 60 + 4 * l1 // GIB


def stop_seconds(l1: int) -> int:
    """Patience for a stop: the drain, the open requests, and the memory that goes back."""
    return 30 + l1 // (2 * GIB)


def quantity(text: str) -> int:
    """A Kubernetes quantity of bytes."""
    found = re.fullmatch(r"(\d+)(Mi|Gi)", text)
    assert found is not None, text
    return int(found[1]) * _UNITS[found[2]]


def seconds(text: str) -> int:
    """A time span of a unit file or a Dockerfile."""
    found = re.fullmatch(r"(\d+)s", text)
    assert found is not None, text
    return int(found[1])


def largest_l1(config: dict[str, dict[str, str]]) -> int:
    """Bytes that L1 can grow to under a configuration."""
    l1 = config["l1"]
    return parse_size(l1.get("max_size") or l1["size"])
