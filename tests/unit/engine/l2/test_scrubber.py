"""The scrubber of a tier: what is not what was stored is put aside, nothing else is, and nobody waits for it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from engine.errors import TierError
from engine.events import TierDamaged
from engine.l2 import filesystem_l2
from engine.l2.base import L2Adapter, Stored, UnavailableError
from engine.l2.breaker import FAILURES
from engine.l2.envelope import HEADER_BYTES
from engine.l2.faults import Fault, Flipped, Raised, Truncated
from engine.l2.metering import Metering
from engine.l2.objects import Bench as Shared
from engine.l2.objects import Quarantine, object_name
from engine.l2.scrub_plan import FIRST_PASS_SECONDS, LONGEST_WAIT
from engine.l2.scrubber import Scrubber
from engine.l2.tier import L2Tier
from engine.settings import MIB, ScrubSettings
from engine.status import ScrubCounts, ScrubReport
from engine.supervision import SupervisedThread, Supervisor
from tests.support.polling import until
from tests.unit.engine.l2.tiers import DOWN, SIZE, Bench, benches, key
from tests.unit.engine.support import FakeClock

OBJECT = HEADER_BYTES + SIZE


@pytest.fixture
def make() -> Iterator[Callable[..., Bench]]:
    with benches() as made:
        yield made


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def bench(make: Callable[..., Bench], clock: FakeClock) -> Bench:
    """A tier with the objects 0 to 7."""
    made = make(clock)
    made.open()
    made.save(*range(8))
    return made


def name(number: int) -> str:
    return object_name(key(number))


def report(bench: Bench) -> ScrubReport:
    return bench.tier.report().scrub


def scrubbed(bench: Bench) -> ScrubCounts:
    """Has one pass made, and says what it found."""
    before = report(bench).passes
    bench.tier.scrub()
    until(lambda: report(bench).passes == before + 1, "the end of the pass")
    return report(bench).latest


def damaged(bench: Bench) -> list[bytes]:
    """The keys that the engine was told of."""
    return [event.key for event in list(bench.events) if isinstance(event, TierDamaged)]


class TestFinding:
    def test_where_all_is_well_nothing_is_put_aside(self, bench: Bench) -> None:
        assert scrubbed(bench) == ScrubCounts(objects=8, bytes=8 * OBJECT)
        assert bench.find(*range(8)) == (True,) * 8
        assert damaged(bench) == []

    @pytest.mark.parametrize(
        "harm",
        [
            lambda content, other: Flipped(0).harm(content),
            lambda content, other: Flipped(HEADER_BYTES - 1, 7).harm(content),
            lambda content, other: Flipped(HEADER_BYTES).harm(content),
            lambda content, other: Flipped(-1, 3).harm(content),
            lambda content, other: content[:-1],
            lambda content, other: content[:HEADER_BYTES],
            lambda content, other: content[: HEADER_BYTES - 1],
            lambda content, other: b"",
            lambda content, other: content + b"\0",
            lambda content, other: os.urandom(len(content)),
            lambda content, other: other,
        ],
        ids=["magic", "header", "payload", "end", "cut", "no payload", "short", "empty", "long", "foreign", "swapped"],
    )
    def test_what_is_not_what_was_stored_is_put_aside_before_anybody_wants_it(
        self, bench: Bench, harm: Callable[[bytes, bytes], bytes]
    ) -> None:
        objects = bench.memory._objects
        objects[name(3)] = harm(objects[name(3)], objects[name(4)])
        found = scrubbed(bench)
        assert (found.objects, found.damaged, found.skipped) == (8, 1, 0)
        assert bench.find(2, 3, 4) == (True, False, True)
        assert damaged(bench) == [key(3)]
        assert name(3) in objects  # as a load leaves it

    def test_what_was_put_aside_is_counted_by_each_pass_and_told_of_once(self, bench: Bench) -> None:
        bench.memory._objects[name(3)] = b"rot"
        assert [scrubbed(bench).damaged for _ in range(2)] == [1, 1]
        assert report(bench).total.damaged == 2
        assert damaged(bench) == [key(3)]

    def test_saved_again_it_is_found_again_and_the_next_pass_is_clean(self, bench: Bench) -> None:
        bench.memory._objects[name(3)] = b"rot"
        scrubbed(bench)
        bench.save(3)
        assert bench.find(3) == (True,)
        assert scrubbed(bench).damaged == 0

    def test_what_another_server_has_written_anew_is_found_again(self, bench: Bench) -> None:
        good = bench.memory._objects[name(3)]
        bench.memory._objects[name(3)] = b"rot"
        scrubbed(bench)
        assert bench.find(3) == (False,)
        bench.memory._objects[name(3)] = good
        assert scrubbed(bench).damaged == 0
        assert bench.find(3) == (True,)

    def test_what_has_no_name_of_ours_or_is_too_large_is_passed_over(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        bench.memory._objects["notes"] = b"of somebody"
        bench.memory._objects["abcd"] = b"of somebody"
        bench.memory._objects[name(9)] = b"x"
        scan = bench.memory.scan
        sizes = {name(9): 1 << 40}
        monkeypatch.setattr(bench.memory, "scan", lambda: (Stored(n, sizes.get(n, s)) for n, s in scan()))
        found = scrubbed(bench)
        assert (found.objects, found.damaged, found.skipped) == (8, 0, 3)

    def test_it_is_no_use_of_the_objects(self, bench: Bench) -> None:
        before = list(bench.memory._objects)
        place = memoryview(bytearray(OBJECT))
        for each in before:
            bench.memory.inspect(each, [place], lambda piece: None)
        assert list(bench.memory._objects) == before


class TestReplacements:
    """Objects come, go and change while they are checked."""

    def test_what_was_replaced_between_two_looks_is_not_put_aside(self, bench: Bench) -> None:
        good = bench.memory._objects[name(3)]
        bench.memory._objects[name(3)] = b"rot"

        def mend(call: str, names: Any) -> Fault | None:
            # The scrubber has seen the size at the scan; by its first look the object is a good one of another size.
            if call == "read_into" and list(names) == [name(3)]:
                bench.memory._objects[name(3)] = good
            return None

        bench.faulty.plan = mend
        assert scrubbed(bench) == ScrubCounts(objects=8, bytes=8 * OBJECT)
        assert bench.find(3) == (True,)
        assert damaged(bench) == []

    def test_a_save_between_the_two_looks_wins(self, bench: Bench) -> None:
        reads: list[str] = []
        harmed = Flipped(-1)

        def once(call: str, names: Any) -> Fault | None:
            if call != "read_into" or list(names) != [name(3)]:
                return None
            reads.append(call)
            return harmed if len(reads) == 1 else None

        bench.faulty.plan = once
        assert scrubbed(bench).damaged == 0
        assert len(reads) == 2
        assert bench.find(3) == (True,)

    @pytest.mark.parametrize("looks", [1, 2])
    def test_what_vanishes_is_no_damage(self, bench: Bench, looks: int) -> None:
        bench.memory._objects[name(3)] = b"rot"
        reads: list[str] = []

        def vanish(call: str, names: Any) -> Fault | None:
            if call == "read_into" and list(names) == [name(3)]:
                reads.append(call)
                if len(reads) == looks:
                    bench.memory.delete([name(3)])
            return None

        bench.faulty.plan = vanish
        assert scrubbed(bench) == ScrubCounts(objects=7, bytes=7 * OBJECT)
        assert name(3) not in bench.tier._quarantine
        assert damaged(bench) == []

    def test_one_that_cannot_be_looked_at_twice_is_not_put_aside(self, bench: Bench, clock: FakeClock) -> None:
        bench.memory._objects[name(3)] = bench.memory._objects[name(3)][:-1]
        reads: list[str] = []

        def fail(call: str, names: Any) -> Fault | None:
            if call != "read_into" or list(names) != [name(3)]:
                return None
            reads.append(call)
            return DOWN if len(reads) % 2 == 0 else None

        bench.faulty.plan = fail
        bench.tier.scrub()
        finish(bench, clock)
        assert report(bench).latest == ScrubCounts(7, 7 * OBJECT, 0, 1)
        assert name(3) not in bench.tier._quarantine


def finish(bench: Bench, clock: FakeClock) -> None:
    """Lets time pass until the pass under way has ended."""

    def over() -> bool:
        clock.now += LONGEST_WAIT
        wake(bench)
        return not report(bench).is_running

    until(over, "the end of the pass")


class TestCourse:
    def test_one_pass_at_a_time(self, bench: Bench) -> None:
        bench.held.hold("read_into")
        bench.tier.scrub()
        with pytest.raises(TierError, match="the tier t is busy with a scrub"):
            bench.tier.scrub()
        assert report(bench).is_running
        bench.held.let_go()
        until(lambda: not report(bench).is_running, "the end of the pass")

    def test_other_work_does_not_wait_for_it(self, bench: Bench) -> None:
        bench.held.hold("read_into")
        bench.tier.scrub()
        bench.wait_for_calls(1)
        bench.tier.clear()
        until(lambda: bench.tier.report().work is None, "the end of the clear")
        assert bench.find(*range(8)) == (False,) * 8
        bench.held.let_go()
        until(lambda: report(bench).passes == 1, "the end of the pass")
        assert report(bench).latest.damaged == 0

    def test_a_tier_that_is_not_open_cannot_be_scrubbed(self, make: Callable[..., Bench]) -> None:
        bench = make()
        bench.fail("open")
        bench.tier.start()
        until(lambda: bench.tier.problem() == "the cable is cut", "the first attempt to open it")
        with pytest.raises(TierError, match="the tier t is not open: the cable is cut"):
            bench.tier.scrub()

    def test_it_comes_by_itself_when_it_is_switched_on_and_not_without(self, bench: Bench, clock: FakeClock) -> None:
        bench.tier.settings = replace(bench.tier.settings, scrub=ScrubSettings(enabled=True, every_hours=1))
        rounds(bench)
        clock.now += FIRST_PASS_SECONDS
        until(lambda: wake(bench) and report(bench).passes == 1, "the first pass")
        clock.now += 3600
        until(lambda: wake(bench) and report(bench).passes == 2, "the second pass")
        bench.tier.settings = replace(bench.tier.settings, scrub=ScrubSettings(enabled=False))
        rounds(bench)
        clock.now += 1e6
        rounds(bench)
        assert not report(bench).is_running

    def test_its_age_is_told(self, bench: Bench, clock: FakeClock) -> None:
        assert (report(bench).begun_age_seconds, report(bench).ended_age_seconds) == (None, None)
        scrubbed(bench)
        clock.now += 61.5
        assert (report(bench).begun_age_seconds, report(bench).ended_age_seconds) == (61, 61)

    def test_it_keeps_to_its_rate(self, bench: Bench, clock: FakeClock) -> None:
        bench.tier.settings = replace(bench.tier.settings, scrub=ScrubSettings(rate=MIB))
        bench.tier.scrub()
        until(lambda: report(bench).latest.objects == 1, "the first object")
        rounds(bench)
        assert report(bench).latest.objects == 1  # the clock stands still: there is nothing to read yet
        clock.now += OBJECT / MIB
        until(lambda: wake(bench) and report(bench).latest.objects == 2, "the second object")

    @pytest.mark.parametrize(
        ("reason", "stop", "go"),
        [
            ("pause", lambda tier: setattr(tier, "is_paused", True), lambda tier: setattr(tier, "is_paused", False)),
            ("storage", lambda tier: fail_reads(tier), lambda tier: tier._reading.succeeded()),
        ],
    )
    def test_it_waits_and_goes_on_where_it_was(
        self, bench: Bench, reason: str, stop: Callable[[L2Tier], object], go: Callable[[L2Tier], object]
    ) -> None:
        bench.held.hold("read_into")
        bench.tier.scrub()
        bench.wait_for_calls(1)
        stop(bench.tier)
        bench.held.let_go()
        until(lambda: report(bench).held_by == reason and report(bench).latest.objects == 1, "it is held up")
        rounds(bench)
        assert report(bench).latest.objects == 1
        go(bench.tier)
        until(lambda: report(bench).passes == 1, "the end of the pass")
        assert report(bench).latest.objects == 8

    def test_it_waits_while_loads_wait_for_a_thread(self, bench: Bench) -> None:
        bench.held.hold("read_into")
        tickets = [bench.begin_load(number, 8 + number) for number in range(6)]
        bench.wait_for_calls(4)
        bench.tier.scrub()
        until(lambda: report(bench).held_by == "loads", "it is held up")
        rounds(bench)
        assert len(bench.held.arrived) == 4
        bench.held.let_go()
        until(lambda: report(bench).passes == 1, "the end of the pass")
        assert all(bench.answers(ticket) for ticket in tickets)

    def test_a_scan_that_breaks_off_goes_on_where_it_was(
        self, bench: Bench, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        scan, read = bench.memory.scan, []

        def breaking() -> Iterator[Stored]:
            for number, stored in enumerate(scan()):
                if number == 5 and len(read) == 5:
                    raise UnavailableError("the cable is cut")
                yield stored

        monkeypatch.setattr(bench.memory, "scan", breaking)
        bench.faulty.plan = lambda call, names: read.extend(names) if call == "read_into" else None  # type: ignore[func-returns-value]
        bench.tier.scrub()
        until(lambda: len(read) == 5, "five objects")
        read.append("")
        finish(bench, clock)
        assert report(bench).latest == ScrubCounts(objects=8, bytes=8 * OBJECT)
        assert len(read) == 9

    @pytest.mark.parametrize("error", [UnavailableError("the cable is cut"), ValueError("a bug")], ids=str)
    def test_what_cannot_be_read_is_passed_over_in_the_end(
        self, bench: Bench, clock: FakeClock, error: Exception
    ) -> None:
        bad = Raised(error)
        bench.faulty.plan = lambda call, names: bad if call == "read_into" and list(names) == [name(3)] else None
        bench.tier.scrub()
        finish(bench, clock)
        assert report(bench).latest == ScrubCounts(objects=7, bytes=7 * OBJECT, skipped=1)
        assert bench.find(3) == (True,)
        assert bench.tier.problem() is None

    def test_it_does_not_count_as_a_failure_of_the_storage(self, bench: Bench, clock: FakeClock) -> None:
        """One place of a disk that cannot be read must not keep loads from all others."""
        bench.fail("read_into")
        bench.tier.scrub()
        finish(bench, clock)
        assert report(bench).latest.skipped == 8
        assert bench.tier.problem() is None

    def test_a_stop_ends_it_at_once(self, bench: Bench) -> None:
        bench.tier.settings = replace(bench.tier.settings, scrub=ScrubSettings(rate=MIB))
        bench.tier.scrub()
        until(lambda: report(bench).latest.objects == 1, "the first object")
        assert bench.tier.stop(20) == []


def fail_reads(tier: L2Tier) -> None:
    for _ in range(FAILURES):
        tier._reading.failed(tier._clock(), "the cable is cut")


def wake(bench: Bench) -> bool:
    """Has the scrubber look at the time."""
    bench.tier._scrubber._wake.set()
    return True


def rounds(bench: Bench) -> None:
    """Waits until the scrubber has looked around twice."""
    for _ in range(2):
        bench.tier._scrubber._wake.set()
        until(lambda: not bench.tier._scrubber._wake.is_set(), "a look of the scrubber")


class TestOnDisk:
    """With the adapter of folders itself."""

    @pytest.fixture
    def adapter(self, tmp_path: Path) -> filesystem_l2.Adapter:
        made = filesystem_l2.Adapter(path=str(tmp_path / "kv"), keep_free=0)
        made.open([])
        return made

    @pytest.fixture
    def files(self, adapter: filesystem_l2.Adapter, bench: Bench, tmp_path: Path) -> dict[int, Path]:
        """The objects 0 to 7 of the other tier, in files."""
        for each, content in bench.memory._objects.items():
            adapter.write(each, [memoryview(content)])
        return {number: next((tmp_path / "kv").glob(f"?/?/{name(number)}")) for number in range(8)}

    def scrub(self, adapter: L2Adapter) -> tuple[ScrubCounts, Quarantine]:
        """A pass without threads: `run` ends behind it."""
        quarantine, clock = Quarantine(), FakeClock()
        shared = Shared("t", memoryview(b""), lambda event: None, clock, Metering(), quarantine)
        scrubber = Scrubber(shared, ScrubSettings, lambda: scrubber.stop() if scrubber._passes else None)
        scrubber.begin()
        scrubber.run(adapter, SupervisedThread(Supervisor(), "scrubber", partial(scrubber.run, adapter)))
        return scrubber.report().latest, quarantine

    def test_rot_of_any_kind_is_found_and_nothing_else(
        self, adapter: filesystem_l2.Adapter, files: dict[int, Path]
    ) -> None:
        one, two = files[1].read_bytes(), files[2].read_bytes()
        files[1].write_bytes(two)
        files[2].write_bytes(one)
        files[3].write_bytes(files[3].read_bytes()[:-1])
        with files[4].open("r+b") as file:
            file.seek(HEADER_BYTES + 17)
            byte = file.read(1)[0]
            file.seek(HEADER_BYTES + 17)
            file.write(bytes([byte ^ 4]))
        found, quarantine = self.scrub(adapter)
        assert (found.objects, found.damaged) == (8, 4)
        assert [number for number in range(8) if name(number) in quarantine] == [1, 2, 3, 4]

    def test_it_is_no_use_of_the_objects(self, adapter: filesystem_l2.Adapter, files: dict[int, Path]) -> None:
        for file in files.values():
            os.utime(file, (1000, 1000))
        assert self.scrub(adapter)[0].objects == 8
        assert {file.stat().st_mtime for file in files.values()} == {1000}

    def test_whole_pages_are_read_past_the_page_cache(
        self, adapter: filesystem_l2.Adapter, files: dict[int, Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        direct: list[int] = []
        monkeypatch.setattr(filesystem_l2, "make_direct", direct.append)
        self.scrub(adapter)
        assert len(direct) == 8
        adapter.read_into(name(1), [memoryview(bytearray(OBJECT))])
        assert len(direct) == 8

    def test_what_may_not_be_read_is_passed_over(self, adapter: filesystem_l2.Adapter, files: dict[int, Path]) -> None:
        if os.geteuid() == 0:
            pytest.skip("root may read everything")
        files[5].chmod(0)
        found, quarantine = self.scrub(adapter)
        assert (found.objects, found.skipped) == (7, 1)
        assert name(5) not in quarantine


def test_its_memory_is_given_back_after_a_pass(bench: Bench) -> None:
    scrubbed(bench)
    until(lambda: bench.tier._scrubber._scan is None, "the pass is over")
    assert not any(bench.tier._scrubber.memory[:OBJECT])


def test_truncated_reads_are_not_hashed_as_if_they_were_whole(bench: Bench) -> None:
    bench.plan = {"read_into": Truncated(HEADER_BYTES)}
    assert scrubbed(bench).damaged == 8
