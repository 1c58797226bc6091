"""Workers come, are mapped, ping, change, leave and are given up; the rules of pings."""

from __future__ import annotations

from typing import Any

import pytest

from engine import Liveness
from engine.events import Copy, Map, Probe, Probed, TransfersEnded, Unmap
from engine.wire import messages as m
from tests.unit.engine.driver import POOL, TENSORS, Driver
from tests.unit.engine.support import cpu_tensor, group, key, packed, register, register_engine_driven

OTHERS = [cpu_tensor([9, 2, 8, 8], shm_name="/moved"), *TENSORS[1:]]
"""The same cache, the first layer elsewhere."""
POOL_REPLY = {"shm_name": POOL.shm_name, "pool_size": POOL.pool_size}
NO_POOL = {"shm_name": "", "pool_size": 0}


@pytest.fixture
def driver() -> Driver:
    return Driver()


def states(driver: Driver) -> dict[int, str]:
    return {worker.instance_id: worker.state for worker in driver.report().workers}


def ping(driver: Driver, instance_id: int | None, client: bytes = b"c") -> Any:
    return driver.ask(m.Ping(instance_id), client=client)


class TestPing:
    """False tells a client to forget what it waits for and to register again."""

    @pytest.fixture(autouse=True)
    def _started_like_every_client(self, driver: Driver) -> None:
        driver.ask(m.GetChunkSize())

    def test_a_scheduler_may_go_on(self, driver: Driver) -> None:
        assert [ping(driver, None) for _ in range(3)] == [True] * 3

    def test_a_registered_worker_may_go_on(self, driver: Driver) -> None:
        driver.register(1)
        assert [ping(driver, 1) for _ in range(3)] == [True] * 3

    def test_an_unknown_worker_is_told_so_once(self, driver: Driver) -> None:
        assert [ping(driver, 1) for _ in range(3)] == [False, True, True]
        assert ping(driver, 2) is False

    def test_after_it_has_registered_it_would_be_told_again(self, driver: Driver) -> None:
        ping(driver, 1)
        driver.register(1)
        assert ping(driver, 1) is True
        driver.ask(m.UnregisterKVCache(1))
        assert [ping(driver, 1) for _ in range(2)] == [False, True]

    def test_an_engine_driven_worker_counts_as_registered(self, driver: Driver) -> None:
        ping(driver, 1)
        driver.ask(register_engine_driven(1))
        assert ping(driver, 1) is True

    def test_a_broken_worker_may_go_on(self, driver: Driver) -> None:
        driver.register(1, [])
        assert ping(driver, 1) is True

    def test_a_connection_that_begins_with_a_ping_is_a_new_one_of_an_old_client(self, driver: Driver) -> None:
        driver.register(1)
        assert [ping(driver, None, b"new") for _ in range(2)] == [False, True]
        assert [ping(driver, 1, b"newer") for _ in range(2)] == [False, True]

    def test_an_unknown_worker_on_a_new_connection_is_told_once_and_not_twice(self, driver: Driver) -> None:
        assert [ping(driver, 1, b"new") for _ in range(2)] == [False, True]

    @pytest.mark.parametrize("message", [m.Store, m.Retrieve], ids=["store", "retrieve"])
    def test_a_worker_whose_blocks_are_being_copied_is_told_afterwards(self, driver: Driver, message: Any) -> None:
        """A client that is told drops what it waits for, and uses those blocks for something else."""
        driver.register(1)
        driver.store(range(16))
        driver.working = False
        wanted = key(range(32) if message is m.Store else range(16), worker_id=0)
        blocks = [[1, 2, 3, 4] if message is m.Store else [1, 2]]
        driver.start(message(wanted, 1, blocks, b"", *([0] if message is m.Retrieve else [])))
        driver.start(m.UnregisterKVCache(1))
        assert [ping(driver, 1, b"new") for _ in range(2)] == [True, True]
        assert ping(driver, 2, b"another") is False
        driver.work()
        assert [ping(driver, 1, b"new") for _ in range(2)] == [False, True]

    def test_a_scheduler_is_told_at_once_whatever_is_copied(self, driver: Driver) -> None:
        driver.register(1)
        driver.working = False
        driver.start(m.Store(key(range(16), worker_id=0), 1, [[1, 2]], b""))
        assert [ping(driver, None, b"new") for _ in range(2)] == [False, True]

    def test_that_can_be_switched_off(self) -> None:
        driver = Driver(liveness=Liveness(flag_reconnects=False))
        driver.register(1)
        assert ping(driver, None, b"new") is True
        assert ping(driver, 1, b"newer") is True
        assert ping(driver, 2, b"newest") is False

    def test_only_so_many_strangers_are_remembered(self, driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("engine.registration._REMEMBERED", 3)
        for stranger in (1, 2, 3, 1, 4):
            ping(driver, stranger)
        assert ping(driver, 1) is True, "it was asked for again before 4 came"
        assert ping(driver, 2) is False, "the oldest was forgotten"


class TestExpiry:
    def test_a_worker_that_pinged_is_given_up_after_two_minutes(self, driver: Driver) -> None:
        driver.register(1)
        ping(driver, 1, b"c")
        driver.tick(120)
        assert states(driver) == {1: "ready"}
        driver.tick(0.1)
        assert states(driver) == {}
        assert driver.warnings == ["worker 1 of 'm' is gone: silent too long"]

    def test_a_worker_that_never_pinged_has_an_hour(self, driver: Driver) -> None:
        driver.register(1)
        driver.tick(3600)
        assert states(driver) == {1: "ready"}
        driver.tick(0.1)
        assert states(driver) == {}

    @pytest.mark.parametrize("sign", [m.Ping(1), m.Store(key([], worker_id=0), 1, [[]], b"")], ids=["ping", "store"])
    def test_every_sign_of_life_counts(self, driver: Driver, sign: m.Message) -> None:
        driver.register(1)
        ping(driver, 1)
        driver.tick(119)
        driver.ask(sign)
        driver.tick(119)
        assert states(driver) == {1: "ready"}

    def test_only_a_ping_shortens_the_wait(self, driver: Driver) -> None:
        driver.register(1)
        driver.store(range(16))
        driver.tick(3000)
        assert states(driver) == {1: "ready"}

    def test_the_same_registration_again_is_a_sign_of_life(self, driver: Driver) -> None:
        driver.register(1)
        driver.ask(register_engine_driven(2))
        driver.tick(3000)
        driver.register(1)
        driver.ask(register_engine_driven(2))
        driver.tick(3000)
        assert states(driver) == {1: "ready", 2: "ready"}

    def test_who_is_given_up_is_unmapped_and_what_it_stored_stays(self, driver: Driver) -> None:
        driver.register(1)
        driver.store(range(32))
        driver.tick(3601)
        assert isinstance(driver.done[-1], Unmap)
        assert driver.lookup(range(32)) == 0, "nobody could retrieve it"
        driver.register(2)
        assert driver.lookup(range(32)) == 2

    def test_one_silent_worker_does_not_take_the_other_along(self, driver: Driver) -> None:
        driver.register(1)
        driver.tick(3000)
        driver.register(2)
        driver.tick(601)
        assert states(driver) == {2: "ready"}


class TestConnections:
    """A silent worker lives as long as its connection stands."""

    @pytest.fixture(autouse=True)
    def _connected(self, driver: Driver) -> None:
        driver.connected = True

    @pytest.mark.parametrize("pinged", [False, True])
    def test_who_is_connected_is_never_given_up(self, driver: Driver, pinged: bool) -> None:
        driver.register(1)
        if pinged:
            ping(driver, 1)
        for _ in range(3):
            driver.tick(10_000)
        assert states(driver) == {1: "ready"}

    def test_nothing_lent_to_it_is_taken_back(self, driver: Driver) -> None:
        driver.ask(register_engine_driven(1))
        ping(driver, 1)
        driver.ask(m.PrepareStore(key(range(16), worker_id=0), 1))
        driver.tick(10_000)
        assert driver.reserved == 1
        driver.connected = False
        driver.tick(121)
        assert (driver.reserved, driver.cache.used) == (0, 0)

    def test_who_loses_its_connection_has_its_time_from_then_on(self, driver: Driver) -> None:
        driver.register(1)
        ping(driver, 1)
        driver.tick(11)
        driver.connected = False
        driver.tick(120)
        assert states(driver) == {1: "ready"}
        driver.tick(0.1)
        assert states(driver) == {}

    def test_nobody_is_asked_after_who_has_just_spoken(self, driver: Driver) -> None:
        driver.register(1)
        driver.tick(10)
        assert driver.probes == []
        driver.tick(0.1)
        assert driver.probes == [Probe(b"c")]

    def test_the_connection_of_the_newest_message_counts(self, driver: Driver) -> None:
        driver.register(1)
        ping(driver, 1, b"new")
        driver.tick(11)
        assert driver.probes == [Probe(b"new")]

    def test_a_connection_that_was_lost_before_the_worker_spoke_through_another_is_no_matter(
        self, driver: Driver
    ) -> None:
        driver.register(1)
        ping(driver, 1, b"new")
        driver.now += 10_000
        driver.handle(Probed(driver.now, b"c", False))
        assert states(driver) == {1: "ready"}

    def test_only_who_is_gone_leaves_its_segments_to_the_server(self, driver: Driver) -> None:
        for instance in (1, 2):
            driver.register(instance)
        driver.ask(m.UnregisterKVCache(1))
        assert driver.done[-1] == Unmap(1, abandoned=False)
        driver.connected = False
        driver.tick(3601)
        assert driver.done[-1] == Unmap(2, abandoned=True)


class TestServerCopies:
    def test_a_worker_is_answered_when_its_memory_is_mapped(self) -> None:
        driver = Driver(working=False)
        uid = driver.start(register(1, TENSORS))
        assert uid not in driver.replies
        assert states(driver) == {1: "mapping"}
        driver.work()
        assert driver.replies[uid] is None
        assert states(driver) == {1: "ready"}

    def test_while_it_is_mapped_nothing_is_a_hit(self, driver: Driver) -> None:
        driver.register(1)
        driver.store(range(16))
        driver.working = False
        driver.start(register(2, TENSORS))
        assert driver.lookup(range(16)) == 0
        driver.work()
        assert driver.lookup(range(16)) == 1

    @pytest.mark.parametrize(
        "bad",
        [
            pytest.param({"bodies": []}, id="no tensors"),
            pytest.param({"bodies": TENSORS, "world_size": 0}, id="no shards"),
            pytest.param({"bodies": TENSORS, "world_size": 4097}, id="too many shards"),
            pytest.param({"bodies": TENSORS, "kv_layout": "XYZ"}, id="unknown layout"),
            pytest.param({"bodies": TENSORS, "groups": [group([0, 1], 3)]}, id="blocks that do not fit the chunk"),
        ],
    )
    def test_what_cannot_be_understood_is_a_success_and_a_broken_worker(self, driver: Driver, bad: Any) -> None:
        driver.register(1, **bad)
        [worker] = driver.report().workers
        assert (worker.state, driver.pending, driver.done) == ("broken", [], [])
        assert worker.problem
        assert driver.warnings == [f"worker 1 of 'm' is broken: {worker.problem}"]

    def test_what_cannot_be_mapped_is_a_success_and_a_broken_worker(self, driver: Driver) -> None:
        driver.problem = "no such segment"
        driver.register(1)
        [worker] = driver.report().workers
        assert (worker.state, worker.problem) == ("broken", "no such segment")
        assert "worker 1 of 'm' is broken: no such segment" in driver.warnings
        assert driver.store(range(16)) == [b"", False]

    def test_a_broken_worker_ends_the_hits_of_its_model_until_it_is_well_or_gone(self, driver: Driver) -> None:
        driver.register(1)
        driver.store(range(16))
        driver.problem = "no such segment"
        driver.register(2)
        assert driver.lookup(range(16)) == 0
        driver.problem = None
        driver.register(2)
        assert driver.lookup(range(16)) == 1
        driver.register(2, [])
        assert driver.lookup(range(16)) == 0
        driver.ask(m.UnregisterKVCache(2))
        assert driver.lookup(range(16)) == 1

    def test_the_same_again_maps_nothing(self, driver: Driver) -> None:
        driver.register(1)
        driver.register(1)
        assert [type(task) for task in driver.done] == [Map]

    def test_the_same_again_while_mapping_is_answered_with_the_first(self) -> None:
        driver = Driver(working=False)
        uids = [driver.start(register(1, TENSORS)) for _ in range(3)]
        assert [type(task) for task in driver.pending] == [Map]
        driver.work()
        assert [driver.replies[uid] for uid in uids] == [None] * 3

    def test_other_tensors_replace_the_mapping_behind_running_copies(self, driver: Driver) -> None:
        driver.register(1)
        driver.working = False
        driver.start(m.Store(key(range(16), worker_id=0), 1, [[1, 2]], b""))
        driver.start(register(1, OTHERS))
        copy, *others = driver.pending
        assert isinstance(copy, Copy)
        assert {type(task) for task in others} == {Map, Unmap}
        assert {task.mapping_id for task in others if isinstance(task, Unmap)} == {copy.mapping_id}
        driver.work()
        assert states(driver) == {1: "ready"}
        driver.working = True
        driver.store(range(100, 116))
        newest = driver.done[-1]
        assert isinstance(newest, Copy)
        assert newest.mapping_id != copy.mapping_id

    def test_another_model_is_another_registration(self, driver: Driver) -> None:
        driver.register(1)
        driver.register(1, model_name="n")
        assert [(worker.model_name, worker.state) for worker in driver.report().workers] == [("n", "ready")]

    def test_a_failure_of_a_mapping_that_was_replaced_is_nobodys(self) -> None:
        driver = Driver(working=False)
        first, second = driver.start(register(1, TENSORS)), driver.start(register(1, OTHERS))
        driver.problem = "the first is gone"
        stale = driver.pending.pop(0)
        driver.pending, kept = [stale], driver.pending
        driver.work()
        assert driver.replies[first] is None
        assert second not in driver.replies
        driver.pending, driver.problem = kept, None
        driver.work()
        assert states(driver) == {1: "ready"}

    def test_memory_that_cannot_be_opened_is_tried_again(self, driver: Driver) -> None:
        driver.problem = "no file descriptors"
        driver.register(1)
        assert states(driver) == {1: "broken"}
        tries = []
        for _ in range(200):
            before = len(driver.done)
            driver.tick(1)
            if len(driver.done) > before:
                tries.append(driver.now)
        assert tries == [1, 3, 7, 15, 31, 63, 123, 183]
        driver.problem = None
        driver.tick(60)
        assert states(driver) == {1: "ready"}
        assert driver.store(range(16)) == [b"", True]

    def test_what_was_understood_to_be_wrong_is_not_tried_again(self, driver: Driver) -> None:
        driver.register(1, [])
        driver.tick(1000)
        assert driver.done == []

    def test_a_worker_that_leaves_is_answered_behind_its_copies(self, driver: Driver) -> None:
        driver.register(1)
        driver.working = False
        stored = driver.start(m.Store(key(range(16), worker_id=0), 1, [[1, 2]], b""))
        left = driver.start(m.UnregisterKVCache(1))
        assert [type(task) for task in driver.pending] == [Copy, Unmap]
        assert driver.replies.keys().isdisjoint({stored, left})
        driver.work()
        assert list(driver.replies)[-2:] == [stored, left]

    def test_whoever_asks_again_waits_for_the_same_copies(self, driver: Driver) -> None:
        driver.register(1)
        driver.working = False
        driver.start(m.Store(key(range(16), worker_id=0), 1, [[1, 2]], b""))
        left = [driver.start(m.UnregisterKVCache(1)) for _ in range(2)]
        assert driver.replies.keys().isdisjoint(left)
        driver.work()
        assert [driver.replies[uid] for uid in left] == [None, None]
        assert driver.ask(m.UnregisterKVCache(1)) is None

    def test_who_changes_its_mode_and_leaves_waits_for_the_copies_of_the_first(self, driver: Driver) -> None:
        driver.register(1)
        driver.working = False
        driver.start(m.Store(key(range(16), worker_id=0), 1, [[1, 2]], b""))
        driver.ask(register_engine_driven(1))
        left = driver.start(m.UnregisterEngineDriven(1))
        assert left not in driver.replies
        driver.work()
        assert driver.replies[left] is None

    def test_a_worker_may_leave_while_it_is_mapped(self) -> None:
        driver = Driver(working=False)
        came, left = driver.start(register(1, TENSORS)), driver.start(m.UnregisterKVCache(1))
        driver.work()
        assert (driver.replies[came], driver.replies[left]) == (None, None)
        assert [type(task) for task in driver.done] == [Map, Unmap]
        assert states(driver) == {}

    @pytest.mark.parametrize("info", [{"sw_size_tokens": 64}, {"recurrent_state": True}])
    def test_what_is_not_supported_yet_stores_nothing_with_success(self, driver: Driver, info: Any) -> None:
        driver.register(1, groups=[group([0, 1], **info)])
        [worker] = driver.report().workers
        assert worker.state == "unsupported"
        assert driver.store(range(16)) == [b"", True]
        assert (driver.cache.used, driver.report().skipped_stores) == (0, 1)
        assert driver.lookup(range(16)) == 0
        assert driver.retrieve(range(16)) == [b"", False]
        driver.register(1, groups=[group([0, 1], **info)])
        assert driver.done == []

    def test_without_a_transfer_thread_every_worker_is_broken(self, driver: Driver) -> None:
        driver.register(1)
        driver.store(range(16))
        driver.handle(TransfersEnded(0.0, "it fell over"))
        assert states(driver) == {1: "broken"}
        assert driver.lookup(range(16)) == 0
        driver.working = False
        driver.register(2)
        assert states(driver) == {1: "broken", 2: "broken"}
        assert driver.ask(m.UnregisterKVCache(1)) is None
        assert not any(isinstance(task, Map) for task in driver.pending)


class TestEngineCopies:
    def test_a_worker_is_told_the_pool(self, driver: Driver) -> None:
        assert driver.ask(register_engine_driven(1)) == POOL_REPLY
        [worker] = driver.report().workers
        assert (worker.transfer_mode, worker.state, worker.device) == ("engine_driven", "ready", None)

    @pytest.mark.parametrize(
        "payload",
        [
            pytest.param(packed({"instance_id": 1}), id="half"),
            pytest.param(packed(7), id="no map"),
            pytest.param(b"\x81\xa1\xff\xc0", id="no UTF-8"),
            pytest.param(b"\x91" * 100_000, id="nested"),
            pytest.param(register_engine_driven(1, dtype_str="int4").payload, id="unknown dtype"),
            pytest.param(register_engine_driven(1, num_layers=0).payload, id="no layers"),
            pytest.param(register_engine_driven(1, world_size=0).payload, id="no shards"),
        ],
    )
    def test_what_cannot_be_understood_gets_no_pool(self, driver: Driver, payload: bytes) -> None:
        assert driver.ask(m.RegisterEngineDriven(payload)) == NO_POOL
        assert states(driver) == {}
        assert driver.report().failed_requests == 1

    def test_the_same_again_keeps_what_is_lent(self, driver: Driver) -> None:
        wanted = key(range(16), worker_id=0)
        driver.ask(register_engine_driven(1))
        driver.ask(m.PrepareStore(wanted, 1))
        assert driver.ask(register_engine_driven(1)) == POOL_REPLY
        assert driver.ask(m.CommitStore(wanted, 1, b"")) is True

    def test_something_else_takes_it_back(self, driver: Driver) -> None:
        driver.ask(register_engine_driven(1))
        driver.ask(m.PrepareStore(key(range(16), worker_id=0), 1))
        assert driver.reserved == 1
        assert driver.ask(register_engine_driven(1, hidden_dim_size=32)) == POOL_REPLY
        assert driver.reserved == 0
        assert driver.cache.used == 0

    def test_a_worker_may_change_its_mode(self, driver: Driver) -> None:
        driver.register(1)
        driver.ask(register_engine_driven(1))
        assert isinstance(driver.done[-1], Unmap)
        assert [worker.transfer_mode for worker in driver.report().workers] == ["engine_driven"]
        driver.register(1)
        assert [worker.transfer_mode for worker in driver.report().workers] == ["lmcache_driven"]
        assert states(driver) == {1: "ready"}
