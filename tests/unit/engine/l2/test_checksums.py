"""What L2 tells and asks of the checksums of L1's slots: they are those of its envelopes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from engine.checksum import checksum
from engine.events import Loaded, Save, Saved
from engine.l2.faults import Flipped
from tests.unit.engine.l2.tiers import Bench, benches, content


@pytest.fixture
def bench() -> Iterator[Bench]:
    with benches() as make:
        made = make()
        made.open()
        yield made


def save(bench: Bench, number: int, wanted: bytes | None) -> str:
    """Saves an object from the slot of its number, which has to have this checksum."""
    ticket = next(bench.tickets)
    bench.tier.submit(Save("t", ticket, bench.put(number, number), wanted))
    return bench.answer(ticket, Saved).outcome


def test_what_is_loaded_comes_with_the_checksum_of_its_slot(bench: Bench) -> None:
    bench.save(1)
    assert bench.answer(bench.begin_load(1, 9), Loaded).checksum == checksum(bench.bytes_in(9))


def test_what_could_not_be_loaded_has_none(bench: Bench) -> None:
    assert bench.answer(bench.begin_load(1), Loaded).checksum is None
    bench.plan = {"write": Flipped(-1)}
    bench.save(2)
    assert bench.answer(bench.begin_load(2), Loaded).checksum is None


@pytest.mark.parametrize("is_known", [True, False])
def test_what_is_as_it_was_stored_is_saved(bench: Bench, is_known: bool) -> None:
    assert save(bench, 1, checksum(content(1)) if is_known else None) == "done"
    assert bench.load(1) == "done"


def test_what_is_corrupt_never_reaches_the_storage(bench: Bench) -> None:
    assert save(bench, 1, checksum(content(2))) == "damaged"
    assert not bench.stored(1)
    assert dict(bench.tier.report().saves)["damaged"] == 1
    assert bench.tier.problem() is None


def test_what_was_saved_before_it_got_corrupt_stays(bench: Bench) -> None:
    bench.save(1)
    assert save(bench, 1, checksum(content(2))) == "damaged"
    assert bench.find(1) == (True,)
    assert bench.load(1) == "done"
