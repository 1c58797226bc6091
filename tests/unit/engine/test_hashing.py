"""Chunk hashes: the protocol's vectors, an independent computation, and the memory of chunks seen before."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.hashing import ROOT, BadTokensError, ChunkHasher, TokenArray, hash_tokens
from tests.unit.engine.support import packed

VECTORS = [
    pytest.param(
        4,
        range(1, 10),
        "6309ed506b8721905753f5c73c070bb21c3aafbd9b474b1e231f41368b71123c",
        "98efc76eafb06cfe774c31ff151f300b61a614c27982a211bb8cdbd83a8c0e19",
        id="chunks of 4",
    ),
    pytest.param(
        16,
        range(1, 41),
        "4c5b938a8d6e2c965ae6ae33b3c82479be3d7e7486dfa2f2bc3ffdb30f7e84c0",
        "3234e83644ba92553bbb47f688c6a1e77384c9ad49a40202a2e12e535cd6c135",
        id="chunks of 16",
    ),
    pytest.param(
        256,
        [i * 7919 % 32000 for i in range(512)],
        "b95d9e85efff56e35d571fd773269a0469d91ee2a74e163c369cfa6d0d709cd8",
        "7799205e33ccda594543f7384810790a01bef81b32bd6036641a32cc0cb49f41",
        id="chunks of 256",
    ),
]
"""Made with the reference's own class: chunk size, tokens, hashes of the first two chunks."""

TOKENS = st.one_of(
    st.integers(2**16, 2**32 - 1),
    st.sampled_from([0, 0x7F, 0x80, 0xFF, 0x100, 0xFFFF, 0x10000, 2**31, 2**32 - 1]),
)
"""Mostly long ones: chunks are recognised if their encoding has 32 bytes or more."""


def oracle(tokens: Sequence[int], chunk_size: int, chunks: int) -> list[bytes]:
    """The definition, word for word."""
    parent = blake3(struct.pack(">qI", 0, 0)).digest()
    hashes = []
    for start in range(0, chunks * chunk_size, chunk_size):
        parent = blake3(parent + struct.pack(f">{chunk_size}I", *tokens[start : start + chunk_size])).digest()
        hashes.append(parent)
    return hashes


def hashes(hasher: ChunkHasher, encoded: bytes, chunks: int) -> list[bytes]:
    return list(hasher.hashes(TokenArray.parse(encoded), chunks))


def wide(tokens: Sequence[int], first: int = 0xCE) -> bytes:
    """The tokens as a msgpack array of integers that all have the same, longer than needed form."""
    form = {0xCE: ">BI", 0xCF: ">BQ", 0xD2: ">Bi", 0xD3: ">Bq"}[first]
    return b"\xdc" + len(tokens).to_bytes(2, "big") + b"".join(struct.pack(form, first, token) for token in tokens)


def test_the_root_is_the_protocols() -> None:
    assert ROOT.hex() == "7e3eff9ef7613a50340eb12677ee03b83ac759fcba9bb32705f07248d56d473b"


@pytest.mark.parametrize(("chunk_size", "tokens", "first", "second"), VECTORS)
def test_the_protocols_vectors(chunk_size: int, tokens: Sequence[int], first: str, second: str) -> None:
    hasher = ChunkHasher(chunk_size)
    for _ in range(2):  # computed, and remembered
        assert [x.hex() for x in hashes(hasher, packed(list(tokens)), 2)] == [first, second]


@given(
    prompts=st.lists(st.lists(TOKENS, max_size=60), min_size=1, max_size=4),
    chunk_size=st.integers(1, 12),
    shared=st.integers(0, 40),
    memo_bytes=st.sampled_from([0, 900, 2000, 1 << 20]),
)
@settings(max_examples=150, deadline=None)
def test_whatever_was_hashed_before_the_hashes_are_those_of_the_definition(
    prompts: list[list[int]], chunk_size: int, shared: int, memo_bytes: int
) -> None:
    hasher = ChunkHasher(chunk_size, memo_bytes)
    for prompt in [*prompts, *prompts]:
        tokens = prompts[0][:shared] + prompt
        chunks = len(tokens) // chunk_size
        assert hashes(hasher, packed(tokens), chunks) == oracle(tokens, chunk_size, chunks)


