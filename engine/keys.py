"""Identity of cached objects.

A chunk of tokens is cached as one object per KV shard and layout. Its key is a namespace, which stands for everything
but the tokens, followed by the chunk's hash, which stands for the tokens and all before them. Keys are plain bytes:
tables of a hundred thousand of them are made and compared all the time.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

import msgspec
from blake3 import blake3

NAMESPACE_BYTES: Final = 16

_SALT_LIMIT: Final = 128
_SALT_FORBIDDEN: Final = frozenset("@/\\\0")


@lru_cache(maxsize=16384)
def namespace(model_name: str, world_size: int, shard: int, fingerprint: bytes, cache_salt: str) -> bytes:
    """16 bytes that differ whenever the model, the sharding, the shard, the layout or the salt does."""
    identity = msgspec.msgpack.encode((model_name, world_size, shard, fingerprint, cache_salt))
    return blake3(identity).digest(NAMESPACE_BYTES)


def salt_is_valid(cache_salt: str) -> bool:
    """True for at most 128 characters without `@`, `/`, backslash and NUL."""
    return len(cache_salt) <= _SALT_LIMIT and _SALT_FORBIDDEN.isdisjoint(cache_salt)
