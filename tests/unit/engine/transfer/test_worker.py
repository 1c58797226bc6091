"""The transfer thread: tasks in order, one event for each, and what failures do to it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from itertools import pairwise
from queue import Empty, SimpleQueue

import pytest

from engine.checksum import CorruptError
from engine.events import (
    Checksum,
    Copy,
    CopyEnded,
    Discard,
    Discarded,
    Event,
    Map,
    MapEnded,
    Summed,
    TransfersEnded,
    Unmap,
    UnmapEnded,
)
from engine.layouts import KVLayout, read_kv_layout
from engine.transfer.worker import MappingLostError, Sentinel, TransferWorker
from tests.support.polling import until
from tests.unit.engine.support import FakeClock, cpu_tensor, extensions, group, packed

LAYOUT: KVLayout = read_kv_layout(extensions([cpu_tensor([4, 8, 4])]), packed({}), packed([group([0])]), 16)


class FakeCopier:
    """Does nothing, or what a test wants, and notes who called."""

    def __init__(self) -> None:
        self.beats = 0
        self.calls: list[tuple[str, object]] = []
        self.threads: set[str] = set()
        self.on_prepare: Callable[[], None] = lambda: None
        self.on_copy: Callable[[Copy], None] = lambda job: None
        self.on_map: Callable[[int], None] = lambda mapping_id: None

    def prepare_thread(self) -> None:
        self._note("prepare", None)
        self.on_prepare()

    def map(self, mapping_id: int, layout: KVLayout) -> None:
        self._note("map", mapping_id)
        self.on_map(mapping_id)

    def unmap(self, mapping_id: int, abandoned: bool) -> None:
        self._note("abandon" if abandoned else "unmap", mapping_id)
        self.on_map(mapping_id)

    def copy(self, job: Copy) -> None:
        self._note("copy", job.job_id)
        self.on_copy(job)

    def checksum(self, offset: int, size: int) -> bytes:
        self._note("checksum", (offset, size))
        self.on_map(offset)
        return b"%d" % offset

    def discard(self, start: int, end: int) -> None:
        self._note("discard", (start, end))
        self.on_map(start)

    def _note(self, what: str, which: object) -> None:
        self.calls.append((what, which))
        self.threads.add(threading.current_thread().name)


class Events:
    """What the worker posts."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[Event] = SimpleQueue()
        self.post = self._queue.put

    def next(self) -> Event:
        return self._queue.get(timeout=20)

    def rest(self) -> list[Event]:
        found = []
        while True:
            try:
                found.append(self._queue.get_nowait())
            except Empty:
                return found


@pytest.fixture
def copier() -> FakeCopier:
    return FakeCopier()


@pytest.fixture
def events() -> Events:
    return Events()


@pytest.fixture
def worker(copier: FakeCopier, events: Events) -> Iterator[TransferWorker]:
    made = TransferWorker(copier, copier.discard, events.post, FakeClock())
    yield made
    made.stop()


def copy(job_id: int) -> Copy:
    return Copy(job_id, 1, "store", [[1, 2]], ())


def fail(error: BaseException) -> Callable[[object], None]:
    def raise_it(_: object) -> None:
        raise error

    return raise_it


def test_every_task_is_answered_in_order(worker: TransferWorker, copier: FakeCopier, events: Events) -> None:
    for task in (Map(1, LAYOUT), copy(7), copy(8), Unmap(1), Discard(4096, 8192)):
        worker.submit(task)
    worker.start()
    assert [events.next() for _ in range(5)] == [
        MapEnded(1000.0, 1, None),
        CopyEnded(1000.0, 7, None),
        CopyEnded(1000.0, 8, None),
        UnmapEnded(1000.0, 1),
        Discarded(1000.0, None),
    ]
    assert copier.calls == [
        ("prepare", None),
        ("map", 1),
        ("copy", 7),
        ("copy", 8),
        ("unmap", 1),
        ("discard", (4096, 8192)),
    ]


