"""What L1 has to be, written down naively: a list of objects with their bytes, an order, and a map of pages."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from engine.l1.cache import ALIGNMENT
from engine.l1.entry import Entry
from engine.status import MissReason

Key = tuple[int, int]
"""A chain of chunks and the position in it."""


def key_bytes(key: Key) -> bytes:
    return b"chain%d/%d" % key


def key_of(encoded: bytes) -> Key:
    chain, index = encoded.removeprefix(b"chain").split(b"/")
    return int(chain), int(index)


@dataclass(eq=False)
class Item:
    """One object: reserved until `data` is known as `committed`."""

    key: Key
    entry: Entry
    size: int
    data: bytearray
    """What has been written into its slot so far."""
    committed: bool = False
    visible: bool = True
    leases: int = 0
    borrowers: int = 0

    @property
    def pages(self) -> range:
        first = self.entry.offset // ALIGNMENT
        return range(first, first - (-self.size // ALIGNMENT))

    @property
    def in_use(self) -> bool:
        return not self.committed or self.leases > 0 or self.borrowers > 0


class NaiveOrder:
    """In which order objects may be evicted, as far as that is known.

    Of LRU and FIFO it is known exactly. While one of them is replaced by the other, what was not used since then comes
    first, in its old order, and what was stored or used comes behind it in any order. Of others nothing is known, and
    of FIFO neither once it has replaced another policy.
    """

    def __init__(self, policy: str) -> None:
        self.policy = policy
        self.is_changing = False
        self._is_known = policy in ("lru", "fifo")
        self._keys: list[Key] = []
        """lru: the evictable ones by last use. fifo: all that stand in line. While it changes: those not used."""
        self._back: list[Key] = []
        """fifo: what was held when its turn came and is not held any more, which goes first."""
        self._out: set[Key] = set()
        """fifo: what was held when its turn came, and still is."""
        self._used: set[Key] = set()
        """Stored or used while it changes."""

    def come(self, key: Key) -> None:
        """It becomes evictable, for the first time or again."""
        if self.is_changing:
            self._used.add(key)
        elif key in self._out:
            self._out.remove(key)
            self._back.append(key)
        elif key not in self._keys and key not in self._back:
            self._keys.append(key)

    def hold(self, key: Key) -> None:
        if self.policy == "lru" or self.is_changing:
            self.remove(key)

    def remove(self, key: Key) -> None:
        self._keys = [each for each in self._keys if each != key]
        self._back = [each for each in self._back if each != key]
        self._out.discard(key)
        self._used.discard(key)

    def touch(self, keys: Iterable[Key]) -> None:
        for key in keys:
            if key in self._keys and (self.is_changing or self.policy == "lru"):
                self._keys.remove(key)
                self.come(key)

    def change(self, policy: str, ranked: list[Key]) -> None:
        self._is_known = self._is_known and policy in ("lru", "fifo")
        self.policy, self.is_changing = policy, True
        self._keys, self._back, self._out, self._used = list(ranked), [], set(), set()

    def settle(self, ranked: list[Key]) -> None:
        """The change has ended."""
        self.is_changing = False
        self._is_known = self.policy == "lru"
        self._keys, self._used = list(ranked), set()

    @property
    def is_exact(self) -> bool:
        return self._is_known and not self.is_changing

    def check(self, ranked: list[Key], evictable: list[Key]) -> None:
        """`ranked` was asked for to its end, which takes what is held out of the line of FIFO."""
        assert sorted(ranked) == sorted(evictable)
        if self._is_known and self.is_changing:
            sure = [key for key in ranked if key in self._keys or key in self._used]
            assert sure[: len(self._keys)] == self._keys, "a change has mixed up the order"
        elif self._is_known:
            line = [*self._back, *self._keys]
            self._out |= {key for key in line if key not in evictable}
            self._back = [key for key in self._back if key not in self._out]
            self._keys = [key for key in self._keys if key not in self._out]
            assert ranked == [*self._back, *self._keys]


class NaiveCache:
    """The oracle of one `L1Cache`."""

    def __init__(self, pages: int, policy: str) -> None:
        self.pages = pages
        """The capacity."""
        self.end = pages
        """Where the tail behind it ends."""
        self.live: list[Item] = []
        """Everything that occupies a slot, doomed objects included."""
        self.order = NaiveOrder(policy)
        self.ranked: list[Key] = []
        """The order as it was found to be right."""
        self._reasons: dict[Key, MissReason] = {}
        self._cleared: set[Key] = set()
        """What the last clear of everything found unused: the reasons of the clears before it are forgotten."""
        self._ever: set[Key] = set()
        """What was stored at any time."""

    def visible(self, key: Key) -> Item | None:
        """The object that is there or being written under this key, if any."""
        return next((item for item in self.live if item.visible and item.key == key), None)

    def ready(self) -> list[Item]:
        return [item for item in self.live if item.visible and item.committed]

    def check_order(self, ranked: list[Key]) -> None:
        self.order.check(ranked, [item.key for item in self.ready() if not item.leases])
        self.ranked = ranked

    def evictable(self) -> list[Item]:
        """In the order in which they should go; what is borrowed has its place in the order, and does not go."""
        by_key = {item.key: item for item in self.ready()}
        return [item for key in self.ranked if not (item := by_key[key]).borrowers]

    def beyond(self) -> list[Item]:
        """What lies behind the capacity, doomed objects included."""
        return [item for item in self.live if item.pages.stop > self.pages]

    def set_capacity(self, pages: int) -> None:
        self.pages, self.end = pages, max(pages, self.end)

    def reason(self, key: Key) -> MissReason:
        """Why there is no ready object."""
        if self.visible(key) is not None:
            return "being_written"
        return self._reasons.get(key, "not_remembered" if key in self._ever else "never_stored")

    def refuse(self, keys: Iterable[Key]) -> None:
        for key in keys:
            self._explain(key, "refused")

    def clear(self) -> None:
        gone = [item for item in self.live if item.visible]
        if gone:
            for key in self._cleared:
                del self._reasons[key]
        unused = {item.key for item in gone if not item.in_use}
        for item in gone:
            self.hide(item, "cleared")
        self._cleared = unused if gone else self._cleared

    def stored(self, item: Item) -> None:
        """Its writer has finished it."""
        item.committed = True
        if item.visible:
            self._ever.add(item.key)
            self._explain(item.key, None)
        self.unused(item)

    def forget(self, item: Item) -> None:
        """Its slot is free again."""
        self.live.remove(item)
        item.visible = False

    def hide(self, item: Item, reason: MissReason) -> None:
        """It cannot be found any more; its slot is free unless somebody uses it."""
        item.visible = False
        self._explain(item.key, reason)
        self.order.remove(item.key)
        if not item.in_use:
            self.forget(item)

    def unused(self, item: Item) -> None:
        """Its writer or last reader has left."""
        if item.visible:
            self.order.come(item.key)
        elif not item.in_use:
            self.forget(item)

    def given_back(self, item: Item) -> None:
        """Nobody borrows it any more; its place in the order is what it was."""
        if not item.visible and not item.in_use:
            self.forget(item)

    def coldest(self, part: int) -> list[Item]:
        """The first `part`-th of all bytes in the order, without what is borrowed."""
        by_key = {item.key: item for item in self.ready()}
        left = sum(len(item.pages) for item in self.live) * ALIGNMENT // part
        found = []
        for item in [by_key[key] for key in self.ranked]:
            if left <= 0:
                break
            left -= len(item.pages) * ALIGNMENT
            if not item.borrowers:
                found.append(item)
        return found

    def free_pages(self, without: Iterable[Item] = ()) -> list[bool]:
        """By page below the capacity: free, or free if the objects of `without` were evicted."""
        free = [True] * self.end
        gone = set(without)
        for item in self.live:
            if item not in gone:
                for page in item.pages:
                    free[page] = False
        return free[: self.pages]

    def cheapest_eviction(self, pages: int) -> tuple[list[Item], int] | None:
        """The shortest head of the order that has to be considered, and the fewest pages to evict out of it.

        None if evicting everything evictable that lies below the capacity would not make room.
        """
        beyond = self.beyond()
        candidates = [item for item in self.evictable() if item not in beyond]
        for count in range(len(candidates) + 1):
            head = candidates[:count]
            costs = [self._cost(window, head) for window in windows(self.free_pages(head), pages)]
            if costs:
                return head, min(costs)
        return None

    def can_make_room(self, pages: int) -> bool:
        """Whether evicting everything evictable does."""
        return any(windows(self.free_pages(self.evictable()), pages))

    def _explain(self, key: Key, reason: MissReason | None) -> None:
        self._cleared.discard(key)
        if reason is None:
            self._reasons.pop(key, None)
        else:
            self._reasons[key] = reason

    @staticmethod
    def _cost(window: range, head: list[Item]) -> int:
        return sum(len(item.pages) for item in head if set(item.pages) & set(window))


def windows(free: list[bool], pages: int) -> Iterator[range]:
    """Every run of `pages` free pages."""
    for start in range(len(free) - pages + 1):
        if all(free[start : start + pages]):
            yield range(start, start + pages)
