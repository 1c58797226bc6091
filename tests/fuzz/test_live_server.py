"""A flood of hostile messages against a real server; its well-behaved clients do not notice, and it is well afterwards.

`KVKEEP_FUZZ_MESSAGES` says how many are sent, `KVKEEP_FUZZ_SEED` which ones; a failure names both and the message.
"""

from __future__ import annotations

import os
import re
import secrets
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from tests.fuzz.barrage import BATCH, Barrage, Generator, Spared, literal, operation_of
from tests.fuzz.bystander import Bystander, Copied, Lent, wait_until_ready
from tests.fuzz.hostile import Frames
from tests.fuzz.wellformed import segments
from tests.support.polling import until
from tests.support.server import Server

MESSAGES: Final = int(os.environ.get("KVKEEP_FUZZ_MESSAGES", "20000"))
SEED: Final = int(os.environ.get("KVKEEP_FUZZ_SEED", secrets.randbits(32)))
SALT: Final = f"bystander-{secrets.token_hex(8)}"
GROWTH: Final = 160 << 20
"""Bytes of memory of its own that the server may have more at the end than after the first tenth: what it remembers of
prompts is bounded by 64 MiB, the rest is what the allocator keeps."""
CONFIG: Final = f"""
server:
  chunk_size: 16
  worker_timeout: 10
  registration_grace: 10
  session_ttl: 8
  lease_ttl: 8
  reservation_ttl: 8
l1:
  size: 128MiB
quotas:
  tenants:
    - cache_salt: {SALT}
      reservation: 32MiB
l2:
  - type: memory
    name: beyond
    store_policy: write_through
    capacity: 32MiB
log:
  format: human
"""
_DEFECT: Final = re.compile(r"^.*(?:a defect|Traceback|CRITICAL|Segmentation).*$", re.MULTILINE)


class Checked(Server):
    """With its HTTP answers held against the document: what hostile clients say must not spoil those either."""

    def command(self) -> list[str]:
        command = super().command()
        command[command.index("service")] = "tests.contract.launch"
        size = command.index("--l1-size-gb")
        return command[:size] + command[size + 2 :]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    config = tmp_path / "config.yaml"
    config.write_text(CONFIG)
    with Checked("--config", str(config)) as server:
        yield server


@pytest.mark.timeout(60 + MESSAGES // 100)
def test_hostile_messages_disturb_nobody(server: Server, capfd: pytest.CaptureFixture[str]) -> None:
    def tell(text: str) -> None:
        with capfd.disabled():
            print(text, file=sys.stderr, flush=True)

    tell(f"\n{MESSAGES} messages with KVKEEP_FUZZ_SEED={SEED}")
    with Copied(server, SALT) as copied, Lent(server, SALT) as lent, segments() as own:
        wait_until_ready(server, 2)
        names = [segment.name for segment in own]
        ids = [copied.instance_id, lent.instance_id]
        spared = Spared([copied.model, lent.model, SALT, copied.segment_name], ids, names)
        generator = Generator(SEED, names, ids, spared)
        with Barrage(server.url, SEED, generator.draw) as barrage:
            _fire(server, barrage, (copied, lent), tell)
        tell(f"granted: {dict(barrage.granted.most_common())}")
        for name in ("store", "retrieve", "prepare_store", "commit_store", "prepare_retrieve", "query_prefetch_status"):
            assert barrage.granted[name], f"no {name} came as far as being carried out"
        for bystander in (copied, lent):
            bystander.check()
            tell(
                f"{bystander.model}: {bystander.rounds} rounds, {bystander.hits} chunks found and right, "
                f"slowest answer {bystander.slowest:.2f} s"
            )
            assert bystander.hits > 100
    until(lambda: _is_at_rest(server), "what hostile clients held is given back", 40)
    assert server.stop() == 0
    assert not _defects(server)


def _fire(server: Server, barrage: Barrage, bystanders: tuple[Bystander, ...], tell: Callable[[str], None]) -> None:
    began, first = time.monotonic(), 0
    step = max(BATCH, MESSAGES // 10)
    while barrage.sent < MESSAGES:
        before = barrage.sent
        try:
            barrage.send(min(BATCH, MESSAGES - barrage.sent))
            for bystander in bystanders:
                bystander.check()
            _check_process(server, barrage)
            if before // step != barrage.sent // step:
                _check_pages(server)
                memory = own_memory(server.pid)
                first = first or memory
                assert memory - first < GROWTH, f"{memory - first} bytes more than after the first tenth"
                tell(
                    f"{barrage.sent} sent, {barrage.answered} owed an answer and answered, "
                    f"{memory >> 20} MiB, {time.monotonic() - began:.0f} s"
                )
        except AssertionError as failure:
            # What the server has to say explains why something was not answered.
            _check_process(server, barrage)
            where = f"KVKEEP_FUZZ_SEED={SEED}, messages {before + 1} to {barrage.sent}"
            raise AssertionError(f"{where}: {failure}") from None


def _check_process(server: Server, barrage: Barrage) -> None:
    """Alive, and without a defect in its log."""
    assert server.process is not None
    defects = _defects(server)
    if server.process.poll() is None and not defects:
        return
    named = [frames for frames in barrage.batch if any(_kind(frames) in line for line in defects)]
    shown = "\n".join(map(literal, (named or barrage.suspects())[:30]))
    what = f"KVKEEP_FUZZ_SEED={SEED}, until message {barrage.sent}: the server has ended or met a defect"
    pytest.fail(f"{what}:\n{server.output()[-6000:]}\nby one of:\n{shown}")


def _kind(frames: Frames) -> str:
    operation = operation_of(frames)
    message = operation.message if operation is not None else None
    return getattr(message, "__name__", "?")


def _defects(server: Server) -> list[str]:
    return _DEFECT.findall(server.output())


def _check_pages(server: Server) -> None:
    for path in ("/api/healthcheck", "/api/status", "/api/workers", "/api/sessions"):
        status, body = server.get(path)
        assert status == 200, f"{path}: {status} {body}\n{server.output()[-4000:]}"


def _is_at_rest(server: Server) -> bool:
    """No worker, no session, nothing leased, nothing being written."""
    status: Any = server.get("/api/status")[1]
    l1 = status["storage_manager"]["l1_manager"]
    held = l1["leased_object_count"] + l1["reserved_object_count"]
    return not (held or status["active_sessions"] or status["registered_gpu_ids"] or status["running_transfers"])


def own_memory(pid: int) -> int:
    """Bytes of memory that a process shares with nobody."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0]) << 10
