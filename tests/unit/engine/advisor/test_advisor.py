"""The advisor of a running server: it sees what goes over the socket."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import Any

import numpy as np
import pytest

from engine import MIB, AdvisorReport, Runtime
from engine.advisor.study import Study
from engine.commands import ClearAll
from engine.discovery import policy_names
from engine.wire import messages as m
from tests.support.polling import until
from tests.unit.engine.support import HANDLE, Client, Segment, cpu_tensor, key, packed, register

Start = Callable[..., Runtime]
Connect = Callable[[Runtime], Client]
MakeSegment = Callable[[int], Segment]
OBJECT = 4096


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.advisor.advisor._IDLE_SECONDS", 0.01)
    monkeypatch.setattr("engine.advisor.advisor._PUBLISH_SECONDS", 0.05)
    monkeypatch.setattr("engine.advisor.advisor._SHARE", 0.5)


@pytest.fixture
def server(start_server: Start) -> Runtime:
    return start_server()


@pytest.fixture
def client(server: Runtime, connect: Connect, segment: MakeSegment) -> Client:
    made, memory = connect(server), segment(4096)
    assert isinstance(memory.bytes, np.ndarray)
    made.ask(register(1, [cpu_tensor([8, 2, 8, 16], shm_name=memory.name)]))
    return made


def serve(client: Client, *chunks: int) -> None:
    """One request: looks up, and stores what is absent."""
    tokens = list(chain.from_iterable([chunk] * 16 for chunk in chunks))
    client.ask(m.Lookup(key(tokens), packed(1)))
    hits: Any = client.ask(m.QueryPrefetchStatus("r"))
    if hits < len(chunks):
        blocks = [[1, 2, 3, 4][: 2 * (len(chunks) - hits)]]
        assert client.ask(m.Store(key(tokens, start=16 * hits, worker_id=0), 1, blocks, HANDLE)) == [b"", True]
    client.ask(m.EndSession("r"))


def seen(server: Runtime, references: int) -> AdvisorReport:
    """The report once it knows of so many references."""
    until(lambda: server.advice().references == references, f"the advisor knows of {references} references")
    return server.advice()


def lru(server: Runtime) -> dict[float, tuple[float, bool]]:
    """What is estimated of one policy."""
    estimates = [each for each in server.advice().estimates if each.policy == "lru"]
    return {each.factor: (each.hit_ratio, each.has_been_full) for each in estimates}


def ratios(server: Runtime) -> set[float]:
    """What is estimated of all policies and sizes."""
    return {each.hit_ratio for each in server.advice().estimates}


def test_it_knows_the_hits_that_there_were(server: Runtime, client: Client) -> None:
    for _ in range(4):
        serve(client, 1, 2)
    seen(server, 8)
    until(lambda: ratios(server) == {0.75}, "all is taken into account")
    report = server.advice()
    assert (report.is_enabled, report.sample_rate, report.dropped_references) == (True, 1.0, 0)
    assert (report.sampled_references, report.sampled_chunks) == (8, 2)
    assert report.measured_hit_ratio == 0.75
    assert {each.policy for each in report.estimates} == set(policy_names())
    assert {each.size for each in report.estimates if each.factor == 2.0} == {2 * MIB}
    assert report.advice.startswith("no advice yet: the sample has 8 of the 10,000 references")


def test_a_smaller_l1_would_have_forgotten(server: Runtime, client: Client) -> None:
    slots = MIB // OBJECT
    for _ in range(2):
        for chunk in range(slots // 2):
            serve(client, chunk)
    seen(server, slots)
    expected = {0.25: (0.0, True), **dict.fromkeys((0.5, 1.0, 2.0, 4.0, 8.0), (0.5, False))}
    until(lambda: lru(server) == expected, "all is taken into account")


def test_it_is_off_where_it_is_not_wanted(start_server: Start, connect: Connect) -> None:
    server = start_server(advisor_enabled=False)
    client = connect(server)
    client.ask(m.Lookup(key(list(range(32))), packed(1)))
    until(lambda: server.advice().age > 0, "there is a report")
    assert (server.advice().is_enabled, server.advice().references) == (False, 0)
    assert server.advice().advice == "no advice: the advisor is off (advisor.enabled)."
    assert len(server.advice().estimates) == 6 * len(policy_names())


def test_switched_off_and_on_it_begins_anew(server: Runtime, client: Client) -> None:
    serve(client, 1)
    seen(server, 1)
    server.set_advisor(False)
    until(lambda: not server.advice().is_enabled, "it is off")
    serve(client, 1)
    server.set_advisor(True)
    until(lambda: server.advice().is_enabled, "it is on")
    serve(client, 1)
    assert seen(server, 1).measured_hit_ratio == 1.0


def test_another_size_of_l1_begins_anew(server: Runtime, client: Client, start_server: Start, connect: Connect) -> None:
    serve(client, 1)
    seen(server, 1)
    server.resize_l1(MIB // 2)
    report = seen(server, 0)
    assert report.l1_size == MIB // 2
    assert {each.size for each in report.estimates if each.factor == 1.0} == {MIB // 2}


def test_a_clear_empties_what_is_simulated(server: Runtime, client: Client) -> None:
    serve(client, 1)
    server.ask(ClearAll(), 5)
    serve(client, 1)
    seen(server, 2)
    until(lambda: ratios(server) == {0.0}, "all is taken into account")


def test_a_defect_does_not_end_it(
    server: Runtime, client: Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(self: Study, note: object) -> None:
        raise ValueError("broken")

    with monkeypatch.context() as patch:
        patch.setattr(Study, "read", broken)
        serve(client, 1)
        until(lambda: "a defect: the thread advisor is begun again" in caplog.text, "the defect is logged")
    serve(client, 2)
    seen(server, 1)
    assert server.status().is_healthy