@given(st.lists(st.sampled_from([1, 200, 70000]), min_size=8, max_size=32), st.data())
@settings(max_examples=100, deadline=None)
def test_every_way_to_write_a_token_means_the_same(tokens: list[int], data: st.DataObject) -> None:
    hasher = ChunkHasher(8)
    chunks = len(tokens) // 8
    for _ in range(2):
        forms = data.draw(st.lists(st.sampled_from([0xCE, 0xCF, 0xD2, 0xD3]), min_size=32, max_size=32))
        body = b"".join(wide([token], form)[3:] for token, form in zip(tokens, forms, strict=False))
        encoded = b"\xdc" + len(tokens).to_bytes(2, "big") + body
        assert hashes(hasher, encoded, chunks) == oracle(tokens, 8, chunks)
        assert hashes(hasher, packed(tokens), chunks) == oracle(tokens, 8, chunks)


@pytest.mark.parametrize("form", [0xCE, 0xCF, 0xD2, 0xD3], ids=hex)
def test_chunks_written_longer_than_needed_are_not_taken_for_others(form: int) -> None:
    """The places of later chunks are computed from the tokens, which is wrong for them."""
    hasher, tokens = ChunkHasher(8), list(range(70000, 70032))
    other = [*tokens[:15], 99999, *tokens[16:]]
    for prompt in (tokens, other, tokens):
        assert hashes(hasher, wide(prompt, form), 4) == oracle(prompt, 8, 4)


def test_a_longer_prompt_begins_with_the_hashes_of_the_shorter() -> None:
    hasher = ChunkHasher(4)
    short = hashes(hasher, packed(list(range(8))), 2)
    assert hashes(hasher, packed(list(range(16))), 4)[:2] == short


def test_a_prompt_that_leaves_a_known_one_inside_a_chunk_has_its_own_hashes() -> None:
    hasher = ChunkHasher(64)
    known = list(range(128))
    for place in (0, 1, 62, 63, 64, 127):
        hashes(hasher, packed(known), 2)
        other = [*known[:place], 99999, *known[place + 1 :]]
        assert hashes(hasher, packed(other), 2) == oracle(other, 64, 2)


def test_a_chunk_known_from_one_place_is_not_taken_for_the_same_tokens_elsewhere() -> None:
    hasher, chunk = ChunkHasher(8), list(range(70000, 70008))
    hashes(hasher, packed(chunk), 1)
    again = hashes(hasher, packed(chunk * 3), 3)
    assert again == oracle(chunk * 3, 8, 3)
    assert len(set(again)) == 3


def test_remembered_chunks_are_not_decoded_again(monkeypatch: pytest.MonkeyPatch) -> None:
    hasher, encoded = ChunkHasher(16), packed(list(range(1000, 1160)))
    first = hashes(hasher, encoded, 10)

    def refuse(*_: object) -> None:
        pytest.fail("decoded")

    monkeypatch.setattr("engine.hashing._decode", refuse)
    assert hashes(hasher, encoded, 10) == first


def test_of_fresh_tokens_only_the_first_chunk_is_decoded_for_the_first_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = []
    real = ChunkHasher.__init__.__globals__["_decode"]
    monkeypatch.setattr("engine.hashing._decode", lambda body, count: decoded.append(count) or real(body, count))
    next(ChunkHasher(16).hashes(TokenArray.parse(packed(list(range(1600)))), 100))
    assert decoded == [16]


def test_the_memory_of_chunks_stays_within_its_bound() -> None:
    hasher = ChunkHasher(16, memo_bytes=20_000)
    for start in range(200):
        hashes(hasher, packed(list(range(start * 100, start * 100 + 64))), 4)
    memo = hasher._memo
    kept = [known for generation in (memo._young, memo._old) for known in generation.values()]
    assert kept
    assert sum(len(known.encoded) + 400 for known in kept) <= 20_000 + 2 * 500


def test_what_is_used_again_survives_what_is_not() -> None:
    hasher = ChunkHasher(16, memo_bytes=20_000)
    hot, *others = (TokenArray.parse(packed(list(range(n * 1000, n * 1000 + 16)))) for n in range(1, 200))
    list(hasher.hashes(hot, 1))
    for other in others:
        list(hasher.hashes(other, 1))
        assert hasher._memo.find(ROOT, hot.encoded, hot.start) is not None
    assert hasher._memo.find(ROOT, others[0].encoded, others[0].start) is None


