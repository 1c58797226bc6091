"""What an eviction policy is. A policy ranks, and never frees: the cache asks it who should go, and does it itself."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator


class EvictionPolicy(ABC):
    """Ranks the evictable objects of L1. Belongs to the engine thread.

    The cache tells it of every object that can be evicted. It gives the objects of one prompt last chunk first, in
    every call that takes several: a chunk is worth nothing once its prefix is gone, so suffixes have to go first.
    """

    @abstractmethod
    def insert(self, key: bytes, size: int) -> None:
        """An object of `size` bytes has become evictable for the first time."""

    @abstractmethod
    def touch(self, keys: Iterable[bytes]) -> None:
        """A request used these objects, last chunk first. Keys it does not rank now are passed over."""

    @abstractmethod
    def hold(self, key: bytes) -> None:
        """The object must not be ranked until `unhold`: somebody uses it."""

    @abstractmethod
    def unhold(self, key: bytes, size: int) -> None:
        """The object can be evicted again; it has just been used."""

    @abstractmethod
    def remove(self, key: bytes) -> None:
        """The object is gone: evicted, or cleared. Ranked or held does not matter."""

    @abstractmethod
    def victims(self) -> Iterator[bytes]:
        """The ranked objects, the one to evict first in front. The caller changes nothing while it iterates."""

    @abstractmethod
    def clear(self) -> None:
        """Every object is gone."""
