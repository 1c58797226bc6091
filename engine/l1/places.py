"""Which object is where in the arena. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from engine.l1.entry import Entry


class Places:
    """Objects by the address of their slot, which is a multiple of `alignment`, to be walked in both directions.

    A walk can stop at any address and go on there later, whatever comes and goes meanwhile: it meets everyone who stays
    once. Costs a table entry an object, and a byte for each `alignment` bytes of the arena.
    """

    def __init__(self, alignment: int) -> None:
        self._alignment = alignment
        self._entries: dict[int, Entry] = {}
        self._starts = bytearray()
        """1 where a slot starts, for each multiple of the alignment."""

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, entry: Entry) -> None:
        self._entries[entry.offset] = entry
        start = entry.offset // self._alignment
        if start >= len(self._starts):
            self._starts.extend(bytes(max(start + 1, 2 * len(self._starts)) - len(self._starts)))
        self._starts[start] = 1

    def remove(self, entry: Entry) -> None:
        del self._entries[entry.offset]
        self._starts[entry.offset // self._alignment] = 0

    def at(self, offset: int) -> Entry | None:
        """The object whose slot starts there."""
        return self._entries.get(offset)

    def before(self, offset: int) -> Entry | None:
        """The last object whose slot starts before an address."""
        start = self._starts.rfind(1, 0, offset // self._alignment)
        return None if start < 0 else self._entries[start * self._alignment]

    def walk(self, offset: int) -> Iterator[Entry]:
        """The objects from an address on, in its order. The one in hand may be removed."""
        start = self._starts.find(1, -(-offset // self._alignment))
        while start >= 0:
            yield self._entries[start * self._alignment]
            start = self._starts.find(1, start + 1)
