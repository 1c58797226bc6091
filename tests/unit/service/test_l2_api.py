"""The tiers of L2 over HTTP: shown, switched, cleared and counted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from falcon.testing import TestClient

from engine import TierError
from service.app import create_app
from service.tier_view import tier_body
from tests.support.fake_engine import FAR, NVME, WITHOUT_L2, FakeEngine, FakeTier, UnsureEngine, context, stopped


def client(engine: FakeEngine | None) -> TestClient:
    return TestClient(create_app(context(engine), validate_responses=True))


class Remembering(FakeEngine):
    """Gives out the same tier each time."""

    def __init__(self) -> None:
        super().__init__()
        self.given: dict[str, FakeTier] = {}

    def tier(self, name: str) -> FakeTier:
        return self.given.setdefault(name, super().tier(name))


def test_all_are_shown_in_order_and_each_by_its_name() -> None:
    asked = client(FakeEngine())
    assert asked.simulate_get("/api/l2").json == {"tiers": [tier_body(NVME), tier_body(FAR)]}
    for report in (NVME, FAR):
        assert asked.simulate_get(f"/api/l2/{report.name}").json == tier_body(report)
    assert client(FakeEngine(WITHOUT_L2)).simulate_get("/api/l2").json == {"tiers": []}


def test_what_a_tier_says_now_is_shown_rather_than_the_last_report() -> None:
    class Newer(FakeEngine):
        def tier(self, name: str) -> FakeTier:
            return FakeTier(NVME.tier._replace(work="clear", work_done=99), None)

    shown = client(Newer()).simulate_get("/api/l2/nvme").json
    assert (shown["work"], shown["work_done"], shown["loaded_objects"]) == ("clear", 99, 71)


def test_a_tier_that_was_just_detached_is_shown_as_it_was() -> None:
    class Detached(FakeEngine):
        def tier(self, name: str) -> FakeTier:
            raise TierError("there is no L2 tier 'nvme'; there are: none")

    assert client(Detached()).simulate_get("/api/l2/nvme").json == tier_body(NVME)


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", ""), *(("POST", path) for path in ("/pause", "/resume", "/clear", "/rescan", "/scrub"))],
)
def test_an_unknown_tier_is_told_with_those_that_there_are(method: str, path: str) -> None:
    engine = FakeEngine()
    answer = client(engine).simulate_request(method, f"/api/l2/nvm{path}")
    assert answer.status_code == 404
    assert answer.json["detail"] == "there is no L2 tier 'nvm'; there are: nvme, far"
    assert engine.paused == {}


@pytest.mark.parametrize("name", ["", "NVME", "-a", "a" * 33, "a.b"])
def test_what_cannot_be_a_name_is_a_wrong_request(name: str) -> None:
    assert client(FakeEngine()).simulate_post(f"/api/l2/{name}/clear").status_code == 400


def test_it_is_paused_and_resumed() -> None:
    engine = FakeEngine()
    for path, paused in (("pause", True), ("resume", False)):
        answer = client(engine).simulate_post(f"/api/l2/nvme/{path}")
        assert (answer.status_code, answer.json) == (200, {"tier": "nvme", "is_paused": paused})
        assert engine.paused == {"nvme": paused}


@pytest.mark.parametrize("work", ["clear", "rescan", "scrub"])
def test_work_is_begun_and_says_on_how_much(work: str) -> None:
    engine = Remembering()
    answer = client(engine).simulate_post(f"/api/l2/nvme/{work}")
    assert (answer.status_code, answer.headers["location"]) == (202, "/api/l2/nvme")
    assert answer.json == {"tier": "nvme", "work": work, "objects": 48, "bytes": 48 << 25}
    assert engine.given["nvme"].works == [work]


def test_where_the_storage_does_not_tell_nothing_is_claimed() -> None:
    answer = client(FakeEngine()).simulate_post("/api/l2/far/clear")
    assert answer.json == {"tier": "far", "work": "clear", "objects": None, "bytes": None}


@pytest.mark.parametrize("work", ["clear", "rescan", "scrub"])
def test_one_work_at_a_time(work: str) -> None:
    answer = client(UnsureEngine()).simulate_post(f"/api/l2/nvme/{work}")
    assert (answer.status_code, answer.headers["content-type"]) == (409, "application/problem+json")
    assert answer.json["detail"] == "the tier nvme is busy with a rescan; wait until that has ended"


@pytest.mark.parametrize("engine", [None, stopped()], ids=["not ready", "ended"])
@pytest.mark.parametrize(
    "ask",
    [
        lambda asked: asked.simulate_get("/api/l2"),
        lambda asked: asked.simulate_get("/api/l2/nvme"),
        lambda asked: asked.simulate_post("/api/l2/nvme/pause"),
        lambda asked: asked.simulate_post("/api/l2/nvme/clear"),
    ],
    ids=["list", "show", "pause", "clear"],
)
def test_without_an_engine_there_are_no_tiers(engine: FakeEngine | None, ask: Callable[[TestClient], object]) -> None:
    assert ask(client(engine)).status_code == 503


def test_a_tier_of_no_use_is_not_hidden() -> None:
    closed = replace(NVME, tier=NVME.tier._replace(state="closed", problem=None))
    report = replace(WITHOUT_L2, l2=(closed,))
    assert client(FakeEngine(report)).simulate_get("/api/l2").json["tiers"][0]["state"] == "closed"
