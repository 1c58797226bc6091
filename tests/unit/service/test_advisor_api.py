"""The advisor's report over HTTP."""

from __future__ import annotations

from falcon.testing import TestClient

from service.app import create_app
from tests.support.fake_engine import ADVICE, FakeEngine, context


def client(engine: FakeEngine | None) -> TestClient:
    return TestClient(create_app(context(engine), validate_responses=True))


def test_the_advice_comes_with_what_it_follows_from() -> None:
    found = client(FakeEngine()).simulate_get("/api/advisor").json
    assert found["advice"] == "doubling L1 to 2 GiB would raise hits from 17 % to 24 %."
    assert (found["enabled"], found["eviction_policy"], found["l1_bytes"]) == (True, "lru", 1 << 30)
    assert (found["age_seconds"], found["measured_hit_ratio"]) == (600.5, 0.274)
    assert (found["references"], found["dropped_references"]) == (301_220, 17)
    assert found["sample"] == {"rate": 0.124, "references": 37_351, "chunks": 1604}
    assert [each["policy"] for each in found["policies"]] == ["fifo", "lru"]
    estimates = found["policies"][1]["estimates"]
    assert [each["factor"] for each in estimates] == [0.25, 0.5, 1, 2, 4, 8]
    assert estimates[3] == {
        "factor": 2.0,
        "bytes": 2 << 30,
        "hit_ratio": ADVICE.estimates[9].hit_ratio,
        "has_been_full": True,
        "references": 37_351,
    }


def test_without_an_engine_there_is_no_advice() -> None:
    assert client(None).simulate_get("/api/advisor").status_code == 503
