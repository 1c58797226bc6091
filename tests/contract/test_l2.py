"""A real server with two tiers of L2, in memory and in a folder: what operators see of them and do to them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine import l2_types
from tests.contract.test_metrics import scraped
from tests.contract.test_reload import FromFile
from tests.contract.worker import Worker
from tests.support.polling import until
from tests.support.server import http
from tests.unit.service.exposition import value

CHUNK = 16
CHUNKS = 4
OBJECT = 4096
"""Bytes that one occupies: a page at least."""
PROMPT = list(range(1000, 1000 + CHUNKS * CHUNK))
HEAD = "server: {chunk_size: 16}\nl1: {size: 64MiB}\n"
MEMORY = "  - {type: memory}\n"
FOLDER = "  - {type: filesystem, name: nvme, path: kv, keep_free: 0}\n"
BOTH = f"{HEAD}l2:\n{MEMORY}{FOLDER}"


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("l2") / "kvkeep.yaml"


@pytest.fixture(scope="module")
def running(file: Path) -> Iterator[FromFile]:
    with FromFile(file, BOTH) as started:
        yield started


@pytest.fixture
def server(running: FromFile, file: Path) -> FromFile:
    """With both tiers, in use and empty."""
    file.write_text(BOTH)
    assert running.reload()[0] == 200
    until(lambda: [each["state"] for each in tiers(running).values()] == ["open", "open"], "both tiers are open")
    for name in tiers(running):
        assert running.post(f"/api/l2/{name}/resume")[0] == 200
    assert running.post("/api/cache/clear")[0] == 200
    done(running)
    return running


@pytest.fixture
def stored(server: FromFile) -> Iterator[FromFile]:
    """Every chunk of the prompt is in L1 and in both tiers."""
    before = {name: each["saved_objects"] for name, each in tiers(server).items()}
    with Worker(server, "m") as worker:
        worker.store(PROMPT)
        for name in before:
            saved = before[name] + CHUNKS
            until(lambda name=name, saved=saved: tiers(server)[name]["saved_objects"] == saved, "all of it is saved")
            assert server.post(f"/api/l2/{name}/rescan")[0] == 202
        done(server)
        yield server


def tiers(server: FromFile) -> dict[str, dict[str, Any]]:
    status, body = server.get("/api/l2")
    assert status == 200
    return {each["name"]: each for each in body["tiers"]}


def used(server: FromFile) -> dict[str, int | None]:
    return {name: each["used_objects"] for name, each in tiers(server).items()}


def send(server: FromFile, method: str, path: str, **body: Any) -> tuple[int, Any]:
    headers = {"Content-Type": "application/json"} if body else {}
    return http(method, server.http_url + path, json.dumps(body).encode() if body else None, headers=headers)


def look(server: FromFile) -> dict[str, Any]:
    status, body = send(server, "POST", "/api/cache/lookups", model="m", tokens=PROMPT)
    assert status == 200
    found: dict[str, Any] = body
    return found


def done(server: FromFile) -> None:
    until(lambda: all(each["work"] is None for each in tiers(server).values()), "no tier is busy")


def files(file: Path) -> list[Path]:
    return [each for each in (file.parent / "kv").glob("?/?/*") if "." not in each.name]


def test_each_tier_is_shown_with_what_it_did(stored: FromFile) -> None:
    memory, nvme = tiers(stored).values()
    assert [(each["name"], each["type"], each["is_healthy"]) for each in (memory, nvme)] == [
        ("memory", "memory", True),
        ("nvme", "filesystem", True),
    ]
    for each in (memory, nvme):
        assert (each["used_objects"], each["saved_objects"]) == (CHUNKS, each["saves"]["done"])
        assert each["saved_bytes"] == each["saved_objects"] * OBJECT
        assert each["used_bytes"] > CHUNKS * OBJECT

    def in_the_status() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = stored.get("/api/status")[1]["storage_manager"]["l2_adapters"]
        return found

    until(lambda: in_the_status() == list(tiers(stored).values()), "the status shows the same")


def test_the_metrics_have_both_tiers(stored: FromFile) -> None:
    saved = {name: each["saved_objects"] for name, each in tiers(stored).items()}

    def counted() -> dict[str, float]:
        text = scraped(stored)
        return {name: value(text, "kvkeep_l2_saves_total", tier=name, outcome="done") for name in saved}

    until(lambda: counted() == saved, "the saves are counted")
    text = scraped(stored)
    assert value(text, "kvkeep_l2_up", tier="nvme") == 1
    assert value(text, "kvkeep_l2_saved_bytes_total", tier="nvme") == saved["nvme"] * OBJECT
    assert value(text, "kvkeep_l2_save_duration_seconds_count", tier="memory") == saved["memory"]


def test_the_metrics_have_what_both_tiers_hold(stored: FromFile) -> None:
    def held() -> float:
        return value(scraped(stored), "kvkeep_cached_objects", tier="l2")

    until(lambda: held() == 2 * CHUNKS, "what the rescans have found is published")


def test_a_prompt_that_l1_has_lost_is_explained_and_prefetched(stored: FromFile) -> None:
    assert look(stored)["tiers"] == {"l1": CHUNKS, "l2": 0}
    loaded = tiers(stored)["memory"]["loads"]["done"]
    assert stored.post("/api/clear-cache") == (200, {"status": "ok"})
    found = look(stored)
    assert (found["tiers"], found["first_miss"]) == ({"l1": 0, "l2": CHUNKS}, None)

    status, job = send(stored, "POST", "/api/cache/prefetches", model="m", tokens=[*PROMPT, *range(CHUNK)])
    assert (status, job["total_chunks"]) == (202, CHUNKS + 1)
    path = f"/api/cache/prefetches/{job['id']}"
    until(lambda: stored.get(path)[1]["state"] == "done", "all of it is there")
    shown = stored.get(path)[1]
    assert (shown["chunks"], shown["objects"], shown["bytes"], shown["progress"]) == (
        CHUNKS,
        CHUNKS,
        CHUNKS * OBJECT,
        1,
    )
    [listed] = [each for each in stored.get("/api/jobs")[1]["jobs"] if each["id"] == job["id"]]
    assert (listed["kind"], listed["state"], listed["objects"]) == ("prefetch", "done", CHUNKS)
    assert look(stored)["tiers"] == {"l1": CHUNKS, "l2": 0}
    assert tiers(stored)["memory"]["loads"]["done"] == loaded + CHUNKS


def test_a_paused_tier_is_not_asked(stored: FromFile) -> None:
    stored.post("/api/clear-cache")
    for name in ("memory", "nvme"):
        assert stored.post(f"/api/l2/{name}/pause") == (200, {"tier": name, "is_paused": True})
    until(lambda: all(each["is_paused"] for each in tiers(stored).values()), "both are shown as paused")
    missing = look(stored)
    assert missing["tiers"] == {"l1": 0, "l2": 0}
    assert missing["first_miss"]["detail"] == "chunk 0: it was cleared; L2 does not have it"
    status, problem = send(stored, "POST", "/api/cache/prefetches", model="m", tokens=PROMPT)
    assert (status, "no L2 tier to load from" in problem["detail"]) == (409, True)

    assert stored.post("/api/l2/nvme/resume") == (200, {"tier": "nvme", "is_paused": False})
    until(lambda: look(stored)["tiers"] == {"l1": 0, "l2": CHUNKS}, "what is in the folder is found again")


def test_one_tier_is_cleared_and_the_other_keeps_what_it_has(stored: FromFile, file: Path) -> None:
    assert len(files(file)) == CHUNKS
    status, begun = stored.post("/api/l2/nvme/clear")
    assert (status, begun["work"], begun["objects"]) == (202, "clear", CHUNKS)
    done(stored)
    assert used(stored) == {"memory": CHUNKS, "nvme": 0}
    assert (tiers(stored)["nvme"]["work_done"], files(file)) == (CHUNKS, [])


def test_a_rescan_counts_what_is_there(stored: FromFile) -> None:
    status, begun = stored.post("/api/l2/nvme/rescan")
    assert (status, begun["work"]) == (202, "rescan")
    done(stored)
    shown = tiers(stored)["nvme"]
    assert (shown["work_done"], shown["used_objects"]) == (CHUNKS, CHUNKS)


def test_a_clear_of_everything_reaches_every_tier(stored: FromFile, file: Path) -> None:
    status, problem = send(stored, "POST", "/api/cache/clear", model="m")
    assert (status, "say `tier: l1`" in problem["detail"]) == (409, True)
    status, counted = send(stored, "POST", "/api/cache/clear", dry_run=True)
    assert (status, counted["tiers"]["l2"]["objects"]) == (200, 2 * CHUNKS)
    assert used(stored) == {"memory": CHUNKS, "nvme": CHUNKS}

    status, cleared = stored.post("/api/cache/clear")
    assert (status, cleared["tiers"]["l1"]["objects"], cleared["tiers"]["l2"]["objects"]) == (200, CHUNKS, 2 * CHUNKS)
    done(stored)
    assert used(stored) == {"memory": 0, "nvme": 0}
    assert files(file) == []


def test_a_selection_is_cleared_in_l1_alone(stored: FromFile) -> None:
    status, cleared = send(stored, "POST", "/api/cache/clear", model="m", tier="l1")
    assert (status, cleared["tiers"]) == (200, {"l1": {"objects": CHUNKS, "bytes": CHUNKS * OBJECT}})
    assert look(stored)["tiers"] == {"l1": 0, "l2": CHUNKS}


def test_an_object_is_deleted_everywhere(stored: FromFile, file: Path) -> None:
    keys = [each["key"] for each in stored.get("/api/cache/objects")[1]["objects"]]
    status, deleted = send(stored, "DELETE", "/api/cache/objects", keys=keys)
    assert (status, deleted["tiers"]["l1"]["objects"]) == (200, CHUNKS)
    assert deleted["tiers"]["l2"] == {"objects": 2 * CHUNKS, "bytes": None}
    assert look(stored)["hit_chunks"] == 0
    assert files(file) == []
    assert stored.get("/api/cache/objects?tier=l2")[1]["objects"] == []


def test_tiers_come_and_go_with_the_file_and_what_was_stored_stays(stored: FromFile, file: Path) -> None:
    saved = tiers(stored)["nvme"]["saved_objects"]
    file.write_text(f"{HEAD}l2:\n{FOLDER}")
    status, body = stored.reload()
    assert (status, body["applied"]) == (200, True)
    until(lambda: list(tiers(stored)) == ["nvme"], "the tier in memory is gone")
    assert tiers(stored)["nvme"]["saved_objects"] == saved, "the one that stayed was not disturbed"
    assert stored.get("/api/l2/memory")[0] == 404
    until(lambda: set(scraped_tiers(stored)) == {"nvme"}, "and from the metrics")

    file.write_text(HEAD)
    assert stored.reload()[0] == 200
    until(lambda: tiers(stored) == {}, "there is no tier any more")
    stored.post("/api/clear-cache")
    assert look(stored)["tiers"] == {"l1": 0, "l2": 0}

    file.write_text(BOTH)
    assert stored.reload()[0] == 200
    until(lambda: list(tiers(stored)) == ["memory", "nvme"], "both are there")
    until(lambda: look(stored)["tiers"] == {"l1": 0, "l2": CHUNKS}, "the folder still has all of it")


def scraped_tiers(server: FromFile) -> dict[str, float]:
    """Which are up, as the metrics have it."""
    text = scraped(server)
    lines = [line for line in text.splitlines() if line.startswith("kvkeep_l2_up{")]
    names = [line.partition('tier="')[2].partition('"')[0] for line in lines]
    return {name: value(text, "kvkeep_l2_up", tier=name) for name in names}


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        (
            "  - type: filesystem\n    name: nvme\n    pth: kv\n",
            {":6": 'unknown key, did you mean "path"?', ":4": "needs the key path"},
        ),
        (
            "  - type: filesystem\n    path: kv\n    store_polcy: write_back\n",
            {":6": 'unknown key, did you mean "store_policy"?'},
        ),
        ("  - type: filesistem\n", {":4": f'is not one of {", ".join(l2_types())}, did you mean "filesystem"?'}),
    ],
    ids=["wrong key for the path", "wrong key", "wrong type"],
)
def test_a_wrong_entry_is_refused_with_its_line_and_the_tiers_stay(server, file: Path, entry: str, problem) -> None:
    file.write_text(f"{HEAD}l2:\n{entry}")
    status, body = server.reload()
    assert status == 422
    assert {each["place"].removeprefix(str(file)): each["message"] for each in body["errors"]} == problem
    assert list(tiers(server)) == ["memory", "nvme"]
    assert server.get("/api/healthcheck") == (200, {"status": "healthy"})


def test_a_folder_that_cannot_be_made_shows_in_its_tier_and_the_others_go_on(server: FromFile, file: Path) -> None:
    """The folder may come later, say by a mount: so it is no reason to refuse the file."""
    (file.parent / "taken").write_text("a file, and no folder")
    file.write_text(f"{BOTH}  - {{type: filesystem, name: wrong, path: taken/kv, keep_free: 0}}\n")
    assert server.reload()[0] == 200
    until(lambda: "taken" in (tiers(server)["wrong"]["problem"] or ""), "the tier says what is wrong")
    shown = tiers(server)["wrong"]
    assert (shown["is_healthy"], shown["state"]) == (False, "opening")
    assert server.post("/api/l2/wrong/clear")[0] == 409
    until(lambda: scraped_tiers(server).get("wrong") == 0, "it is down in the metrics")
    assert server.get("/api/readyz")[0] == 200
    assert tiers(server)["nvme"]["is_healthy"]
