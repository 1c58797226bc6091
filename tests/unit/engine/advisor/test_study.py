"""The study: bounded, and reset where L1 is."""

from __future__ import annotations

import pytest

from engine.advisor import study as module
from engine.advisor.report import FACTORS
from engine.prompts import Chunks
from tests.support.conversations import popular_conversations
from tests.unit.engine.advisor.traffic import CHUNK_BYTES, SPACE, Served, new_study, object_key, observe
from tests.unit.engine.support import key


def test_every_policy_and_size_is_estimated() -> None:
    estimates = new_study(100, ["lru", "fifo"]).estimates()
    assert [(each.policy, each.factor) for each in estimates] == [(p, f) for p in ("lru", "fifo") for f in FACTORS]
    assert [each.size // CHUNK_BYTES for each in estimates[:6]] == [25, 50, 100, 200, 400, 800]
    assert {each.hit_ratio for each in estimates} == {0.0}


def test_the_simulations_stay_within_their_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_OBJECTS", 2000)
    served, study = Served(1000), new_study(1000, ["lru", "arc"])
    most = 0
    for request in popular_conversations(20_000, seed=4):
        served.request(request)
        observe(study, served.notes())
        most = max(most, sum(map(len, study._miniatures.values())))
    assert 1000 < most <= 2000
    assert study.sample.rate < 0.3


def test_a_burst_waits_and_makes_the_sample_smaller_and_not_worse() -> None:
    requests = list(popular_conversations(40_000, seed=5))
    served, late, prompt = Served(1000), new_study(1000, ["lru"]), new_study(1000, ["lru"])
    for request in requests:
        served.request(request)
        for note in served.notes():
            late.read([note])
            observe(prompt, [note])
    assert late.sampled_chunks == 0
    for _ in late.simulate():
        pass
    assert late.dropped == 0 or late.dropped < 0.05 * late.sample.asked
    assert 0 < late.sample.rate < prompt.sample.rate
    for one, two in zip(late.estimates(), prompt.estimates(), strict=True):
        assert one.hit_ratio == pytest.approx(two.hit_ratio, abs=0.03)


def test_more_traffic_than_can_wait_is_dropped_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_WAITING", 1000)
    served, study = Served(1000), new_study(1000, ["lru"])
    for request in popular_conversations(20_000, seed=5):
        served.request(request)
        for note in served.notes():
            study.read([note])
    assert study._waiting_chunks <= 1000
    assert 0.5 * study.sample.asked < study.dropped < study.sample.asked


def test_the_sample_is_not_made_so_small_that_it_tells_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LATE", 0.0)
    served, study = Served(1000), new_study(1000, ["lru"])
    for request in popular_conversations(20_000, seed=5):
        served.request(request)
        observe(study, served.notes())
    assert 16 < 250 * study.sample.rate <= 32


def test_a_request_that_missed_something_hits_nothing_later() -> None:
    served, study = Served(100), new_study(100, ["lru"])
    served.request([1, 2, 3, 4])
    observe(study, served.notes())
    # Of the smallest simulation, as if the first chunk had been evicted from it alone.
    smallest = next(iter(study._miniatures.values()))
    first = next(iter(smallest._resident.values()))
    smallest._policy.remove(first)
    smallest._drop(first)
    keys = [object_key(block) for block in (1, 2, 3, 4)]
    served.traffic.found(key([], request_id="pieces"), 4, [keys[1], keys[0]], 1, CHUNK_BYTES, 0)
    served.traffic.stored("pieces", Chunks(SPACE, keys, 2), CHUNK_BYTES, 0)
    observe(study, served.notes())
    assert [sum(miniature.hits) for miniature in study._miniatures.values()] == [0, 4, 4, 4, 4, 4]


def test_a_clear_of_l1_empties_the_simulations() -> None:
    served, study = Served(100), new_study(100, ["lru"])
    served.request(range(50))
    observe(study, served.notes())
    assert study.sampled_chunks == 50
    served.request(range(100, 101))
    observe(study, (note._replace(clears=1) for note in served.notes()))
    assert study.sampled_chunks == 1


def test_before_the_first_note_there_is_nothing_to_simulate() -> None:
    assert list(new_study(100, ["lru"]).simulate()) == []
