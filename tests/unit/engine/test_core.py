"""Every request is answered once, whatever it says; and what operators are told."""

from __future__ import annotations

import pytest

from engine.commands import ClearAll, Drain
from engine.events import CommandAsked, CommandDone, TransfersEnded
from engine.status import Cleared
from engine.wire import messages as m
from tests.unit.engine.driver import SLOT, TENSORS, Driver
from tests.unit.engine.support import key, packed, register, register_engine_driven

CHUNK = list(range(16))
KEY = key(CHUNK, worker_id=0)
NO_SLOTS = {"context": {"slots": [], "chunk_indices": []}}


@pytest.fixture
def driver() -> Driver:
    return Driver()


@pytest.mark.parametrize(
    ("message", "answer"),
    [
        (m.GetChunkSize(), 16),
        (m.GetExperimental(), []),
        (m.Noop(), "OK"),
        (m.ReportBlockAllocation(b"", b"", b""), None),
        (m.Clear(False), None),
        (m.Clear(True), None),
        (m.QueryPrefetchStatus("unknown"), 0),
        (m.WaitPrefetchStatus("unknown", 1.0), 0),
        (m.EndSession("unknown"), None),
        (m.FreeLookupLocks(key(CHUNK, request_id="unknown"), b""), None),
        (m.UnregisterKVCache(5), None),
        (m.UnregisterEngineDriven(5), None),
        (
            m.SubscribeKVEvents(1, "m", 0, 1),
            {"enabled": False, "incarnation": 0, "next_cursor": 0, "lost": False, "events": []},
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_needs_no_worker_is_answered_at_once(driver: Driver, message: m.Message, answer: object) -> None:
    assert driver.ask(message) == answer
    assert driver.report().failed_requests == 0


@pytest.mark.parametrize(
    ("message", "answer"),
    [
        (m.Store(KEY, 5, [[1, 2]], b""), [b"", False]),
        (m.Retrieve(KEY, 5, [[1, 2]], b"", 0), [b"", False]),
        (m.PrepareStore(KEY, 5), NO_SLOTS),
        (m.CommitStore(KEY, 5, b""), False),
        (m.PrepareRetrieve(KEY, 5), {"success": False, "data": b"", "context": {}}),
        (m.CommitRetrieve(KEY, 5), False),
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("mode", ["nobody", "the other mode", "broken"])
def test_a_worker_that_cannot_be_served_gets_the_failure_value(
    driver: Driver, message: m.Message, answer: object, mode: str
) -> None:
    if mode == "broken":
        driver.register(5, [])
    elif mode == "the other mode" and isinstance(message, m.Store | m.Retrieve):
        driver.ask(register_engine_driven(5))
    elif mode == "the other mode":
        driver.register(5)
    before = driver.report().failed_requests
    assert driver.ask(message) == answer
    assert driver.report().failed_requests == before + 1
    assert "refused: worker 5 " in driver.warnings[-1]


def test_a_clear_by_an_operator_says_what_it_made_invisible(driver: Driver) -> None:
    driver.register()
    driver.store(range(32))
    assert driver.handle(CommandAsked(0.0, 7, ClearAll())) == [CommandDone(7, Cleared(2, 2 * SLOT))]
    assert driver.lookup(range(32)) == 0


@pytest.mark.parametrize("force", [False, True])
def test_a_clear_by_a_client_makes_everything_invisible_and_breaks_no_promise(driver: Driver, force: bool) -> None:
    driver.register()
    driver.store(range(32))
    assert driver.lookup(range(32), request_id="before") == 2
    driver.ask(m.Clear(force))
    assert driver.lookup(range(32), request_id="after") == 0
    assert driver.retrieve(range(32), request_id="before") == [b"", True]
    assert driver.cache.used == 0


class TestDraining:
    @pytest.fixture
    def draining(self, driver: Driver) -> Driver:
        """Chunk 0 is stored, and the request `promised` has found it before."""
        driver.register()
        driver.ask(register_engine_driven(2, model_name="other"))
        assert driver.store(CHUNK) == [b"", True]
        assert driver.lookup(CHUNK, request_id="promised") == 1
        assert driver.handle(CommandAsked(driver.now, 7, Drain())) == [CommandDone(7, None)]
        return driver

    def test_lookups_find_nothing_and_count_as_no_miss(self, draining: Driver) -> None:
        assert draining.lookup(CHUNK) == 0
        assert draining.report().l1.missed_chunks == 0
        assert draining.report().active_sessions == 1

    def test_a_request_that_looks_up_again_gives_back_what_it_leased(self, draining: Driver) -> None:
        assert draining.leased == 1
        assert draining.lookup(CHUNK, request_id="promised") == 0
        assert draining.leased == 0

    def test_stores_are_skipped_as_done(self, draining: Driver) -> None:
        assert draining.store(range(100, 116)) == [b"", True]
        other = key(CHUNK, worker_id=0, model_name="other")
        assert draining.ask(m.PrepareStore(other, 2)) == NO_SLOTS
        report = draining.report()
        assert (report.skipped_stores, report.failed_requests, report.l1.stored_objects) == (1, 0, 1)
        assert draining.reserved == 0

    def test_what_was_promised_is_still_retrieved(self, draining: Driver) -> None:
        assert draining.retrieve(CHUNK, request_id="promised") == [b"", True]


def test_the_report_is_what_happened(driver: Driver) -> None:
    driver.register()
    driver.store(range(32))
    driver.lookup([*range(16), *range(100, 132)])
    driver.working = False
    driver.start(m.Store(key(range(200, 232), worker_id=0), 1, [[1, 2, 3, 4]], b""))
    report = driver.report()
    assert report.is_healthy
    assert (report.active_sessions, report.running_transfers, len(report.workers)) == (1, 1, 1)
    assert (report.l1.hit_chunks, report.l1.missed_chunks, report.l1.stored_objects) == (1, 2, 2)
    assert (report.l1.total_object_count, report.l1.leased_object_count, report.l1.reserved_object_count) == (2, 1, 2)
    assert (report.l1.memory_used_bytes, report.l1.memory_total_bytes) == (4 * SLOT, 100 * SLOT)
    driver.work()
    assert driver.report().running_transfers == 0


def test_the_report_counts_what_the_socket_refused(driver: Driver) -> None:
    driver.ask(m.PrepareStore(KEY, 5))
    report = driver.engine.report(failed_requests=3, dropped_messages=4, dropped_replies=5)
    assert (report.failed_requests, report.dropped_messages, report.dropped_replies) == (4, 4, 5)


def test_without_a_transfer_thread_the_engine_is_ill_and_says_why(driver: Driver) -> None:
    driver.handle(TransfersEnded(0.0, "it fell over"))
    report = driver.report()
    assert (report.is_healthy, report.problems) == (False, ("it fell over",))


def test_whoever_waits_is_answered_when_the_transfer_thread_ends() -> None:
    driver = Driver()
    driver.register(1)
    driver.store(range(16), request_id="there")
    driver.working = False
    waiting = {
        "store": driver.start(m.Store(key(range(100, 116), worker_id=0), 1, [[1, 2]], b"")),
        "retrieve": driver.start(m.Retrieve(KEY, 1, [[1, 2]], b"", 0)),
        "register": driver.start(register(2, TENSORS)),
        "unregister": driver.start(m.UnregisterKVCache(1)),
    }
    assert driver.replies.keys().isdisjoint(waiting.values())
    driver.handle(TransfersEnded(0.0, "it fell over"))
    assert driver.replies[waiting["store"]] == [b"", False]
    assert driver.replies[waiting["retrieve"]] == [b"", False]
    assert driver.replies[waiting["register"]] is None
    assert driver.replies[waiting["unregister"]] is None
    assert (driver.leased, driver.reserved) == (0, 0)


def test_the_engine_copies_mode_goes_on_without_a_transfer_thread(driver: Driver) -> None:
    driver.handle(TransfersEnded(0.0, "it fell over"))
    driver.ask(register_engine_driven(5))
    assert driver.ask(m.PrepareStore(KEY, 5))["context"]["chunk_indices"] == [0]
    assert driver.ask(m.CommitStore(KEY, 5, b"")) is True
    assert driver.ask(m.Lookup(key(CHUNK), packed(1))) is None
    assert driver.ask(m.QueryPrefetchStatus("r")) == 1
