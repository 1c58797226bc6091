"""What operators do to the cache, where it has tiers of L2 and where it has none."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from falcon.testing import Result, TestClient

from engine import AmbiguousError, Command, EngineTimeoutError, FindJob, LookReport, Miss, PrefetchError, Question
from service.app import create_app
from tests.support.fake_engine import CLEARED, LOOK, WITHOUT_L2, FakeEngine, UnsureEngine, context

NOTHING = {"objects": 0, "bytes": 0}
UNKNOWN = {"objects": None, "bytes": None}
L1 = {"objects": 8, "bytes": 1 << 28}
SELECTIONS = [{"model": "llama"}, {"cache_salt": ""}, {"older_than": 60}, {"model": "llama", "dry_run": True}]


def client(engine: FakeEngine) -> TestClient:
    return TestClient(create_app(context(engine), validate_responses=True))


class TestClear:
    def clear(self, engine: FakeEngine, **body: Any) -> Result:
        return client(engine).simulate_post("/api/cache/clear", json=body)

    @pytest.mark.parametrize("tier", [{}, {"tier": "all"}])
    def test_everything_is_cleared_in_every_tier(self, tier: dict[str, str]) -> None:
        engine = FakeEngine()
        answer = self.clear(engine, **tier)
        assert (answer.status_code, answer.json["tiers"]) == (200, {"l1": L1, "l2": UNKNOWN})
        assert (engine.clears, engine.l2_clears) == (1, 1)

    def test_l2_is_cleared_by_itself(self) -> None:
        engine = FakeEngine()
        assert self.clear(engine, tier="l2").json == {"dry_run": False, "tiers": {"l2": UNKNOWN}}
        assert (engine.clears, engine.l2_clears) == (0, 1)

    def test_l1_is_cleared_by_itself(self) -> None:
        engine = FakeEngine()
        assert self.clear(engine, tier="l1", model="llama").json["tiers"] == {"l1": L1}
        assert (engine.clears, engine.l2_clears) == (1, 0)

    @pytest.mark.parametrize("tier", ["l2", "all"])
    def test_a_dry_run_counts_and_clears_no_l2(self, tier: str) -> None:
        engine = FakeEngine()
        answer = self.clear(engine, tier=tier, dry_run=True)
        assert (answer.status_code, answer.json["tiers"]["l2"], engine.l2_clears) == (200, UNKNOWN, 0)

    @pytest.mark.parametrize("tier", [{}, {"tier": "all"}, {"tier": "l2"}])
    @pytest.mark.parametrize("selection", SELECTIONS)
    def test_a_selection_is_refused_where_l2_is_and_does_nothing(self, tier, selection: dict[str, Any]) -> None:
        engine = FakeEngine()
        answer = self.clear(engine, **tier, **selection)
        assert answer.status_code == 409
        assert "only all of a tier can be cleared; say `tier: l1`" in answer.json["detail"]
        assert (engine.clears, engine.l2_clears) == (0, 0)

    @pytest.mark.parametrize("selection", SELECTIONS)
    def test_without_l2_a_selection_needs_no_tier(self, selection: dict[str, Any]) -> None:
        engine = FakeEngine(WITHOUT_L2)
        assert self.clear(engine, **selection).json["tiers"] == {"l1": L1, "l2": NOTHING}
        assert self.clear(engine, tier="l2", **selection).json["tiers"] == {"l2": NOTHING}
        assert engine.l2_clears == 0

    def test_a_busy_tier_refuses_and_l1_keeps_what_it_has(self) -> None:
        engine = UnsureEngine()
        answer = self.clear(engine)
        assert (answer.status_code, engine.clears) == (409, 0)
        assert "busy with a rescan" in answer.json["detail"]

    @pytest.mark.parametrize(("tier", "clears"), [(None, (1, 0)), ("l1", (1, 0)), ("l2", (0, 1)), ("all", (1, 1))])
    def test_the_alias_clears_what_it_says(self, tier: str | None, clears: tuple[int, int]) -> None:
        engine = FakeEngine()
        answer = client(engine).simulate_post("/cache/clear", json={"tier": tier} if tier else {})
        assert answer.json == {"status": "ok", "cleared": {"tier": tier or "l1"}}
        assert (engine.clears, engine.l2_clears) == clears

    def test_the_old_operation_spares_l2(self) -> None:
        engine = FakeEngine()
        assert client(engine).simulate_post("/api/clear-cache").status_code == 200
        assert (engine.clears, engine.l2_clears) == (1, 0)


class TestDelete:
    def delete(self, engine: FakeEngine) -> Result:
        return client(engine).simulate_delete("/api/cache/objects", json={"keys": ["ab" * 48]})

    def test_it_reaches_l2(self) -> None:
        expected = {"l1": {"objects": 1, "bytes": 1 << 25}, "l2": {"objects": 1, "bytes": None}}
        assert self.delete(FakeEngine()).json == {"tiers": expected, "missing": 2}

    def test_without_l2_there_is_nothing_in_it(self) -> None:
        assert self.delete(FakeEngine(WITHOUT_L2)).json["tiers"]["l2"] == NOTHING

    def test_what_l2_does_not_delete_stays_in_l1_too(self) -> None:
        asked: list[Command[Any]] = []

        class Unavailable(UnsureEngine):
            def ask(self, command: Command[Any], timeout: float) -> Any:
                asked.append(command)
                return super().ask(command, timeout)

        assert self.delete(Unavailable()).status_code == 409
        assert asked == []


class Found(FakeEngine):
    """L1 finds what LOOK says, and L2 so many chunks more."""

    def __init__(self, further: int, look: LookReport = LOOK) -> None:
        super().__init__()
        self._further = further
        self._look = look

    def look(self, question: Question, timeout: float) -> LookReport:
        return self._look

    def find_in_tiers(self, rows: Any, timeout: float) -> int:
        assert rows == self._look.rest
        return self._further


class TestLookup:
    def ask(self, engine: FakeEngine, tokens: int = 5 * 256) -> dict[str, Any]:
        body = {"model": "llama", "tokens": [1] * tokens}
        answer: dict[str, Any] = client(engine).simulate_post("/api/cache/lookups", json=body).json
        return answer

    @pytest.mark.parametrize(
        ("further", "tiers", "miss"),
        [
            (0, {"l1": 2, "l2": 0}, (2, "evicted", f"{LOOK.detail}; L2 does not have it")),
            (2, {"l1": 3, "l2": 1}, (4, "cleared", "chunk 4: it was cleared; L2 does not have it")),
        ],
    )
    def test_each_chunk_counts_in_the_fastest_tier_that_has_it(self, further: int, tiers, miss) -> None:
        answer = self.ask(Found(further))
        assert (answer["hit_chunks"], answer["hit_tokens"]) == (2 + further, (2 + further) * 256)
        assert answer["tiers"] == tiers
        assert answer["first_miss"] == dict(zip(("chunk", "reason", "detail"), miss, strict=True))

    def test_where_l2_has_the_rest_nothing_is_missing(self) -> None:
        answer = self.ask(Found(3))
        assert (answer["hit_chunks"], answer["tiers"], answer["first_miss"]) == (5, {"l1": 3, "l2": 2}, None)

    def test_an_incomplete_chunk_is_nowhere(self) -> None:
        few = Miss("chunk_incomplete", "chunk 5: 4 of 256 tokens; only complete chunks are cached")
        look = LookReport(2, *LOOK.misses[0], rest=LOOK.rest, misses=(*LOOK.misses, few))
        assert self.ask(Found(3, look), 5 * 256 + 4)["first_miss"] == {"chunk": 5, **few._asdict()}

    def test_without_l2_the_answer_is_that_of_l1(self) -> None:
        answer = self.ask(FakeEngine(WITHOUT_L2))
        assert (answer["tiers"], answer["first_miss"]["detail"]) == ({"l1": 2, "l2": 0}, LOOK.detail)


class TestPrefetch:
    BODY = {"model": "llama", "tokens": [1] * 2048, "world_size": 2, "cache_salt": "a"}  # noqa: RUF012
    SHOWN = {  # noqa: RUF012
        "id": 8,
        "state": "running",
        "progress": 0.25,
        "chunks": 2,
        "total_chunks": 8,
        "objects": 4,
        "bytes": 1 << 27,
        "age_seconds": 0.25,
    }

    def start(self, engine: FakeEngine) -> Result:
        return client(engine).simulate_post("/api/cache/prefetches", json=self.BODY)

    def test_it_begins_and_says_where_it_can_be_watched(self) -> None:
        asked: list[Question] = []

        class Asked(FakeEngine):
            def prefetch(self, question: Question, timeout: float) -> Any:
                asked.append(question)
                return super().prefetch(question, timeout)

        answer = self.start(Asked())
        assert (answer.status_code, answer.json) == (202, self.SHOWN)
        assert answer.headers["location"] == "/api/cache/prefetches/8"
        assert asked == [Question([1] * 2048, "llama", 2, "a")]

    @pytest.mark.parametrize(
        ("error", "status"),
        [(PrefetchError("no tier"), 409), (AmbiguousError("which"), 409), (EngineTimeoutError("late"), 503)],
    )
    def test_what_cannot_begin_says_why(self, error, status: int) -> None:
        answer = self.start(FakeEngine(refusal=error))
        assert (answer.status_code, answer.json["detail"]) == (status, str(error))

    def test_it_is_shown_by_its_id_and_among_the_jobs(self) -> None:
        assert client(FakeEngine()).simulate_get("/api/cache/prefetches/8").json == self.SHOWN

    def test_one_that_has_ended_early_is_through(self) -> None:
        answer = client(Ended("prefetch")).simulate_get("/api/cache/prefetches/8").json
        assert (answer["state"], answer["progress"], answer["chunks"]) == ("done", 1.0, 2)

    def test_another_job_is_no_prefetch(self) -> None:
        assert client(Ended("clear")).simulate_get("/api/cache/prefetches/3").status_code == 404
        assert client(UnsureEngine()).simulate_get("/api/cache/prefetches/8").status_code == 404

    @pytest.mark.parametrize("id_", ["0", "x", "-1"])
    def test_what_is_no_id_is_a_wrong_request(self, id_: str) -> None:
        assert client(FakeEngine()).simulate_get(f"/api/cache/prefetches/{id_}").status_code == 400


class Ended(FakeEngine):
    """Has a job of one kind, which has ended before it was through."""

    def __init__(self, kind: Any) -> None:
        super().__init__()
        self._kind = kind

    def ask(self, command: Command[Any], timeout: float) -> Any:
        assert isinstance(command, FindJob)
        return replace(CLEARED, kind=self._kind, done=2, total=8)
