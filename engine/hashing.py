"""Chunk hashes of a prompt, from the tokens as they stand on the wire.

The hash of chunk i is BLAKE3-256(hash of chunk i - 1 || its tokens as big-endian uint32), so equal hashes mean equal
prefixes. A request sends all its tokens again in every call, and turning msgpack integers into packed ones costs more
than hashing them. So encoded chunks that were hashed before are recognised by their bytes, and only what is new is
decoded. Recognition compares the bytes themselves: there is nothing that could collide.
"""

from __future__ import annotations

import re
import sys
from array import array
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import msgspec
import numpy as np
from blake3 import blake3

HASH_BYTES: Final = 32
ROOT: Final = blake3((0).to_bytes(8, "big") + (0).to_bytes(4, "big")).digest()
"""Stands for the hash before the first chunk."""

_MEMO_BYTES: Final = 64 << 20
_MEMO_ENTRY_OVERHEAD: Final = 400
"""Bytes an entry costs besides its encoded tokens: two hashes, the head, the tuples and the table."""
_HEAD_BYTES: Final = 32
"""How many leading bytes find a candidate; the whole chunk is compared after that. Shorter ones are not remembered."""

_ints = msgspec.msgpack.Decoder(list[int])


class BadTokensError(ValueError):
    """The tokens are no msgpack array of integers in [0, 2^32)."""


class TokenArray(NamedTuple):
    """The tokens of a prompt as a msgpack array: how many it says there are, and where the first one begins."""

    encoded: bytes
    length: int
    start: int

    @classmethod
    def parse(cls, encoded: bytes) -> TokenArray:
        """Reads the array's header only. Raises BadTokensError."""
        first = encoded[0] if encoded else 0
        if first & 0xF0 == 0x90:
            return cls(encoded, first & 0x0F, 1)
        if first == 0xDC:
            return cls(encoded, int.from_bytes(encoded[1:3], "big"), 3)
        if first == 0xDD:
            return cls(encoded, int.from_bytes(encoded[1:5], "big"), 5)
        raise BadTokensError("token_ids is not an array")


class _Known(NamedTuple):
    encoded: bytes
    hash: bytes


class ChunkHasher:
    """Hashes prompts in chunks of `chunk_size` tokens. Belongs to one thread."""

    def __init__(self, chunk_size: int, memo_bytes: int = _MEMO_BYTES) -> None:
        self.chunk_size = chunk_size
        self._memo = _Memo(memo_bytes)
        self._encoded_chunk = _integers(chunk_size)

    def hashes(self, tokens: TokenArray, chunks: int) -> Iterator[bytes]:
        """The hashes of the first `chunks` chunks, 32 bytes each, computed as they are asked for.

        Raises BadTokensError, at the chunk where it is found.
        """
        if chunks * self.chunk_size > tokens.length:
            raise BadTokensError(f"{tokens.length} tokens do not fill {chunks} chunks of {self.chunk_size}")
        return self._hashes(tokens, chunks)

    def _hashes(self, tokens: TokenArray, chunks: int) -> Iterator[bytes]:
        encoded, position, parent = tokens.encoded, tokens.start, ROOT
        find = self._memo.find
        done = 0
        while done < chunks:
            known = find(parent, encoded, position)
            if known is None:
                break
            parent = known.hash
            position += len(known.encoded)
            done += 1
            yield parent
        if done == chunks:
            return
        # PERF: A lookup ends at its first miss, which is most often the first chunk never seen: that one is decoded
        # alone, and the rest, in one go, only if somebody wants to know.
        chunk = self._encoded_chunk.match(encoded, position)
        if chunk is None:
            raise BadTokensError(f"there are not {self.chunk_size} integers in [0, 2^32) after byte {position}")
        end = chunk.end()
        first = _decode(encoded[position:end], self.chunk_size)
        parent = self._hash(first, 0, parent, encoded[position:end])
        yield parent
        yield from self._rest(tokens, done + 1, chunks, end, parent)

    def _rest(self, tokens: TokenArray, done: int, chunks: int, position: int, parent: bytes) -> Iterator[bytes]:
        if done == chunks:
            return
        values = _decode(tokens.encoded[position:], tokens.length - done * self.chunk_size)
        ends = _encoded_ends(values, self.chunk_size, len(tokens.encoded) - position)
        start = position
        for index in range(chunks - done):
            end = position + ends[index] if ends else start
            parent = self._hash(values, index, parent, tokens.encoded[start:end])
            start = end
            yield parent

    def _hash(self, values: array[int], index: int, parent: bytes, encoded: bytes) -> bytes:
        """Hashes chunk `index` of `values`, and remembers its encoding unless that is not known (empty)."""
        packed = values[index * self.chunk_size : (index + 1) * self.chunk_size]
        if sys.byteorder == "little":
            packed.byteswap()
        digest = blake3(parent + packed.tobytes()).digest()
        if encoded:
            self._memo.add(parent, encoded, digest)
        return digest


