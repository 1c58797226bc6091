"""L1's objects are held against their checksums: what is corrupt is served to nobody, and everybody is answered."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from engine import L2Settings
from engine.checksum import checksum
from engine.commands import ClearAll
from engine.events import Checksum, Copy, CopyEnded, Event, Find, Load, Loaded, Save, Summed, TransfersEnded
from engine.l1.entry import Entry
from engine.status import TierOutcome
from engine.wire import messages as m
from tests.unit.engine.driver import SLOT, Driver, Task
from tests.unit.engine.support import HANDLE, key, register_engine_driven

DONE, FAILED = [b"", True], [b"", False]
REFUSED = {"success": False, "data": b"", "context": {}}
TOKENS = list(range(48))
"""Three chunks."""


class Checked(Driver):
    """A driver that verifies, with just enough memory for that: what is in a slot is a number."""

    def __init__(self, **more: Any) -> None:
        super().__init__(**{"verify": True, **more})
        self.contents = Counter[int]()
        """By offset."""

    def sum_up(self, offset: int) -> bytes:
        return checksum(b"%d in %d" % (self.contents[offset], offset))

    def outcome(self, task: Task) -> Event:
        if isinstance(task, Checksum):
            return Summed(self.now, task.ticket, tuple(self.sum_up(offset) for offset, _ in task.slots))
        return self._copied(task) if isinstance(task, Copy) and not self.problem else super().outcome(task)

    def _copied(self, copy: Copy) -> CopyEnded:
        if copy.direction == "store":
            self.contents.update(piece.offset for piece in copy.pieces)
            sums = tuple(self.sum_up(piece.offset) for piece in copy.pieces) if copy.slot_bytes else ()
            return CopyEnded(self.now, copy.job_id, None, sums)
        for index, piece in enumerate(copy.pieces):
            if piece.checksum not in (None, self.sum_up(piece.offset)):
                return CopyEnded(self.now, copy.job_id, "corrupt", (), index)
        return CopyEnded(self.now, copy.job_id, None)

    def answered(self, task: Find | Load | Save, outcome: TierOutcome) -> Event:
        if isinstance(task, Save) and task.checksum not in (None, self.sum_up(task.slot.offset)):
            outcome = "damaged"
        event = super().answered(task, outcome)
        if isinstance(event, Loaded) and isinstance(task, Load) and event.outcome == "done":
            self.contents[task.slot.offset] += 1
            return replace(event, checksum=self.sum_up(task.slot.offset))
        return event

    def entry(self, chunk: int) -> Entry:
        """Of the prompt's only object that is there for this chunk."""
        found = [each for each in self.cache.page(0, 100).members if each.key[16:] == _hash(chunk)]
        assert len(found) == 1
        return found[0]

    def corrupt(self, chunk: int) -> None:
        """Somebody writes to a slot that is not lent."""
        self.contents[self.entry(chunk).offset] += 1

    @property
    def counted(self) -> tuple[int, int]:
        """How many objects were verified, and how many of these were corrupt."""
        l1 = self.report().l1
        return l1.verified_objects, l1.corrupt_objects

    def assert_nothing_is_held(self) -> None:
        assert self.cache.objects_in_use == (0, 0)
        assert self.cache._in_use == set()
        assert self.report().running_transfers == 0


def _hash(chunk: int) -> bytes:
    from engine.hashing import hash_tokens

    return list(hash_tokens(TOKENS, 16))[chunk]


def worker_key() -> m.Key:
    return key(TOKENS, worker_id=0)


def assert_quarantined(driver: Driver, chunk: int) -> None:
    found = driver.look(TOKENS)
    assert (found.hit_chunks, found.reason) == (chunk, "quarantined")
    assert any("is not what was stored" in warning for warning in driver.warnings)


def leave(driver: Checked) -> None:
    driver.ask(m.UnregisterEngineDriven(1))


def fall_silent(driver: Checked) -> None:
    driver.tick(3601)


def come_anew(driver: Checked) -> None:
    driver.ask(register_engine_driven(1, num_layers=1))


WAYS_TO_LEAVE = pytest.mark.parametrize("way", [leave, fall_silent, come_anew])


