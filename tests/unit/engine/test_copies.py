"""Stores and retrieves that the server copies: what moves, what does not, and what is answered."""

from __future__ import annotations

from typing import Any

import pytest

from engine.events import Copy, CopyEnded, Piece, Warn
from engine.wire import messages as m
from tests.unit.engine.driver import SLOT, TENSORS, Driver
from tests.unit.engine.support import HANDLE, cpu_tensor, group, key, register_engine_driven

DONE, FAILED = [b"", True], [b"", False]
TOKENS = list(range(48))
"""Three chunks."""


@pytest.fixture
def driver() -> Driver:
    made = Driver()
    made.register()
    return made


def copies(driver: Driver) -> list[Copy]:
    return [task for task in driver.done if isinstance(task, Copy)]


def last_copy(driver: Driver) -> Copy:
    return copies(driver)[-1]


class TestStore:
    def test_the_blocks_of_the_range_go_into_slots(self, driver: Driver) -> None:
        assert driver.store(TOKENS, block_ids=[[3, 1, 2, 8, 7, 5]]) == DONE
        copy = last_copy(driver)
        assert (copy.direction, copy.block_ids, copy.event_handle) == ("store", [[3, 1, 2, 8, 7, 5]], HANDLE)
        assert copy.not_after == driver.now + 10.0
        assert [piece.chunk for piece in copy.pieces] == [0, 1, 2]
        offsets = [piece.offset for piece in copy.pieces]
        assert len(set(offsets)) == 3
        assert all(offset % SLOT == 0 for offset in offsets)
        assert driver.lookup(TOKENS) == 3

    def test_it_is_answered_when_the_bytes_have_moved_and_not_found_before(self, driver: Driver) -> None:
        driver.working = False
        uid = driver.start(m.Store(key(TOKENS, worker_id=0), 1, [[1, 2, 3, 4, 5, 6]], HANDLE))
        assert uid not in driver.replies
        assert driver.lookup(TOKENS) == 0
        driver.work()
        assert driver.replies[uid] == DONE
        assert driver.lookup(TOKENS) == 3

    def test_what_is_there_is_not_copied_again(self, driver: Driver) -> None:
        driver.store(TOKENS[:32])
        assert driver.store(TOKENS) == DONE
        assert [piece.chunk for piece in last_copy(driver).pieces] == [2]
        assert driver.store(TOKENS) == DONE
        assert len(copies(driver)) == 2

    def test_what_is_being_written_is_not_copied_twice(self, driver: Driver) -> None:
        driver.register(2)
        driver.working = False
        blocks = [[1, 2, 3, 4, 5, 6]]
        first = driver.start(m.Store(key(TOKENS[:32], worker_id=0), 1, [blocks[0][:4]], HANDLE))
        second = driver.start(m.Store(key(TOKENS, worker_id=0), 2, blocks, HANDLE))
        pieces = [task.pieces for task in driver.pending if isinstance(task, Copy)]
        assert [[piece.chunk for piece in copied] for copied in pieces] == [[0, 1], [2]]
        driver.work()
        assert (driver.replies[first], driver.replies[second]) == (DONE, DONE)

    def test_a_later_range_is_told_by_its_place_in_the_range(self, driver: Driver) -> None:
        assert driver.store(TOKENS, start=32) == DONE
        assert [piece.chunk for piece in last_copy(driver).pieces] == [0]
        assert driver.lookup(TOKENS) == 0, "its prefix is missing"
        driver.store(TOKENS[:32])
        assert driver.lookup(TOKENS) == 3

    def test_an_empty_range_is_done_at_once(self, driver: Driver) -> None:
        assert driver.store(TOKENS, start=16, end=16, block_ids=[[]]) == DONE
        assert copies(driver) == []

    def test_a_chunk_of_null_blocks_is_skipped_and_one_with_some_is_not(self, driver: Driver) -> None:
        assert driver.store(TOKENS, block_ids=[[1, 0, 0, 0, 0, 2]]) == DONE
        assert [piece.chunk for piece in last_copy(driver).pieces] == [0, 2]
        assert driver.lookup(TOKENS) == 1

    def test_a_chunk_is_skipped_if_any_of_its_groups_is_null(self) -> None:
        driver = Driver()
        driver.register(1, [*TENSORS, cpu_tensor([9, 16, 4])], groups=[group([0, 1]), group([2], 16, 1)])
        assert driver.store(TOKENS, block_ids=[[1, 2, 0, 0, 5, 6], [1, 2, 0]]) == DONE
        assert [piece.chunk for piece in last_copy(driver).pieces] == [0]

    @pytest.mark.parametrize(
        "block_ids",
        [
            pytest.param([[1, 2, 3, 4, 5]], id="one too few"),
            pytest.param([[1, 2, 3, 4, 5, 6, 7]], id="one too many"),
            pytest.param([[]], id="none"),
            pytest.param([], id="no list"),
            pytest.param([[1, 2, 3, 4, 5, 6]] * 2, id="a list too many"),
            pytest.param([[1, 2, 3, 4, 5, 9]], id="beyond the last block"),
            pytest.param([[1, 2, 3, 4, 5, -1]], id="before the first"),
            pytest.param([[1, 2, 3, 4, 5, 2**63]], id="far beyond"),
        ],
    )
    def test_block_ids_that_do_not_fit_store_nothing(self, driver: Driver, block_ids: Any) -> None:
        assert driver.store(TOKENS, block_ids=block_ids) == FAILED
        assert driver.retrieve(TOKENS) == FAILED
        assert driver.cache.used == 0
        assert copies(driver) == []

    @pytest.mark.parametrize(
        "changes",
        [
            {"worker_id": None},
            {"worker_id": 1},
            {"start": 8},
            {"end": 64},
            {"model_name": "other"},
            {"world_size": 2},
            {"cache_salt": "a/b"},
        ],
        ids=str,
    )
    def test_a_key_that_does_not_fit_stores_nothing(self, driver: Driver, changes: dict[str, Any]) -> None:
        assert driver.store(TOKENS, block_ids=[[1, 2, 3, 4, 5, 6]], **changes) == FAILED
        assert driver.cache.used == 0

    def test_a_copy_that_fails_leaves_nothing_and_can_be_repeated(self, driver: Driver) -> None:
        driver.problem = "the device is gone"
        assert driver.store(TOKENS) == FAILED
        assert (driver.cache.used, driver.lookup(TOKENS)) == (0, 0)
        driver.problem = None
        assert driver.store(TOKENS) == DONE

    def test_what_finds_no_room_is_left_out_from_the_tail_with_success(self) -> None:
        driver = Driver(slots=2)
        driver.register()
        assert driver.store(TOKENS) == DONE
        assert driver.lookup(TOKENS) == 2
        assert driver.report().l1.refused_objects == 1

    def test_a_prompts_own_prefix_is_not_evicted_for_its_tail(self) -> None:
        driver = Driver(slots=3)
        driver.register()
        driver.store(TOKENS[:16])
        driver.store(range(100, 132))
        assert driver.store(TOKENS, start=16) == DONE
        assert driver.lookup(TOKENS) == 3

    def test_older_prompts_make_room_the_suffix_first(self) -> None:
        driver = Driver(slots=4)
        driver.register()
        driver.store(TOKENS)
        driver.store(range(100, 132))
        assert driver.lookup(range(100, 132)) == 2
        assert driver.lookup(TOKENS) == 2
        assert driver.report().l1.evicted_objects == 1

    @pytest.mark.parametrize("again", [TOKENS, TOKENS[:32]], ids=["all of it", "a part"])
    def test_a_prompt_that_is_stored_again_still_loses_its_suffix_first(self, again: list[int]) -> None:
        driver = Driver(slots=3)
        driver.register()
        driver.store(TOKENS)
        driver.store(again)
        driver.store(range(100, 116))
        assert driver.lookup(TOKENS) == 2

    def test_a_prompt_that_has_grown_loses_its_suffix_first(self) -> None:
        driver = Driver(slots=3)
        driver.register()
        driver.store(TOKENS[:32])
        driver.store(TOKENS)
        driver.store(range(100, 116))
        assert driver.lookup(TOKENS) == 2

    @pytest.mark.parametrize(("seconds", "answer"), [(10.0, DONE), (10.1, FAILED)])
    def test_one_that_took_too_long_has_read_blocks_of_somebody_else(
        self, driver: Driver, seconds: float, answer: list[Any]
    ) -> None:
        driver.working = False
        uid = driver.start(m.Store(key(TOKENS, worker_id=0), 1, [[1, 2, 3, 4, 5, 6]], HANDLE))
        driver.now += seconds
        driver.work()
        assert driver.replies[uid] == answer
        assert driver.lookup(TOKENS) == (3 if answer == DONE else 0)

    def test_a_store_that_began_before_a_clear_does_not_reappear(self, driver: Driver) -> None:
        driver.working = False
        uid = driver.start(m.Store(key(TOKENS, worker_id=0), 1, [[1, 2, 3, 4, 5, 6]], HANDLE))
        driver.ask(m.Clear(False))
        driver.work()
        assert driver.replies[uid] == DONE
        assert (driver.lookup(TOKENS), driver.cache.used) == (0, 0)

    def test_shards_salts_and_layouts_do_not_share_objects(self, driver: Driver) -> None:
        driver.store(TOKENS)
        assert driver.store(TOKENS, cache_salt="s") == DONE
        driver.register(2, [cpu_tensor([9, 2, 8, 16])])
        assert driver.store(TOKENS, 2) == DONE
        assert [len(copy.pieces) for copy in copies(driver)] == [3, 3, 3]