def test_much_memory_goes_in_pieces_that_let_others_by(
    worker: TransferWorker, copier: FakeCopier, events: Events
) -> None:
    gibibyte = 1 << 30
    worker.submit(Discard(4096, gibibyte))
    worker.submit(copy(7))
    worker.start()
    assert [events.next() for _ in range(2)] == [CopyEnded(1000.0, 7, None), Discarded(1000.0, None)]
    pieces = [range_ for call, range_ in copier.calls if call == "discard"]
    assert (pieces[0][0], pieces[-1][1]) == (4096, gibibyte)
    assert all(before[1] == after[0] for before, after in pairwise(pieces))
    assert len(pieces) == 4
    assert copier.calls.index(("copy", 7)) == 2
    until(lambda: worker.beats == 5, "every piece is a sign of life")


def test_a_piece_that_cannot_be_given_back_ends_it(worker: TransferWorker, copier: FakeCopier, events: Events) -> None:
    copier.on_map = fail(ValueError("no"))
    worker.submit(Discard(0, 1 << 30))
    worker.submit(copy(7))
    worker.start()
    assert [events.next() for _ in range(2)] == [Discarded(1000.0, "no"), CopyEnded(1000.0, 7, None)]


def test_all_work_is_done_on_one_thread(worker: TransferWorker, copier: FakeCopier, events: Events) -> None:
    worker.start()
    for task in (Map(1, LAYOUT), copy(7), Unmap(1), Discard(0, 1)):
        worker.submit(task)
        events.next()
    assert copier.threads == {"transfer"}


@pytest.mark.parametrize(
    ("error", "problem"),
    [(ValueError("the reason"), "the reason"), (ValueError(), "ValueError()"), (MemoryError("too much"), "too much")],
)
def test_a_failed_task_says_why_and_the_next_one_is_done(
    worker: TransferWorker, copier: FakeCopier, events: Events, error: Exception, problem: str
) -> None:
    worker.start()
    copier.on_copy = copier.on_map = fail(error)
    for task in (Map(1, LAYOUT), copy(7), Unmap(1), Discard(0, 1)):
        worker.submit(task)
    assert events.next() == MapEnded(1000.0, 1, problem)
    assert events.next() == CopyEnded(1000.0, 7, problem)
    assert events.next() == UnmapEnded(1000.0, 1)
    assert events.next() == Discarded(1000.0, problem)
    copier.on_copy = lambda job: None
    worker.submit(copy(8))
    assert events.next() == CopyEnded(1000.0, 8, None)


def test_a_copy_that_meets_lost_memory_says_whose(worker: TransferWorker, copier: FakeCopier, events: Events) -> None:
    copier.on_copy = fail(MappingLostError("cut short"))
    worker.start()
    worker.submit(copy(7))
    assert events.next() == CopyEnded(1000.0, 7, "cut short", lost_mapping=1)


def test_failures_that_clients_cause_do_not_fill_the_log(
    worker: TransferWorker, copier: FakeCopier, events: Events, caplog: pytest.LogCaptureFixture
) -> None:
    copier.on_map = fail(ValueError("x" * 5000))
    worker.start()
    for _ in range(100):
        worker.submit(Map(1, LAYOUT))
        events.next()
    assert len(caplog.records) == 20
    assert max(len(record.getMessage()) for record in caplog.records) < 1100


def test_a_thread_that_dies_says_so_once(worker: TransferWorker, copier: FakeCopier, events: Events) -> None:
    copier.on_copy = fail(SystemExit("enough"))
    worker.submit(copy(7))
    worker.submit(copy(8))
    worker.start()
    ended = events.next()
    assert isinstance(ended, TransfersEnded)
    assert "SystemExit('enough')" in ended.problem
    worker.stop()
    assert events.rest() == []
    assert ("copy", 8) not in copier.calls


def test_a_thread_that_cannot_begin_says_so(worker: TransferWorker, copier: FakeCopier, events: Events) -> None:
    copier.on_prepare = lambda: fail(RuntimeError("no device"))(None)
    worker.start()
    ended = events.next()
    assert isinstance(ended, TransfersEnded)
    assert "no device" in ended.problem


