"""Requests as the engine thread notes them, and the study that reads these notes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import count

from blake3 import blake3

from engine.advisor.report import Estimate
from engine.advisor.study import Study
from engine.discovery import policy_maker, policy_names
from engine.keys import namespace
from engine.prompts import Chunks
from engine.simulation.replay import Replay
from engine.traffic import References, Traffic
from engine.wire.messages import Key
from tests.unit.engine.support import key

CHUNK_BYTES = 1 << 20
SPACE = namespace("m", 1, 0, b"f", "")


@lru_cache(maxsize=1 << 20)
def object_key(block: int) -> bytes:
    return SPACE.prefix + blake3(b"%d" % block).digest()


class Served:
    """Serves requests from an L1 of so many blocks, and notes what the engine thread notes of them."""

    def __init__(self, blocks: int, policy: str = "hit_density") -> None:
        self.traffic = Traffic()
        self.traffic.references.is_open = True
        self._l1 = Replay(policy_maker(policy)(blocks), blocks)
        self._requests = count()

    def request(self, blocks: Sequence[int]) -> int:
        """Looks up, and stores what is absent in two parts, as an engine does that computes a prompt in steps."""
        hits, total = self._l1.request(blocks), len(blocks)
        keys = [object_key(block) for block in blocks]
        asked: Key = key([], request_id=str(next(self._requests)))
        self.traffic.found(asked, total, keys[hits - 1 :: -1] if hits else [], 1, CHUNK_BYTES, 0)
        between = (hits + total) // 2
        for first, end in ((hits, between), (between, total)):
            self.traffic.stored(asked.request_id, Chunks(SPACE, keys[:end], first), CHUNK_BYTES, 0)
        return hits

    def notes(self) -> Iterable[References]:
        """Those not read yet."""
        while (note := self.traffic.references.take()) is not None:
            yield note


def observe(study: Study, notes: Iterable[References]) -> None:
    """Without anything that waits at the end."""
    for note in notes:
        study.read([note])
        for _ in study.simulate():
            pass


def studied(requests: Iterable[Sequence[int]], blocks: int) -> Study:
    """What is known of an L1 of so many blocks after these requests."""
    served, study = Served(blocks), new_study(blocks)
    for request in requests:
        served.request(request)
        observe(study, served.notes())
    assert served.traffic.references.dropped == 0
    return study


def new_study(blocks: int, policies: Iterable[str] = policy_names()) -> Study:
    return Study({name: policy_maker(name) for name in policies}, blocks * CHUNK_BYTES)


def deviation(requests: Sequence[Sequence[int]], estimate: Estimate) -> float:
    """Points by which an estimate differs from what all requests would have hit."""
    blocks = estimate.size // CHUNK_BYTES
    replay = Replay(policy_maker(estimate.policy)(blocks), blocks)
    hits = sum(replay.request(request) for request in requests)
    return 100 * (estimate.hit_ratio - hits / sum(map(len, requests)))
