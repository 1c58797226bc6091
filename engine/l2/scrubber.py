"""Goes through all of a tier from time to time and checks every object, so that rot is found before a request meets it.

When, how fast and where it goes on is decided in `scrub_plan.py`. Several servers on one storage may scrub it at the
same time: that costs twice the reading and harms nothing.
"""

from __future__ import annotations

import logging
import mmap
import threading
from collections.abc import Callable, Iterator
from typing import Final

from engine.errors import TierError
from engine.events import TierDamaged
from engine.keys import NAMESPACE_BYTES
from engine.l2.base import AbsentError, L2Adapter, L2Error, Stored
from engine.l2.envelope import HEADER_BYTES, EnvelopeError, PayloadHash, check_named
from engine.l2.objects import Bench
from engine.l2.scrub_plan import ScrubPlan
from engine.settings import ScrubSettings
from engine.status import ScrubCounts, ScrubHold, ScrubReport
from engine.supervision import SupervisedThread

logger = logging.getLogger(__name__)

LARGEST: Final = HEADER_BYTES + (256 << 20)
"""Bytes of an object, at most, to be checked: about twice what a chunk of the largest models has."""
_MEMORY: Final = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS


class Scrubber:
    """One thread is in `run`; the other methods may be called from any thread and do not wait for the storage."""

    def __init__(
        self,
        bench: Bench,
        settings: Callable[[], ScrubSettings],
        hold: Callable[[], ScrubHold | None],
        largest: int = LARGEST,
    ) -> None:
        """`hold` says why nothing may be read now. `largest`: bytes of an object that is checked."""
        self._bench = bench
        self._settings = settings
        self._hold = hold
        # NOTE: Memory is taken as objects are read, and given back after each pass.
        self._pages: Final = mmap.mmap(-1, largest, flags=_MEMORY)
        self.memory: Final = memoryview(self._pages)
        """Where objects are read into."""
        self._plan: Final = ScrubPlan()
        self._scan: Iterator[Stored] | None = None
        self._object: Stored | None = None
        """The one to check next."""
        self._lock: Final = threading.Lock()
        """Guards the plan and the counts."""
        self._passes = 0
        self._latest = self._total = ScrubCounts()
        self._stopping = False
        self._wake: Final = threading.Event()

    def begin(self) -> None:
        """Begins a pass. Raises TierError if one is under way."""
        with self._lock:
            if self._plan.is_running:
                raise TierError(f"the tier {self._bench.tier} is busy with a scrub; wait until that has ended")
            self._begun(asked=True)
        self._tell_begin()
        self._wake.set()

    def stop(self) -> None:
        """Ends `run`, behind the object that is being read."""
        self._stopping = True
        self._wake.set()

    def report(self) -> ScrubReport:
        hold = self._hold()
        with self._lock:
            plan, now = self._plan, self._bench.clock()
            return ScrubReport(
                is_running=plan.is_running,
                held_by=hold if plan.is_running else None,
                begun_age_seconds=_age(now, plan.begun_at),
                ended_age_seconds=_age(now, plan.ended_at),
                passes=self._passes,
                latest=self._latest,
                total=self._total,
            )

    def run(self, adapter: L2Adapter, thread: SupervisedThread) -> None:
        while not self._stopping:
            rest = self._rest()
            if rest > 0:
                self._wake.wait(rest)
                self._wake.clear()
            else:
                thread.works()
                self._step(adapter, thread)
                thread.rests()
        self._let_go()

    # The course of a pass

    def _begun(self, *, asked: bool) -> None:
        """Under the lock."""
        self._plan.begin(self._bench.clock(), asked=asked)
        self._latest = ScrubCounts()

    def _tell_begin(self) -> None:
        # NOTE: Not under the lock, which the engine thread takes for its reports: writing a log may take its time.
        logger.info("L2 %s: a scrub begins", self._bench.tier)

    def _rest(self) -> float:
        """Begins or gives up a pass if it is time; returns the seconds to rest before the next step."""
        is_held = self._hold() is not None
        with self._lock:
            now, settings = self._bench.clock(), self._settings()
            if is_due := self._plan.is_due(now, settings):
                self._begun(asked=False)
            is_running = self._plan.is_running
            rest = self._plan.rest(now, settings, is_held=is_held)
        if is_due:
            self._tell_begin()
        if not is_running:
            self._let_go()
        return rest

    def _step(self, adapter: L2Adapter, thread: SupervisedThread) -> None:
        """Goes on by an object. What the storage fails to do is tried again."""
        try:
            if self._scan is None:
                self._scan = adapter.scan()
            elif self._object is None:
                self._next(self._scan)
            else:
                self._check(adapter, self._object)
        except Exception as error:
            if not isinstance(error, L2Error):
                thread.count(error)
                logger.exception("a defect: the scrub of L2 %s", self._bench.tier)
            if self._object is None:
                self._scan_failed(error)
            else:
                self._read_failed(self._object, error)

    def _next(self, scan: Iterator[Stored]) -> None:
        stored = next(scan, None)
        if stored is None:
            self._end()
            return
        with self._lock:
            if self._plan.told():
                self._object = stored

    def _end(self) -> None:
        self._let_go()
        with self._lock:
            self._plan.ended(self._bench.clock())
            self._passes += 1
            found = self._latest
        text = "L2 %s: the scrub has ended: %d objects checked, %d damaged, %d skipped"
        logger.info(text, self._bench.tier, found.objects, found.damaged, found.skipped)

    def _scan_failed(self, error: Exception) -> None:
        logger.debug("L2 %s: the scrub cannot go on with the scan: %s", self._bench.tier, error)
        self._scan = None
        with self._lock:
            self._plan.scan_failed(self._bench.clock())

    def _read_failed(self, stored: Stored, error: Exception) -> None:
        with self._lock:
            if self._plan.failed(self._bench.clock()):
                return
            self._count(skipped=1)
        self._object = None
        logger.warning("L2 %s: the object %s cannot be read: %s", self._bench.tier, stored.name, error)

    def _let_go(self) -> None:
        """Of what a pass needs."""
        if self._scan is not None:
            self._scan = self._object = None
            self._pages.madvise(mmap.MADV_DONTNEED)

    def _count(self, **more: int) -> None:
        """Under the lock."""
        self._latest, self._total = _sum(self._latest, **more), _sum(self._total, **more)

    # An object

    def _check(self, adapter: L2Adapter, stored: Stored) -> None:
        """Raises L2Error, and then it is to be checked again."""
        found = self._judge(adapter, stored)
        self._object = None
        with self._lock:
            self._plan.done()
            self._count(**found._asdict())

    def _judge(self, adapter: L2Adapter, stored: Stored) -> ScrubCounts:
        key = _key_of(stored.name)
        if key is None or stored.size > len(self.memory):
            return ScrubCounts(skipped=1)
        try:
            size, problem = self._examine(adapter, stored, key)
            if size > len(self.memory):
                return ScrubCounts(skipped=1)
            if problem is not None:
                size, problem = self._examine_again(adapter, stored._replace(size=size), key)
            elif stored.name in self._bench.quarantine:
                # It was put aside once, and another server has written it anew.
                self._bench.quarantine.remove([stored.name])
        except AbsentError:
            return ScrubCounts()
        return ScrubCounts(objects=1, bytes=size, damaged=1 if problem else 0)

    def _examine_again(self, adapter: L2Adapter, stored: Stored, key: bytes) -> tuple[int, str | None]:
        """Puts aside what is damaged, unless it was replaced meanwhile.

        NOTE: It is put aside before the second look. A save takes the name out again behind its write; so, whenever it
        comes, either it does that last, or the second look sees what it has written.
        """
        quarantine, was_aside = self._bench.quarantine, stored.name in self._bench.quarantine
        quarantine.add(stored.name)
        try:
            size, problem = self._examine(adapter, stored, key)
        except AbsentError:
            quarantine.remove([stored.name])
            raise
        except Exception:
            if not was_aside:
                quarantine.remove([stored.name])
            raise
        if problem is None:
            quarantine.remove([stored.name])
        elif not was_aside:
            logger.warning("L2 %s: the object %s is put aside: %s", self._bench.tier, stored.name, problem)
            self._bench.post(TierDamaged(self._bench.clock(), self._bench.tier, key))
        return size, problem

    def _examine(self, adapter: L2Adapter, stored: Stored, key: bytes) -> tuple[int, str | None]:
        """The size of the object, and what is wrong with it, if anything is. Raises L2Error."""
        began, seen = self._bench.clock(), PayloadHash()
        place = self.memory[: stored.size]
        size = adapter.inspect(stored.name, [place], seen.add)
        with self._lock:
            self._plan.read(began, size, self._settings())
        if size != stored.size:
            return size, f"it has {size} bytes instead of {stored.size}"
        if size < HEADER_BYTES:
            return size, "it is shorter than a header"
        try:
            check_named(key, place[:HEADER_BYTES], seen)
        except EnvelopeError as error:
            return size, str(error)
        return size, None


def _key_of(name: str) -> bytes | None:
    """The key whose object has this name in every storage; None for a name that no key has."""
    try:
        key = bytes.fromhex(name)
    except ValueError:
        return None
    return key if len(key) > NAMESPACE_BYTES else None


def _age(now: float, then: float | None) -> int | None:
    return None if then is None else int(now - then)


def _sum(counts: ScrubCounts, **more: int) -> ScrubCounts:
    return counts._replace(**{name: getattr(counts, name) + number for name, number in more.items()})
