"""What an L2 adapter is: bytes under a name, on some storage.

An adapter is a module `TYPE_l2.py` here with a class `Adapter`, made with the settings of its type by keyword. It is
blocking and small, and imports this module, its client library and the standard library only. Threads, queues, time
limits, retries, the breaker, metering, and the check of what was read are `L2Tier`'s, once for all.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar, NamedTuple


class L2Error(Exception):
    """Base of the closed list below; anything else that an adapter raises is a defect in it. The message is one
    sentence for operators, without secrets."""


class AbsentError(L2Error):
    """There is no object of that name."""


class UnavailableError(L2Error):
    """The storage cannot be reached, does not answer in time or fails; another try may succeed."""


class FullError(L2Error):
    """The storage, or what the adapter may use of it, has no room for the object."""


class DeniedError(L2Error):
    """The storage refuses: credentials, permissions, a file system that became read-only."""


class Stored(NamedTuple):
    """An object that a scan has found."""

    name: str
    size: int
    """Bytes."""


class Usage(NamedTuple):
    """What is stored."""

    objects: int
    bytes: int


class L2Adapter(ABC):
    """Bytes under names on one storage.

    Names are 1 to 128 characters of `a-z`, `0-9`, `-` and `_`. Objects are written whole and never changed: writing a
    name again replaces the object at once. Every method but `open` and `close` may be called from several threads at
    the same time, between these two; each raises from the closed list above, within the time limit that the adapter
    was made with, and keeps no buffer after it has returned or raised.
    """

    first_names: ClassVar[int | None] = None
    """So many names are asked for first when a prompt is looked for, then twice as many, and so on, and no more once
    one is missing: for a storage where each name costs a request. All are asked for at once if it is None."""

    @abstractmethod
    def open(self, memory: Sequence[memoryview]) -> None:
        """Connects. All later buffers lie in `memory`, regions that stay where they are until `close`: to be
        registered with a library that wants that, and otherwise of no concern.

        May be called again after it has failed or after `close`.
        """

    @abstractmethod
    def close(self) -> None:
        """Lets go of connections and memory. Nothing is running any more; may be called twice, and without `open`."""

    @abstractmethod
    def contains(self, names: Sequence[str]) -> list[bool]:
        """Which of the names have an object, in one round trip or as few as the storage allows."""

    @abstractmethod
    def read_into(self, name: str, buffers: Sequence[memoryview]) -> int:
        """Fills the writable buffers of bytes with the object, one after the other, and returns the object's size.

        If that is not the size of all buffers together, their contents are undefined: the caller compares. Raises
        AbsentError.
        """

    def read_pieces(self, name: str, buffers: Sequence[memoryview], filled: Callable[[memoryview], object]) -> int:
        """`read_into`, which also tells of the filled bytes, in order and each once: of as many as there are if the
        object has the size of all buffers, and otherwise of some or none.

        PERF: An adapter that fills a large buffer in several steps tells of each at once, so that who looks at the
        bytes finds them in the processor's cache. Others need not override it.
        """
        size = self.read_into(name, buffers)
        if size == sum(map(len, buffers)):
            for buffer in buffers:
                filled(buffer)
        return size

    def inspect(self, name: str, buffers: Sequence[memoryview], filled: Callable[[memoryview], object]) -> int:
        """`read_pieces` for who looks whether objects are still what was written: it is no use of the object for an
        adapter that evicts what was not used for long, and the bytes are those of the storage itself rather than of a
        cache before it, where the adapter has the choice."""
        return self.read_pieces(name, buffers, filled)

    @abstractmethod
    def write(self, name: str, buffers: Sequence[memoryview]) -> None:
        """Stores the bytes of all buffers, one after the other, as one object. It is seen whole or not at all, also
        when the process is killed meanwhile. Raises FullError if there is no room; then the name has the object that
        it had, or none."""

    @abstractmethod
    def delete(self, names: Sequence[str]) -> None:
        """Removes objects; a name without one is no error."""

    @abstractmethod
    def scan(self) -> Iterator[Stored]:
        """All objects, whoever has written them, in any order; those that come or go meanwhile may be missed."""

    @abstractmethod
    def used(self) -> Usage | None:
        """What is stored, of all writers together; None where the storage cannot tell cheaply."""