def test_stopping_finishes_the_task_at_hand_and_drops_the_others(
    worker: TransferWorker, copier: FakeCopier, events: Events
) -> None:
    at_work, go_on = threading.Event(), threading.Event()

    def work(job: Copy) -> None:
        at_work.set()
        assert go_on.wait(20)

    copier.on_copy = work
    worker.start()
    worker.submit(copy(7))
    worker.submit(copy(8))
    assert at_work.wait(20)
    stopper = threading.Thread(target=worker.stop)
    stopper.start()
    until(lambda: worker._stopping, "the worker has been told to stop")
    go_on.set()
    stopper.join(20)
    assert events.rest() == [CopyEnded(1000.0, 7, None)]


def test_stopping_twice_is_no_matter(worker: TransferWorker) -> None:
    worker.start()
    assert worker.stop()
    assert worker.stop()
    assert not worker._thread.is_alive()


def test_a_task_that_does_not_end_is_waited_for_once_and_told(
    worker: TransferWorker, copier: FakeCopier, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_work, go_on = threading.Event(), threading.Event()
    copier.on_copy = lambda job: at_work.set() or go_on.wait(20)
    monkeypatch.setattr("engine.transfer.worker._STOP_SECONDS", 0.01)
    worker.start()
    worker.submit(copy(7))
    assert at_work.wait(20)
    assert not worker.stop()
    monkeypatch.setattr("engine.transfer.worker._STOP_SECONDS", 20.0)
    assert not worker.stop()
    go_on.set()
    until(worker.stop, "the thread has ended")


def test_a_sentinel_is_answered_in_its_turn_and_the_engine_hears_nothing(
    worker: TransferWorker, copier: FakeCopier, events: Events
) -> None:
    answered, calls = threading.Event(), []

    def done() -> None:
        calls.extend(copier.calls)
        answered.set()

    worker.submit(copy(7))
    worker.submit(Sentinel(done))
    worker.start()
    assert answered.wait(20)
    assert calls == [("prepare", None), ("copy", 7)]
    assert events.rest() == [CopyEnded(1000.0, 7, None)]


def test_it_beats_with_every_task_and_every_piece_of_one(worker: TransferWorker, copier: FakeCopier) -> None:
    in_the_middle, go_on = threading.Event(), threading.Event()

    def work(job: Copy) -> None:
        copier.beats += 1
        in_the_middle.set()
        assert go_on.wait(20)

    copier.on_copy = work
    worker.start()
    worker.submit(copy(7))
    assert in_the_middle.wait(20)
    assert worker.beats == 1
    go_on.set()
    until(lambda: worker.beats == 2, "the task is done")


def test_checksums_are_answered_in_the_order_of_their_slots(
    worker: TransferWorker, copier: FakeCopier, events: Events
) -> None:
    worker.start()
    worker.submit(Checksum(5, ((4096, 10), (0, 20))))
    assert events.next() == Summed(1000.0, 5, (b"4096", b"0"))
    assert copier.calls[1:] == [("checksum", (4096, 10)), ("checksum", (0, 20))]


def test_where_one_checksum_cannot_be_had_there_is_none(
    worker: TransferWorker, copier: FakeCopier, events: Events
) -> None:
    def fail(offset: int) -> None:
        raise OSError(f"no {offset}")

    copier.on_map = fail
    worker.start()
    worker.submit(Checksum(5, ((0, 10),)))
    assert events.next() == Summed(1000.0, 5, None)


def test_a_copy_that_meets_a_corrupt_object_says_which(
    worker: TransferWorker, copier: FakeCopier, events: Events
) -> None:
    def fail(job: Copy) -> None:
        raise CorruptError(3)

    copier.on_copy = fail
    worker.start()
    worker.submit(copy(7))
    assert events.next() == CopyEnded(1000.0, 7, "an object in L1 is not what was stored", (), 3)