class TestServerCopies:
    @pytest.fixture
    def driver(self) -> Checked:
        made = Checked()
        made.register()
        assert made.store(TOKENS) == DONE
        return made

    def test_what_is_as_it_was_stored_is_retrieved(self, driver: Checked) -> None:
        assert driver.lookup(TOKENS) == 3
        assert driver.retrieve(TOKENS) == DONE
        assert driver.counted == (3, 0)

    def test_what_is_corrupt_fails_the_retrieve_and_is_gone(self, driver: Checked) -> None:
        driver.corrupt(1)
        assert driver.lookup(TOKENS) == 3
        assert driver.retrieve(TOKENS) == FAILED
        assert driver.counted == (2, 1)
        assert_quarantined(driver, 1)
        driver.end()
        driver.assert_nothing_is_held()

    def test_nothing_of_it_is_served_to_whom_it_was_promised_before(self, driver: Checked) -> None:
        driver.corrupt(0)
        for request in ("one", "other"):
            assert driver.lookup(TOKENS, request_id=request) == 3
        assert driver.retrieve(TOKENS, request_id="one") == FAILED
        assert driver.retrieve(TOKENS, request_id="other") == FAILED
        assert driver.counted == (2, 2)
        for request in ("one", "other"):
            driver.end(request_id=request)
        driver.assert_nothing_is_held()
        assert driver.cache.used == 2 * SLOT

    def test_it_can_be_stored_again(self, driver: Checked) -> None:
        driver.corrupt(0)
        driver.retrieve(TOKENS)
        assert driver.store(TOKENS) == DONE
        assert driver.lookup(TOKENS) == 3
        assert driver.retrieve(TOKENS) == DONE

    def test_a_copy_that_fails_for_another_reason_takes_nothing_away(self, driver: Checked) -> None:
        driver.problem = "no"
        assert driver.retrieve(TOKENS) == FAILED
        assert driver.look(TOKENS).hit_chunks == 3
        assert driver.counted == (0, 0)

    def test_the_whole_slot_is_summed_up(self, driver: Checked) -> None:
        driver.retrieve(TOKENS)
        store, retrieve = [task for task in driver.done if isinstance(task, Copy)]
        assert (store.slot_bytes, retrieve.slot_bytes) == (SLOT, SLOT)
        assert [piece.checksum for piece in store.pieces] == [None] * 3
        assert [piece.checksum for piece in retrieve.pieces] == [driver.sum_up(p.offset) for p in retrieve.pieces]


class TestEngineCopies:
    @pytest.fixture
    def driver(self) -> Checked:
        made = Checked()
        made.ask(register_engine_driven(1))
        made.ask(m.PrepareStore(worker_key(), 1))
        made.working = False
        return made

    def commit(self, driver: Checked) -> bytes:
        """Asks; returns the uid of what is answered later."""
        uid = driver.start(m.CommitStore(worker_key(), 1, b""))
        assert uid not in driver.replies
        assert driver.report().running_transfers == 1
        return uid

    def prepare(self, driver: Checked) -> bytes:
        """The same for a retrieve of what was stored."""
        driver.replies.pop(self.commit(driver), None)
        driver.work()
        uid = driver.start(m.PrepareRetrieve(worker_key(), 1))
        assert uid not in driver.replies
        return uid

    def test_a_commit_is_answered_and_published_when_it_was_summed_up(self, driver: Checked) -> None:
        uid = self.commit(driver)
        assert driver.lookup(TOKENS) == 0
        driver.work()
        assert driver.replies[uid] is True
        assert driver.lookup(TOKENS) == 3

    def test_what_is_as_it_was_stored_is_lent(self, driver: Checked) -> None:
        uid = self.prepare(driver)
        driver.work()
        assert driver.replies[uid]["success"] is True
        assert len(driver.replies[uid]["context"]["slots"]) == 3
        assert driver.counted == (3, 0)
        assert driver.ask(m.CommitRetrieve(worker_key(), 1)) is True
        driver.assert_nothing_is_held()

    def test_what_is_corrupt_is_not_lent_and_is_gone(self, driver: Checked) -> None:
        uid = self.prepare(driver)
        driver.corrupt(1)
        driver.corrupt(2)
        driver.work()
        assert driver.replies[uid] == REFUSED
        assert driver.counted == (3, 2)
        assert_quarantined(driver, 1)
        assert driver.ask(m.CommitRetrieve(worker_key(), 1)) is True
        driver.assert_nothing_is_held()

    def test_a_clear_meanwhile_drops_what_is_committed(self, driver: Checked) -> None:
        uid = self.commit(driver)
        driver.tell(ClearAll())
        driver.work()
        assert driver.replies[uid] is False
        assert driver.cache.used == 0

    def test_a_clear_meanwhile_does_not_break_what_was_promised(self, driver: Checked) -> None:
        uid = self.prepare(driver)
        driver.tell(ClearAll())
        driver.work()
        assert driver.replies[uid]["success"] is True

    @WAYS_TO_LEAVE
    def test_what_was_committed_is_published_though_its_worker_left_meanwhile(
        self, driver: Checked, way: Callable[[Checked], None]
    ) -> None:
        uid = self.commit(driver)
        way(driver)
        driver.work()
        assert driver.replies[uid] is True
        driver.assert_nothing_is_held()
        assert driver.cache.ready_objects == 3

    @WAYS_TO_LEAVE
    def test_nothing_is_lent_to_a_worker_that_left_meanwhile(
        self, driver: Checked, way: Callable[[Checked], None]
    ) -> None:
        uid = self.prepare(driver)
        way(driver)
        driver.work()
        assert driver.replies[uid] == REFUSED
        driver.assert_nothing_is_held()

    def test_what_is_being_summed_up_when_the_transfer_thread_dies_is_answered(self, driver: Checked) -> None:
        uid = self.commit(driver)
        driver.handle(TransfersEnded(driver.now, "it died"))
        assert driver.replies[uid] is False
        driver.assert_nothing_is_held()
        assert driver.cache.used == 0

    def test_what_cannot_be_verified_is_neither_lent_nor_published(self, driver: Checked) -> None:
        uid = self.prepare(driver)
        driver.handle(TransfersEnded(driver.now, "it died"))
        assert driver.replies[uid] == REFUSED
        assert driver.ask(m.PrepareRetrieve(worker_key(), 1)) == REFUSED
        more = key(range(100, 116), worker_id=0)
        driver.ask(m.PrepareStore(more, 1))
        assert driver.ask(m.CommitStore(more, 1, b"")) is False
        driver.assert_nothing_is_held()
        assert driver.cache.ready_objects == 3

    def test_a_slot_that_cannot_be_read_is_not_published(self, driver: Checked) -> None:
        uid = self.commit(driver)
        task = driver.pending.pop()
        assert isinstance(task, Checksum)
        driver.handle(Summed(driver.now, task.ticket, None))
        assert driver.replies[uid] is False
        driver.assert_nothing_is_held()
        assert driver.cache.used == 0


