"""`TierGroup`: tiers come and go while the engine runs; what asks for one that is not there is answered."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from engine.errors import StartError, TierError
from engine.events import Find, Found, L1Slot, Load, Loaded, Save, Saved
from engine.l2 import group as group_module
from engine.l2 import memory_l2
from engine.l2.base import L2Adapter
from engine.l2.faults import FaultyAdapter
from engine.l2.group import TierGroup
from engine.l2.tasks import STALE_SECONDS
from engine.settings import L2Settings, PrefetchSettings, ScrubSettings
from tests.support.polling import until
from tests.unit.engine.l2.tiers import DOWN, SIZE, SPACE, Held, key
from tests.unit.engine.support import FakeClock

FAST, SLOW = L2Settings("memory", "fast"), L2Settings("memory", "slow")


class Fixture:
    """A group whose adapters a test can reach by the names of their tiers."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.events: list[Any] = []
        self.adapters: dict[str, Held] = {}
        self.broken: set[str] = set()
        """Names of tiers whose storage cannot be opened."""
        self.group = TierGroup(self._make, memoryview(bytearray(4 * SIZE)), self.events.append, self.clock)

    def _make(self, settings: L2Settings) -> L2Adapter:
        if settings.type == "unknown":
            raise StartError("there is no such adapter")

        def plan(call: str, names: object) -> Any:
            return DOWN if call == "open" and settings.name in self.broken else None

        self.adapters[settings.name] = Held(FaultyAdapter(memory_l2.Adapter(), plan))
        return self.adapters[settings.name]

    def attach(self, *settings: L2Settings) -> list[str]:
        """Returns the names of what is left over, which ends."""
        left = self.group.attach(settings)
        for tier in left:
            assert tier.stop(20) == []
        for tier in self.group.tiers:
            if tier.settings.name not in self.broken:
                assert tier.await_open(20) is None
        return [tier.settings.name for tier in left]

    def answer(self, effect: Find | Load | Save) -> Any:
        self.group.submit(effect)
        until(lambda: [event for event in self.events if event.ticket == effect.ticket], "the answer")
        (event,) = [event for event in self.events if event.ticket == effect.ticket]
        return event

    def slot(self) -> L1Slot:
        return L1Slot(key(1), SPACE, 0, SIZE)


@pytest.fixture
def made() -> Iterator[Fixture]:
    fixture = Fixture()
    yield fixture
    for adapter in fixture.adapters.values():
        adapter.let_go()
    assert fixture.group.stop() == []


def names(group: TierGroup) -> list[str]:
    return [tier.settings.name for tier in group.tiers]


def threads(name: str) -> int:
    return sum(thread.name.startswith(f"l2-{name}-") for thread in threading.enumerate())


def test_tiers_are_attached_in_their_order_and_found_by_name(made: Fixture) -> None:
    assert made.attach(FAST, SLOW) == []
    assert names(made.group) == ["fast", "slow"]
    assert made.group.get("slow").settings is SLOW
    with pytest.raises(TierError, match="no L2 tier 'other'; there are: fast, slow"):
        made.group.get("other")
    assert set(made.group.reports()) == {"fast", "slow"}


def test_what_is_asked_of_a_tier_is_done_by_that_tier(made: Fixture) -> None:
    made.attach(FAST, SLOW)
    assert made.answer(Save("slow", 1, made.slot())).outcome == "done"
    assert made.answer(Find("slow", 2, (key(1),))).present == (True,)
    assert made.answer(Find("fast", 3, (key(1),))).present == (False,)
    assert made.answer(Load("slow", 4, made.slot())).outcome == "done"


def test_what_is_asked_of_a_tier_that_is_not_there_is_answered_at_once(made: Fixture) -> None:
    for effect in (Find("x", 1, (key(1), key(2))), Load("x", 2, made.slot()), Save("x", 3, made.slot())):
        made.group.submit(effect)
    now = made.clock.now
    assert made.events == [Found(now, 1, (False, False)), Loaded(now, 2, "unavailable"), Saved(now, 3, "unavailable")]


