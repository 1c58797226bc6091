"""Identity of cached objects.

A chunk of tokens is cached as one object per KV shard and layout. Its key is a namespace, which stands for everything
but the tokens, followed by the chunk's hash, which stands for the tokens and all before them. Keys are plain bytes:
tables of a hundred thousand of them are made and compared all the time.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

import msgspec
from blake3 import blake3

NAMESPACE_BYTES: Final = 16

_SALT_LIMIT: Final = 128
_SALT_FORBIDDEN: Final = frozenset("@/\\\0")


@dataclass(frozen=True, slots=True)
class Namespace:
    """Everything that an object's key stands for but the tokens."""

    model_name: str
    world_size: int
    shard: int
    fingerprint: bytes
    """Of the layout."""
    cache_salt: str
    prefix: bytes = field(init=False, compare=False)
    """16 bytes that differ whenever one of the above does: the beginning of the keys."""

    def __post_init__(self) -> None:
        identity = (self.model_name, self.world_size, self.shard, self.fingerprint, self.cache_salt)
        object.__setattr__(self, "prefix", blake3(msgspec.msgpack.encode(identity)).digest(NAMESPACE_BYTES))


namespace = lru_cache(maxsize=16384)(Namespace)
"""`Namespace`, with those in use kept: every request of a shard names the same one."""


def salt_is_valid(cache_salt: str) -> bool:
    """True for at most 128 characters without `@`, `/`, backslash and NUL."""
    return len(cache_salt) <= _SALT_LIMIT and _SALT_FORBIDDEN.isdisjoint(cache_salt)
