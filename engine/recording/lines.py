"""Lookups as lines of a trace, in the format of the Mooncake traces. Pure.

A line has the time, how long the prompt is, and one id for each of its complete chunks. Equal ids within one recording
stand for equal prefixes under the same model and salt. No token is written. The ids come from a hash with a key of
the recording's own, which is never written either: they cannot be told from guessed prompts, nor compared with those of
another recording.
"""

from __future__ import annotations

from typing import Final

import msgspec
from blake3 import blake3

from engine.hashing import BadTokensError, ChunkHasher, TokenArray
from engine.keys import namespace
from engine.traffic import Prompt

KEY_BYTES: Final = 32
_MEMO_BYTES: Final = 8 << 20
_ID_BYTES: Final = 7
_SPARE_BITS: Final = 3
"""An id has 53 bits: what every reader of JSON can hold."""


class TraceLines:
    """The lines of one recording. Belongs to one thread."""

    def __init__(self, key: bytes, chunk_size: int, began: float) -> None:
        """`key`: 32 random bytes. `began`: when the recording did, in the engine's seconds."""
        self._key = key
        self._began = began
        self._hasher = ChunkHasher(chunk_size, _MEMO_BYTES)

    def line(self, prompt: Prompt) -> bytes | None:
        """The line of a lookup, with its end; None for one whose tokens are none."""
        try:
            tokens = TokenArray.parse(bytes(prompt.key.token_ids))
            ids = self._ids(prompt, tokens)
        except BadTokensError:
            return None
        line = {
            "timestamp": max(0, round(1000 * (prompt.now - self._began))),
            "input_length": tokens.length,
            "output_length": 0,
            "hash_ids": ids,
            "block_size": self._hasher.chunk_size,
        }
        return msgspec.json.encode(line) + b"\n"

    def _ids(self, prompt: Prompt, tokens: TokenArray) -> list[int]:
        asked = prompt.key
        chunks = max(0, min(asked.end, tokens.length)) // self._hasher.chunk_size
        space = namespace(asked.model_name, asked.world_size, 0, b"", asked.cache_salt).prefix
        return [self._id(space + hash_) for hash_ in self._hasher.hashes(tokens, chunks)]

    def _id(self, chunk: bytes) -> int:
        return int.from_bytes(blake3(chunk, key=self._key).digest(_ID_BYTES), "big") >> _SPARE_BITS
