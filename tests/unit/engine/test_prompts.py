"""What a request's key has to be, and which chunks it means."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import msgspec
import pytest

from engine.hashing import ChunkHasher, TokenArray
from engine.layouts import EngineDrivenPayload, slot_layout
from engine.prompts import Prompts, RefusedError
from engine.wire.messages import Key
from engine.workers import Worker
from tests.unit.engine.support import key, packed

TOKENS = list(range(1, 51))
"""Three chunks of 16 and a rest of 2."""
LAYOUT = slot_layout(EngineDrivenPayload(1, "m", 2, 8, 2, 16, "bfloat16", True), 16)


def prompts() -> Prompts:
    return Prompts(ChunkHasher(16))


def worker(**changes: Any) -> Worker:
    return Worker(
        **{
            "instance_id": 1,
            "model_name": "m",
            "world_size": 2,
            "mode": "engine_driven",
            "layout": LAYOUT,
            "state": "ready",
            "registered": 0.0,
            "last_seen": 0.0,
            **changes,
        }
    )


def shards_key(**changes: Any) -> Key:
    return key(TOKENS, **{"worker_id": 1, "world_size": 2, **changes})


def digests(chunks: int) -> list[bytes]:
    return list(ChunkHasher(16).hashes(TokenArray.parse(packed(TOKENS)), chunks))


@pytest.mark.parametrize(("end", "chunks"), [(48, 3), (47, 2), (32, 2), (15, 0), (0, 0), (-16, 0), (64, 3), (2**63, 3)])
def test_a_lookup_is_about_the_complete_chunks_before_its_end(end: int, chunks: int) -> None:
    count, hashes = prompts().prefix(key(TOKENS, end=end))
    assert count == chunks
    assert list(hashes) == digests(chunks)


def test_a_range_has_the_keys_of_its_chunks_and_of_all_before() -> None:
    chunks = prompts().chunks(shards_key(start=16, end=48), worker())
    assert [object_key[16:] for object_key in chunks.keys] == digests(3)
    assert {object_key[:16] for object_key in chunks.keys} == {chunks.namespace.prefix}
    assert chunks.count == 2
    assert chunks.wanted == chunks.keys[1:]
    assert chunks.suffix_first == list(reversed(chunks.keys))


def test_an_empty_range_has_no_chunks() -> None:
    chunks = prompts().chunks(shards_key(start=32, end=32), worker())
    assert chunks.count == 0
    assert chunks.wanted == []


def test_equal_ranges_of_different_prompts_differ() -> None:
    one = prompts().chunks(shards_key(end=32), worker()).range
    same = prompts().chunks(shards_key(end=32, request_id="another"), worker()).range
    other = (
        prompts()
        .chunks(
            key([9, *TOKENS], end=32, worker_id=1, world_size=2),
            worker(),
        )
        .range
    )
    assert one == same
    assert one != other


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"start": 8}, id="start inside a chunk"),
        pytest.param({"end": 40}, id="end inside a chunk"),
        pytest.param({"start": -16}, id="start before the prompt"),
        pytest.param({"start": 32, "end": 16}, id="end before start"),
        pytest.param({"end": 64}, id="end behind the tokens"),
        pytest.param({"worker_id": None}, id="no shard"),
        pytest.param({"worker_id": 2}, id="a shard too many"),
        pytest.param({"worker_id": -1}, id="a negative shard"),
        pytest.param({"model_name": "other"}, id="another model"),
        pytest.param({"world_size": 3}, id="another world size"),
        pytest.param({"cache_salt": "a@b"}, id="a bad salt"),
    ],
)
def test_a_key_that_does_not_fit_its_worker_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(RefusedError):
        prompts().chunks(shards_key(**changes), worker())


@pytest.mark.parametrize("tokens", [None, "tokens", {"a": 1}, [*range(40), "x", *range(40)], [-1] * 48])
def test_tokens_that_are_none_are_refused(tokens: object) -> None:
    bad = msgspec.structs.replace(shards_key(), token_ids=msgspec.Raw(packed(tokens)))
    with pytest.raises(RefusedError):
        prompts().chunks(bad, worker())
    with pytest.raises(RefusedError):
        list(prompts().prefix(bad)[1])


@pytest.mark.parametrize(
    "raw",
    [b"", b"\xc1", b"\x93\x01", b"\xdc\x00", b"\xdd\xff\xff\xff\xff" + b"\x01" * 40, b"\xdc\x00\x30" + b"\x91" * 9000],
    ids=["empty", "malformed", "too short", "half a header", "a count that is not true", "nested"],
)
def test_bytes_that_are_no_tokens_are_refused_or_have_no_chunk(raw: bytes) -> None:
    """The tokens of a key are cut out of it unread."""
    bad = msgspec.structs.replace(shards_key(), token_ids=msgspec.Raw(raw))
    with pytest.raises(RefusedError):
        prompts().chunks(bad, worker())
    with suppress(RefusedError):
        assert list(prompts().prefix(bad)[1]) == []


def test_a_worker_that_could_not_be_understood_has_no_chunks() -> None:
    with pytest.raises(RefusedError, match="worker 1 is broken: bad shape"):
        prompts().chunks(shards_key(), worker(layout=None, state="broken", problem="bad shape"))