def test_a_tier_that_stays_the_same_goes_on(made: Fixture) -> None:
    made.attach(FAST, SLOW)
    slow = made.group.get("slow")
    assert made.attach(SLOW, L2Settings("memory", "third")) == ["fast"]
    assert names(made.group) == ["slow", "third"]
    assert made.group.get("slow") is slow
    assert threads("fast") == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"store_policy": "write_back"},
        {"selective_uses": 9},
        {"promote": False},
        {"prefetch": PrefetchSettings("wait")},
        {"required": True},
        {"scrub": ScrubSettings(enabled=True)},
    ],
    ids=str,
)
def test_what_is_no_business_of_its_threads_changes_without_them(made: Fixture, changes: dict[str, Any]) -> None:
    made.attach(FAST)
    tier, new = made.group.get("fast"), replace(FAST, **changes)
    assert made.attach(new) == []
    assert made.group.get("fast") is tier
    assert tier.settings is new


@pytest.mark.parametrize("changes", [{"options": {"capacity": 10 * SIZE}}, {"threads": 1}], ids=str)
def test_another_adapter_under_the_same_name_takes_its_place(made: Fixture, changes: dict[str, Any]) -> None:
    made.attach(FAST)
    tier = made.group.get("fast")
    assert made.attach(replace(FAST, **changes)) == ["fast"]
    assert made.group.get("fast") is not tier
    assert made.answer(Save("fast", 1, made.slot())).outcome == "done"


@pytest.mark.parametrize(("changes", "stays"), [({"threads": 1}, True), ({"options": {"capacity": 10 * SIZE}}, False)])
def test_a_paused_tier_stays_paused_where_the_engine_takes_it_for_the_same(
    made: Fixture, changes: dict[str, Any], stays: bool
) -> None:
    made.attach(FAST)
    assert not made.group.get("fast").is_paused
    made.group.get("fast").is_paused = True
    made.attach(replace(FAST, **changes))
    assert made.group.get("fast").is_paused is stays


def test_when_a_tier_cannot_be_made_nothing_has_changed(made: Fixture) -> None:
    made.attach(FAST)
    tier = made.group.get("fast")
    with pytest.raises(StartError, match="no such adapter"):
        made.attach(replace(FAST, required=True), SLOW, L2Settings("unknown", "third"))
    assert (names(made.group), made.group.get("fast"), tier.settings) == (["fast"], tier, FAST)
    assert threads("slow") == 0


def test_a_required_tier_that_is_not_reached_is_refused_and_says_why(
    made: Fixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group_module, "OPEN_SECONDS", 0.05)
    made.broken.add("slow")
    with pytest.raises(StartError, match=r"'slow' is required and could not be opened .*: .*; mend that"):
        made.attach(FAST, replace(SLOW, required=True))
    assert names(made.group) == []
    assert (threads("fast"), threads("slow")) == (0, 0)


def test_a_tier_that_is_not_required_may_come_later(made: Fixture) -> None:
    made.broken.add("slow")
    made.attach(FAST, SLOW)
    assert made.answer(Find("slow", 1, (key(1),))).present == (False,)
    made.broken.clear()
    assert made.group.get("slow").await_open(20) is None


def test_what_waits_too_long_in_any_tier_is_given_up(made: Fixture) -> None:
    made.attach(*(replace(each, threads=1) for each in (FAST, SLOW)))
    for number, name in enumerate(("fast", "slow")):
        made.adapters[name].hold("contains")
        for ticket in (number, 10 + number):
            made.group.submit(Find(name, ticket, (key(1),)))
        until(lambda name=name: made.adapters[name].arrived, "the first question")  # type: ignore[misc]
    made.group.expire(made.clock.now + STALE_SECONDS + 1)
    assert sorted(event.ticket for event in made.events) == [10, 11]


def test_a_stop_names_the_threads_that_do_not_end(made: Fixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group_module, "_STOP_SECONDS", 0.05)
    made.attach(replace(FAST, threads=1), SLOW)
    stick(made, "fast")
    assert sorted(made.group.stop()) == ["l2-fast-keeper", "l2-fast-r0"]


def test_a_stop_tells_all_tiers_before_it_waits_for_one(made: Fixture) -> None:
    made.attach(FAST, SLOW)
    stick(made, "fast")
    with ThreadPoolExecutor(1) as pool:
        stopping = pool.submit(made.group.stop)
        until(lambda: threads("slow") == 0, "the idle tier to end while the other one is stuck")
        assert threads("fast")
        made.adapters["fast"].let_go()
        assert stopping.result(20) == []


def stick(made: Fixture, name: str) -> None:
    """Somebody asks the tier something, and it does not answer."""
    made.adapters[name].hold("contains")
    made.group.submit(Find(name, 1, (key(1),)))
    until(lambda: made.adapters[name].arrived, "the question")
