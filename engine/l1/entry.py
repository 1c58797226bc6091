"""One object of L1. Pure."""

from __future__ import annotations

from typing import Final

from engine.keys import Namespace
from engine.l1.policies.base import Ranked


class Entry(Ranked):
    """Only `L1Cache` changes it, and the policy what is the policy's."""

    __slots__ = (
        "borrowers",
        "checksum",
        "epoch",
        "leases",
        "namespace",
        "offset",
        "ready",
        "saved",
        "since",
        "used",
        "uses",
        "visible",
    )

    key: bytes

    def __init__(self, key: bytes, namespace: Namespace, offset: int, size: int, since: float, epoch: int) -> None:
        super().__init__(key, size)
        self.namespace: Final = namespace
        self.offset: Final = offset
        """Bytes from the start of the arena."""
        self.since: Final = since
        """When the slot was reserved, in the engine's monotonic seconds."""
        self.epoch: Final = epoch
        """The cache's, when the slot was reserved."""
        self.used = since
        """When it was stored or used last; kept while there are several partitions."""
        self.saved = 0
        """A bit for each tier of L2 that has it, as far as is known."""
        self.uses = 0
        """By requests; counted while a tier wants to know."""
        self.leases = 0
        self.checksum: bytes | None = None
        """Of its slot, if that is to be verified."""
        self.borrowers = 0
        """How many need its slot as it is, without keeping it from being ranked."""
        self.ready = False
        """Completely written."""
        self.visible = True
        """Can be found, or will be once it is ready. False means doomed."""

    @property
    def end(self) -> int:
        """Where its slot ends in the arena."""
        return self.offset + self.size
