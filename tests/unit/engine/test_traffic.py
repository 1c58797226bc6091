"""A chunk of a request is noted once: where its lookup finds it, or else where it is stored first."""

from __future__ import annotations

from itertools import chain

import pytest

from engine.traffic import References
from engine.wire import messages as m
from tests.unit.engine.driver import SLOT, Driver
from tests.unit.engine.support import key, register_engine_driven

CHUNKS = 4
PROMPT = list(chain.from_iterable([chunk] * 16 for chunk in range(CHUNKS)))


@pytest.fixture
def driver() -> Driver:
    made = Driver()
    made.register()
    made.traffic.references.is_open = True
    return made


def noted(driver: Driver) -> list[References]:
    found = []
    while (note := driver.traffic.references.take()) is not None:
        found.append(note)
    return found


def ranges(driver: Driver) -> list[tuple[int, int, int, int]]:
    """Of each note: from which chunk, to which, up to which of them asked for, and how many a lookup asked for."""
    return [(each.first, len(each.keys[:: each.step]), each.counted, each.asked) for each in noted(driver)]


def store(driver: Driver, prompt: list[int], first: int, end: int, **more: object) -> None:
    driver.store(prompt, start=16 * first, end=16 * end, **more)


def test_nothing_is_noted_while_nobody_reads(driver: Driver) -> None:
    driver.traffic.references.is_open = False
    driver.lookup(PROMPT)
    driver.store(PROMPT)
    assert noted(driver) == []


def test_a_lookup_notes_what_it_finds_and_how_much_it_asks_for(driver: Driver) -> None:
    store(driver, PROMPT, 0, 2)
    noted(driver)
    assert driver.lookup(PROMPT) == 2
    assert ranges(driver) == [(0, 2, 2, CHUNKS)]


def test_what_a_lookup_missed_is_noted_where_it_is_stored(driver: Driver) -> None:
    driver.lookup(PROMPT)
    store(driver, PROMPT, 0, 3)
    store(driver, PROMPT, 3, CHUNKS)
    assert ranges(driver) == [(0, 0, 0, CHUNKS), (0, 3, 3, 0), (3, CHUNKS, CHUNKS, 0)]


def test_a_second_store_of_the_same_request_notes_only_what_is_new(driver: Driver) -> None:
    driver.lookup(PROMPT)
    store(driver, PROMPT, 0, 3)
    store(driver, PROMPT, 0, CHUNKS)
    store(driver, PROMPT, 0, CHUNKS)
    assert ranges(driver)[1:] == [(0, 3, 3, 0), (3, CHUNKS, CHUNKS, 0)]


def test_another_request_of_the_same_prompt_is_noted_again(driver: Driver) -> None:
    for request_id in ("one", "two"):
        driver.lookup(PROMPT, request_id=request_id)
    for request_id in ("one", "two"):
        driver.store(PROMPT, request_id=request_id)
    assert ranges(driver)[2:] == [(0, CHUNKS, CHUNKS, 0)] * 2


def test_what_was_generated_is_stored_and_was_not_asked_for(driver: Driver) -> None:
    driver.lookup(PROMPT[: 16 * 3])
    driver.store(PROMPT)
    assert ranges(driver) == [(0, 0, 0, 3), (0, CHUNKS, 3, 0)]


def test_what_nobody_looked_up_was_not_asked_for(driver: Driver) -> None:
    driver.store(PROMPT)
    assert ranges(driver) == [(0, CHUNKS, 0, 0)]


def test_stores_count_after_the_request_has_ended(driver: Driver) -> None:
    driver.lookup(PROMPT)
    driver.end()
    driver.store(PROMPT)
    assert ranges(driver)[1:] == [(0, CHUNKS, CHUNKS, 0)]


def test_shards_and_layouts_are_one_chunk(driver: Driver) -> None:
    for shard in range(2):
        driver.register(10 + shard, model_name="two", world_size=2)
    driver.lookup(PROMPT, model_name="two", world_size=2)
    for shard in range(2):
        driver.store(PROMPT, 10 + shard, model_name="two", world_size=2, worker_id=shard)
    assert ranges(driver) == [(0, 0, 0, CHUNKS), (0, CHUNKS, CHUNKS, 0)]
    driver.lookup(PROMPT, model_name="two", world_size=2)
    found = noted(driver)[0]
    assert len(found.keys) == 2 * CHUNKS
    assert len(found.keys[:: found.step]) == CHUNKS
    assert found.size == 2 * SLOT


def test_a_lookup_names_its_chunks_as_the_store_did(driver: Driver) -> None:
    driver.store(PROMPT)
    driver.lookup(PROMPT)
    stored, found = noted(driver)
    assert found.keys[:: found.step] == stored.keys


def test_a_clear_shows_in_the_next_note(driver: Driver) -> None:
    driver.lookup(PROMPT)
    driver.ask(m.Clear(True))
    driver.lookup(PROMPT)
    assert [note.clears for note in noted(driver)] == [0, 1]


def test_stores_of_an_engine_that_copies_are_noted_as_well(driver: Driver) -> None:
    driver.ask(register_engine_driven(2, model_name="n"))
    driver.ask(m.PrepareStore(key(PROMPT, worker_id=0, model_name="n"), 2))
    assert ranges(driver) == [(0, CHUNKS, 0, 0)]


def test_it_remembers_a_bounded_number_of_requests(driver: Driver) -> None:
    for number in range(5000):
        driver.lookup(PROMPT, request_id=str(number))
    assert len(driver.traffic._progress) == 4096
