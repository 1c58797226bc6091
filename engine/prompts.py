"""From the key of a request to the chunks it is about. Everything a client could get wrong in a key is refused here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from engine.hashing import BadTokensError, ChunkHasher, TokenArray
from engine.keys import Namespace, namespace, salt_is_valid
from engine.wire.limits import MAX_TOKENS
from engine.wire.messages import Key
from engine.workers import Range, Worker


class RefusedError(Exception):
    """A request that does not fit; it is answered with its operation's failure value. Says what does not fit."""


@dataclass(frozen=True, slots=True)
class Chunks:
    """A range of one shard's chunks, with all chunks before it."""

    namespace: Namespace
    keys: list[bytes]
    """Object keys from the first chunk of the prompt to the last of the range."""
    first: int
    """Index of the first chunk of the range."""

    @property
    def count(self) -> int:
        return len(self.keys) - self.first

    @property
    def wanted(self) -> list[bytes]:
        """The object keys of the range itself."""
        return self.keys[self.first :]

    @property
    def suffix_first(self) -> list[bytes]:
        """All keys, last chunk first: the order in which a request touches them."""
        return self.keys[::-1]

    @property
    def range(self) -> Range:
        return Range(self.namespace.prefix, self.first, len(self.keys), self.keys[-1] if self.keys else b"")


class Prompts:
    """Reads keys. Belongs to the engine thread."""

    def __init__(self, hasher: ChunkHasher) -> None:
        self._hasher = hasher
        self.chunk_size = hasher.chunk_size

    def prefix(self, key: Key) -> tuple[int, Iterator[bytes]]:
        """How many complete chunks a lookup is about, and their hashes as they are asked for. Raises RefusedError."""
        tokens = self._tokens(key)
        chunks = max(0, min(key.end, tokens.length)) // self.chunk_size
        return chunks, self._hashes(tokens, chunks)

    def chunks(self, key: Key, worker: Worker) -> Chunks:
        """The chunks that a worker stores or retrieves. Raises RefusedError."""
        layout, size, shard = worker.layout, self.chunk_size, key.worker_id
        if layout is None:
            raise RefusedError(f"worker {worker.instance_id} is {worker.state}: {worker.problem}")
        if (key.model_name, key.world_size) != worker.pair:
            raise RefusedError(f"worker {worker.instance_id} is registered for {worker.pair}, not {key.model_name!r}")
        if shard is None or not 0 <= shard < key.world_size:
            raise RefusedError(f"shard {shard} is not one of {key.world_size}")
        if not 0 <= key.start <= key.end or key.start % size or key.end % size:
            raise RefusedError(f"[{key.start}, {key.end}) is no range of chunks of {size} tokens")
        tokens = self._tokens(key)
        space = namespace(key.model_name, key.world_size, shard, layout.fingerprint, key.cache_salt)
        keys = [space.prefix + hash_ for hash_ in self._hashes(tokens, key.end // size)]
        return Chunks(space, keys, key.start // size)

    def _tokens(self, key: Key) -> TokenArray:
        if not salt_is_valid(key.cache_salt):
            raise RefusedError("the cache salt is longer than 128 characters or holds one of @ / \\ NUL")
        try:
            tokens = TokenArray.parse(bytes(key.token_ids))
        except BadTokensError as error:
            raise RefusedError(str(error)) from None
        if tokens.length > MAX_TOKENS:
            raise RefusedError(f"the prompt has {tokens.length} tokens; {MAX_TOKENS} are possible")
        return tokens

    def _hashes(self, tokens: TokenArray, chunks: int) -> Iterator[bytes]:
        try:
            yield from self._hasher.hashes(tokens, chunks)
        except BadTokensError as error:
            raise RefusedError(str(error)) from None
