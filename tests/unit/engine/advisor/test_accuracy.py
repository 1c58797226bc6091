"""The advisor's estimates are within two points of a simulation of all the traffic, at every size and policy."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from engine.advisor import study
from engine.advisor.advice import ENOUGH_REFERENCES
from tests.support.conversations import popular_conversations
from tests.unit.engine.advisor.traffic import deviation, studied

TRACES = os.environ.get("KVKEEP_TRACES")
"""A folder with the two traces of the Mooncake paper, to check against them too."""

Requests = Sequence[Sequence[int]]


def trace(name: str) -> Requests:
    with (Path(TRACES or "") / f"mooncake_{name}_trace.jsonl").open() as lines:
        return [json.loads(line)["hash_ids"] for line in lines]


def check(requests: Requests, blocks: int) -> None:
    made = studied(requests, blocks)
    estimates = made.estimates()
    worst: dict[str, float] = {}
    for estimate in estimates:
        off = deviation(requests, estimate)
        worst[estimate.policy] = max(worst.get(estimate.policy, 0.0), abs(off), key=abs)
        assert made.sample.references < ENOUGH_REFERENCES or abs(off) < 2.0, (estimate, off)
    print(blocks, f"rate {made.sample.rate:.3f}, {made.sample.references} references:", worst)
    assert made.sample.asked == sum(map(len, requests))
    assert made.sample.references >= ENOUGH_REFERENCES


def test_synthetic_conversations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study, "MOST_OBJECTS", 16_000)
    check(list(popular_conversations(60_000, seed=1)), 600)


@pytest.mark.skipif(TRACES is None, reason="KVKEEP_TRACES does not name a folder")
@pytest.mark.timeout(1200)
def test_many_synthetic_conversations() -> None:
    check(list(popular_conversations(300_000, seed=2)), 2000)


@pytest.mark.skipif(TRACES is None, reason="KVKEEP_TRACES does not name a folder")
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    ("name", "blocks"),
    [
        ("conversation", 1000),
        ("conversation", 2000),
        ("conversation", 4000),
        ("conversation", 6000),
        ("synthetic", 500),
        ("synthetic", 1000),
        ("synthetic", 2000),
    ],
)
def test_real_traces(name: str, blocks: int) -> None:
    check(trace(name), blocks)