class TestRetrieve:
    @pytest.fixture
    def stored(self, driver: Driver) -> list[Piece]:
        driver.store(TOKENS)
        return list(last_copy(driver).pieces)

    def test_the_objects_of_the_range_go_into_its_blocks(self, driver: Driver, stored: list[Piece]) -> None:
        driver.now = 50.0
        assert driver.retrieve(TOKENS, start=16, skip=8, waited=2.0) == DONE
        copy = last_copy(driver)
        assert (copy.direction, copy.block_ids, copy.skip_tokens) == ("retrieve", [[1, 2, 3, 4]], 8)
        assert copy.pieces == (Piece(0, stored[1].offset), Piece(1, stored[2].offset))
        assert copy.event_handle == HANDLE
        assert copy.not_after == 50.0 - 2.0 + 10.0

    def test_one_missing_chunk_fails_all(self, driver: Driver, stored: list[Piece]) -> None:
        assert driver.retrieve([*TOKENS, *range(900, 916)]) == FAILED
        assert [copy.direction for copy in copies(driver)] == ["store"]
        assert driver.leased == 0

    def test_a_copy_that_fails_is_a_failed_retrieve_and_the_object_stays(
        self, driver: Driver, stored: list[Piece]
    ) -> None:
        driver.lookup(TOKENS)
        driver.problem = "the device is gone"
        assert driver.retrieve(TOKENS) == FAILED
        assert driver.leased == 0
        driver.problem = None
        assert driver.lookup(TOKENS) == 3

    def test_it_uses_the_leases_of_its_request_up(self, driver: Driver, stored: list[Piece]) -> None:
        driver.lookup(TOKENS, request_id="a")
        driver.lookup(TOKENS, request_id="b")
        driver.retrieve(TOKENS, request_id="a")
        assert driver.leased == 3
        driver.retrieve(TOKENS, request_id="b")
        assert driver.leased == 0

    @pytest.mark.parametrize("skip", [-1, -8])
    def test_it_uses_them_up_even_if_it_is_refused(self, driver: Driver, stored: list[Piece], skip: int) -> None:
        driver.lookup(TOKENS)
        assert driver.retrieve(TOKENS, skip=skip) == FAILED
        assert driver.leased == 0

    def test_it_uses_them_up_even_if_a_chunk_is_missing(self, driver: Driver, stored: list[Piece]) -> None:
        driver.lookup(TOKENS)
        assert driver.retrieve([*TOKENS, *range(900, 916)]) == FAILED
        assert driver.leased == 0

    def test_it_uses_up_those_of_its_own_range_only(self, driver: Driver, stored: list[Piece]) -> None:
        driver.lookup(TOKENS)
        driver.retrieve(TOKENS, start=32)
        assert driver.leased == 2

    def test_without_a_lookup_what_is_there_is_served(self, driver: Driver, stored: list[Piece]) -> None:
        assert driver.retrieve(TOKENS, request_id="never looked up") == DONE
        assert driver.leased == 0

    def test_while_it_runs_its_objects_cannot_be_evicted(self) -> None:
        driver = Driver(slots=3)
        driver.register()
        driver.store(TOKENS)
        driver.working = False
        uid = driver.start(m.Retrieve(key(TOKENS, worker_id=0), 1, [[1, 2, 3, 4, 5, 6]], HANDLE, 0))
        driver.end()
        full = driver.start(m.Store(key(range(100, 116), worker_id=0), 1, [[1, 2]], HANDLE))
        assert driver.replies[full] == DONE
        assert driver.report().l1.refused_objects == 1
        driver.work()
        assert driver.replies[uid] == DONE

    def test_one_whose_copy_was_slow_and_good_is_good(self, driver: Driver, stored: list[Piece]) -> None:
        """The copier stops by itself at the deadline; what it has finished was in time."""
        driver.working = False
        uid = driver.start(m.Retrieve(key(TOKENS, worker_id=0), 1, [[1, 2, 3, 4, 5, 6]], HANDLE, 0))
        driver.now += 60
        driver.work()
        assert driver.replies[uid] == DONE

    @pytest.mark.parametrize(("waited", "answer"), [(10.0, DONE), (10.1, FAILED)])
    def test_one_that_waited_too_long_is_refused(
        self, driver: Driver, stored: list[Piece], waited: float, answer: list[Any]
    ) -> None:
        driver.now = 100.0
        assert driver.retrieve(TOKENS, waited=waited) == answer
        assert driver.leased == 0

    def test_a_failed_one_leaves_the_suffix_to_go_first(self) -> None:
        driver = Driver(slots=3)
        driver.register()
        driver.store(TOKENS)
        assert driver.retrieve([*TOKENS, *range(900, 916)], start=16) == FAILED
        driver.store(range(100, 116))
        assert driver.lookup(TOKENS) == 2

    def test_another_worker_of_the_same_layout_may_retrieve(self, driver: Driver, stored: list[Piece]) -> None:
        driver.register(2, [cpu_tensor([30, 2, 8, 8], shm_name="/else")] * 2)
        assert driver.retrieve(TOKENS, 2) == DONE

    def test_the_engines_own_copies_are_another_mode(self, driver: Driver, stored: list[Piece]) -> None:
        driver.ask(register_engine_driven(2))
        assert driver.retrieve(TOKENS, 2) == FAILED
        assert driver.store(TOKENS, 2) == FAILED
        assert "worker 2 copies by itself" in driver.warnings[-1]