class _Memo:
    """Encoded chunks and their hashes, found by the hash before them and their first bytes.

    Two generations bound its memory without bookkeeping per use: when the young one is full it becomes the old one, and
    what is used again moves back to the young one.
    """

    def __init__(self, max_bytes: int) -> None:
        self._young: dict[tuple[bytes, bytes], _Known] = {}
        self._old: dict[tuple[bytes, bytes], _Known] = {}
        self._young_bytes = 0
        self._generation_bytes = max_bytes // 2

    def find(self, parent: bytes, encoded: bytes, position: int) -> _Known | None:
        place = (parent, encoded[position : position + _HEAD_BYTES])
        known = self._young.get(place)
        if known is None:
            known = self._old.get(place)
            if known is not None:
                self._put(place, known)
        return known if known is not None and encoded.startswith(known.encoded, position) else None

    def add(self, parent: bytes, encoded: bytes, digest: bytes) -> None:
        if len(encoded) >= _HEAD_BYTES:
            self._put((parent, encoded[:_HEAD_BYTES]), _Known(encoded, digest))

    def _put(self, place: tuple[bytes, bytes], known: _Known) -> None:
        self._young[place] = known
        self._young_bytes += len(known.encoded) + _MEMO_ENTRY_OVERHEAD
        if self._young_bytes > self._generation_bytes:
            self._old, self._young, self._young_bytes = self._young, {}, 0


_INTEGER: Final = rb"\xcd..|\xce.{4}|[\x00-\x7f]|\xcc.|\xcf.{8}|\xd0.|\xd1..|\xd2.{4}|\xd3.{8}"
"""A msgpack integer, but for a negative one in short form; the forms that most tokens have come first."""


def _integers(count: int) -> re.Pattern[bytes]:
    return re.compile(rb"(?:%b){%d}+" % (_INTEGER, count), re.DOTALL)


def hash_tokens(tokens: Sequence[int], chunk_size: int) -> list[bytes]:
    """The hashes of the complete chunks of tokens in [0, 2^32). Remembers nothing, so any thread may call it."""
    parent, hashes = ROOT, []
    for start in range(0, len(tokens) - chunk_size + 1, chunk_size):
        packed = np.array(tokens[start : start + chunk_size], dtype=">u4")
        parent = blake3(parent + packed.tobytes()).digest()
        hashes.append(parent)
    return hashes


def _decode(body: bytes, count: int) -> array[int]:
    """The `count` msgpack integers in `body`, as native uint32."""
    try:
        return array("I", _ints.decode(b"\xdd" + count.to_bytes(4, "big") + body))
    except (msgspec.MsgspecError, OverflowError, ValueError, TypeError) as error:
        raise BadTokensError(f"token_ids holds something else than integers in [0, 2^32): {error}") from None


def _encoded_ends(values: array[int], chunk_size: int, encoded_bytes: int) -> list[int] | None:
    """Where each complete chunk ends in the encoding, if every integer has its shortest form; else None."""
    tokens = np.frombuffer(values, dtype=np.uint32)
    lengths = 1 + (tokens > 0x7F).astype(np.uint8) + (tokens > 0xFF) + 2 * (tokens > 0xFFFF).astype(np.uint8)
    if int(lengths.sum()) != encoded_bytes:
        return None
    complete = len(values) // chunk_size
    per_chunk = lengths[: complete * chunk_size].reshape(complete, chunk_size).sum(axis=1, dtype=np.int64)
    ends: list[int] = np.cumsum(per_chunk).tolist()
    return ends