@pytest.mark.parametrize("length", [0, 1, 15, 16, 65_535, 65_536])
def test_the_header_tells_how_many_tokens_there_are(length: int) -> None:
    tokens = TokenArray.parse(packed([7] * length))
    assert tokens.length == length
    assert tokens.encoded[tokens.start :] == b"\x07" * length


@pytest.mark.parametrize("value", [None, 5, "text", b"bytes", {"a": 1}, 1.5, True])
def test_what_is_no_array_is_no_list_of_tokens(value: object) -> None:
    with pytest.raises(BadTokensError):
        TokenArray.parse(packed(value))


def test_nothing_at_all_is_no_list_of_tokens() -> None:
    with pytest.raises(BadTokensError):
        TokenArray.parse(b"")


@pytest.mark.parametrize("place", [0, 7, 8, 15, 16, 23])
@pytest.mark.parametrize("known", [0, 1, 2], ids=lambda chunks: f"{chunks} known")
@pytest.mark.parametrize(
    "garbage", [None, "x", b"x", -1, -200, 2**32, 2**63, 1.0, 70000.0, True, [1], {}], ids=lambda value: repr(value)
)
def test_garbage_is_refused_wherever_it_stands(garbage: object, place: int, known: int) -> None:
    """In a known chunk, in the first one never seen, and in a later one."""
    hasher = ChunkHasher(8)
    tokens: list[object] = list(range(70000, 70025))
    hashes(hasher, packed(tokens[: 8 * known]), known)
    tokens[place] = garbage
    with pytest.raises(BadTokensError):
        hashes(hasher, packed(tokens), 3)


def test_garbage_leaves_nothing_wrong_behind() -> None:
    hasher = ChunkHasher(4)
    with pytest.raises(BadTokensError):
        hashes(hasher, packed([1, 2, 3, 4, 5, 6, 7, "8"]), 2)
    assert hashes(hasher, packed(list(range(1, 9))), 2) == oracle(range(1, 9), 4, 2)


@pytest.mark.parametrize("missing", [1, 2, 5, 30])
def test_an_array_that_ends_early_is_refused(missing: int) -> None:
    hasher, encoded = ChunkHasher(4), packed(list(range(1000, 1012)))
    for _ in range(2):
        with pytest.raises(BadTokensError):
            hashes(hasher, encoded[:-missing], 3)


def test_more_chunks_than_tokens_are_refused_before_anything_is_hashed() -> None:
    with pytest.raises(BadTokensError, match="7 tokens do not fill 2 chunks of 4"):
        ChunkHasher(4).hashes(TokenArray.parse(packed([1] * 7)), 2)


def test_no_chunks_have_no_hashes() -> None:
    assert hashes(ChunkHasher(4), packed([1, 2, 3]), 0) == []


class TestHashTokens:
    """What operators ask of is hashed apart from the engine's thread; it must come to the same."""

    @pytest.mark.parametrize(("chunk_size", "tokens", "first", "second"), VECTORS)
    def test_the_protocols_vectors(self, chunk_size: int, tokens: Sequence[int], first: str, second: str) -> None:
        assert [x.hex() for x in hash_tokens(tokens, chunk_size)[:2]] == [first, second]

    @given(tokens=st.lists(TOKENS, max_size=60), chunk_size=st.integers(1, 12))
    @settings(max_examples=100, deadline=None)
    def test_the_hashes_of_all_complete_chunks_are_those_of_the_definition(
        self, tokens: list[int], chunk_size: int
    ) -> None:
        chunks = len(tokens) // chunk_size
        assert hash_tokens(tokens, chunk_size) == oracle(tokens, chunk_size, chunks)
        assert hash_tokens(tuple(tokens), chunk_size) == hashes(ChunkHasher(chunk_size), packed(tokens), chunks)

    @pytest.mark.parametrize("length", [0, 1, 15])
    def test_less_than_a_chunk_has_none(self, length: int) -> None:
        assert hash_tokens(range(length), 16) == []