class TestLostMemory:
    @pytest.fixture
    def uid(self, driver: Driver) -> bytes:
        """A store whose worker's memory is gone."""
        driver.working = False
        uid = driver.start(m.Store(key(TOKENS, worker_id=0), 1, [[1, 2, 3, 4, 5, 6]], HANDLE))
        job = driver.pending.pop()
        assert isinstance(job, Copy)
        effects = driver.handle(CopyEnded(driver.now, job.job_id, "cut short", lost_mapping=job.mapping_id))
        assert [effect.text for effect in effects if isinstance(effect, Warn)] == [
            "worker 1 of 'm' is broken: cut short"
        ]
        driver.working = True
        return uid

    def test_nothing_is_published_and_the_worker_is_broken(self, driver: Driver, uid: bytes) -> None:
        assert driver.replies[uid] == FAILED
        [worker] = driver.report().workers
        assert (worker.state, worker.problem) == ("broken", "cut short")
        assert driver.lookup(TOKENS) == 0
        assert (driver.reserved, driver.report().l1.memory_used_bytes) == (0, 0)

    def test_it_can_register_again(self, driver: Driver, uid: bytes) -> None:
        driver.register()
        assert driver.store(TOKENS) == DONE
        assert driver.lookup(TOKENS) == 3


def test_copies_of_one_worker_that_pile_up_are_refused_and_others_served(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.copies._MOST_COPIES", 2)
    driver.register(2)
    driver.working = False
    for start in (0, 16):
        driver.start(m.Store(key(TOKENS, start, start + 16, worker_id=0), 1, [[1, 2]], HANDLE))
    assert driver.ask(m.Store(key(TOKENS, 32, worker_id=0), 1, [[1, 2]], HANDLE)) == FAILED
    other = driver.start(m.Store(key(TOKENS, 32, worker_id=0), 2, [[1, 2]], HANDLE))
    driver.work()
    assert driver.replies[other] == DONE
    driver.working = True
    assert driver.store(TOKENS, 1) == DONE