class TestL2:
    @pytest.fixture
    def driver(self) -> Checked:
        made = Checked(tiers=[L2Settings("memory", "t")])
        made.register()
        made.storage.working = False
        assert made.store(TOKENS) == DONE
        return made

    def load(self, driver: Checked) -> None:
        """All of it goes to L2, and comes back from there."""
        driver.work_in_l2()
        driver.tell(ClearAll())
        driver.storage.working = True
        assert driver.lookup(TOKENS) == 3

    def test_what_is_saved_is_verified(self, driver: Checked) -> None:
        driver.work_in_l2()
        assert driver.counted == (3, 0)

    def test_what_is_corrupt_is_not_saved_and_is_gone(self, driver: Checked) -> None:
        driver.corrupt(1)
        driver.work_in_l2()
        assert {each[16:] for each in driver.storage.keys["t"]} == {_hash(0), _hash(2)}
        assert driver.counted == (3, 1)
        assert_quarantined(driver, 1)
        driver.assert_nothing_is_held()

    def test_what_was_loaded_is_verified_when_it_is_used(self, driver: Checked) -> None:
        self.load(driver)
        assert driver.retrieve(TOKENS) == DONE
        assert driver.counted == (6, 0)

    def test_what_got_corrupt_after_it_was_loaded_is_loaded_again(self, driver: Checked) -> None:
        self.load(driver)
        driver.corrupt(1)
        assert driver.retrieve(TOKENS) == FAILED
        assert driver.lookup(TOKENS, request_id="again") == 3
        assert driver.retrieve(TOKENS, request_id="again") == DONE


def test_while_it_is_not_wanted_nothing_is_summed_up() -> None:
    driver = Driver(tiers=[L2Settings("memory", "t")])
    driver.register()
    driver.ask(register_engine_driven(2, model_name="lending"))
    lent = key(TOKENS, worker_id=0, model_name="lending")
    driver.store(TOKENS)
    assert driver.retrieve(TOKENS) == DONE
    driver.ask(m.PrepareStore(lent, 2))
    assert driver.ask(m.CommitStore(lent, 2, b"")) is True
    assert driver.ask(m.PrepareRetrieve(lent, 2))["success"] is True
    copies = [task for task in driver.done if isinstance(task, Copy)]
    assert {copy.slot_bytes for copy in copies} == {0}
    assert {piece.checksum for copy in copies for piece in copy.pieces} == {None}
    assert not any(isinstance(task, Checksum) for task in driver.done)
    assert {entry.checksum for entry in driver.cache.page(0, 100).members} == {None}
    assert driver.report().l1.verified_objects == 0
    assert driver.ask(m.Store(key(TOKENS, worker_id=0), 1, [[1, 2, 3, 4, 5, 6]], HANDLE)) == DONE
