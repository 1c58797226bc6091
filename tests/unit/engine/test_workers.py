"""Under which layouts a model's chunks have to be present to be a hit."""

from __future__ import annotations

from typing import Any

import pytest

from engine.layouts import EngineDrivenPayload, SlotLayout, slot_layout
from engine.workers import UNKNOWN_LAYOUT, Worker, Workers

PAIR = ("m", 1)


def layout(hidden: int) -> SlotLayout:
    return slot_layout(EngineDrivenPayload(1, "m", 1, 8, 2, hidden, "bfloat16", True), 16)


def worker(instance_id: int, **changes: Any) -> Worker:
    return Worker(
        **{
            "instance_id": instance_id,
            "model_name": "m",
            "world_size": 1,
            "mode": "engine_driven",
            "layout": layout(16),
            "state": "ready",
            "registered": 0.0,
            "last_seen": 0.0,
            **changes,
        }
    )


def workers(*members: Worker) -> Workers:
    made = Workers()
    for member in members:
        made.add(member)
    return made


def test_nobody_means_no_layout() -> None:
    assert workers().fingerprints(PAIR) == ()


def test_workers_with_one_layout_count_once() -> None:
    assert workers(worker(1), worker(2)).fingerprints(PAIR) == (layout(16).fingerprint,)


def test_every_layout_of_a_pair_counts() -> None:
    found = workers(worker(1), worker(2, layout=layout(32))).fingerprints(PAIR)
    assert set(found) == {layout(16).fingerprint, layout(32).fingerprint}
    assert len(found) == 2


def test_pairs_do_not_mix() -> None:
    made = workers(worker(1), worker(2, world_size=2, layout=layout(32)), worker(3, model_name="n", layout=layout(48)))
    assert made.fingerprints(PAIR) == (layout(16).fingerprint,)
    assert made.fingerprints(("m", 2)) == (layout(32).fingerprint,)
    assert made.fingerprints(("m", 3)) == ()


@pytest.mark.parametrize("state", ["mapping", "unsupported", "broken"])
def test_one_worker_that_cannot_serve_a_retrieve_ends_all_hits_of_its_pair(state: str) -> None:
    made = workers(worker(1), worker(2, state=state), worker(3, model_name="n"))
    assert made.fingerprints(PAIR) == ()
    assert made.fingerprints(("n", 1)) != ()


def test_hits_are_back_when_the_broken_one_has_left() -> None:
    made = workers(worker(1), worker(2, state="broken", layout=None))
    made.remove(2)
    assert made.fingerprints(PAIR) == (layout(16).fingerprint,)


def test_a_change_of_state_counts_once_it_is_told() -> None:
    one = worker(1, state="mapping")
    made = workers(one)
    one.state = "ready"
    made.changed()
    assert made.fingerprints(PAIR) == (layout(16).fingerprint,)
    assert [report.state for report in made.reports()] == ["ready"]


def test_a_worker_is_found_by_id_and_by_mapping() -> None:
    one = worker(1, mapping_id=7)
    made = workers(one, worker(2))
    assert made.get(1) is one
    assert made.get(3) is None
    assert made.mapped(7) is one
    assert made.mapped(8) is None


def test_the_report_of_a_worker_that_was_not_understood_has_no_layout() -> None:
    [report] = workers(worker(1, layout=None, state="broken", problem="why")).reports()
    assert report.layout == UNKNOWN_LAYOUT
    assert (report.state, report.problem, report.device) == ("broken", "why", None)


def test_reports_are_made_once_for_all_who_read_them() -> None:
    made = workers(worker(1))
    assert made.reports() is made.reports()
