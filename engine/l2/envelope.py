"""The envelope of every object in L2: a header that says what the payload is, and lets anybody tell that it still is.

An object is the header, `HEADER_BYTES` long, and the payload. All numbers are little-endian:

| bytes | what |
|---|---|
| 8 | magic: `KVKEEP\\0` and the version of the format |
| 8 | length of the payload |
| 16 | XXH3-128 of the payload |
| 2 | length of the identity |
| ... | identity: key, model, world size, shard, layout fingerprint, cache salt as MessagePack; then zeros |
| 16 | XXH3-128 of all of the header before |

The fingerprint stands for the transfer mode, dtype, layout and rank; see `layouts.py`. Pure.
"""

from __future__ import annotations

from struct import Struct
from typing import Final

import msgspec

from engine.checksum import checksum, new_checksum
from engine.keys import Namespace

HEADER_BYTES: Final = 4096
"""A page, so that the payload behind it may be read and written by pages too."""

_MAGIC: Final = b"KVKEEP\0\x01"
_FIELDS: Final = Struct("<8sQ16sH")
_DIGEST_BYTES: Final = 16
_Identity = tuple[bytes, str, int, int, bytes, str]
_IDENTITY_LIMIT: Final = HEADER_BYTES - _FIELDS.size - _DIGEST_BYTES


class EnvelopeError(Exception):
    """An object that is not what its name says, or cannot be put into an envelope. Says what is wrong."""


def seal(key: bytes, namespace: Namespace, payload: memoryview, header: memoryview) -> bytes:
    """Writes the header for a payload; returns the checksum of that.

    Raises EnvelopeError if the names in the namespace are too long for it.
    """
    identity = _identity(key, namespace)
    if len(identity) > _IDENTITY_LIMIT:
        raise EnvelopeError(f"the names of model and salt take {len(identity)} bytes, more than {_IDENTITY_LIMIT}")
    sealed = checksum(payload)
    front = _FIELDS.pack(_MAGIC, len(payload), sealed, len(identity)) + identity
    front = front.ljust(HEADER_BYTES - _DIGEST_BYTES, b"\0")
    header[:] = front + checksum(front)
    return sealed


class PayloadHash:
    """Length and hash of an object's payload, while the bytes of the object come in."""

    def __init__(self) -> None:
        self._hash = new_checksum()
        self._seen = 0
        """Bytes of the object, with the header."""

    def add(self, piece: memoryview) -> None:
        """The next bytes of the object."""
        of_header = max(0, HEADER_BYTES - self._seen)
        self._hash.update(piece[of_header:])
        self._seen += len(piece)

    @property
    def size(self) -> int:
        """Bytes of the payload."""
        return max(0, self._seen - HEADER_BYTES)

    def digest(self) -> bytes:
        return self._hash.digest()


def check(key: bytes, namespace: Namespace, header: memoryview, payload: PayloadHash) -> None:
    """Raises EnvelopeError unless this is the object of that key, every byte as it was sealed."""
    _check(_identity(key, namespace), header, payload)


def check_named(key: bytes, header: memoryview, payload: PayloadHash) -> None:
    """The same for who knows the key alone: what the header says of model, layout and the rest has to fit it.

    A `check` with any namespace that has this key then finds the same.
    """
    _, _, identity = _opened(header)
    try:
        named, model_name, world_size, shard, fingerprint, cache_salt = msgspec.msgpack.decode(identity, type=_Identity)
        namespace = Namespace(model_name, world_size, shard, fingerprint, cache_salt)
    except (msgspec.MsgspecError, UnicodeError, OverflowError):
        raise EnvelopeError("the header names no object") from None
    if named != key or not key.startswith(namespace.prefix):
        raise EnvelopeError("it is the object of another key")
    _check(_identity(key, namespace), header, payload)


def _check(identity: bytes, header: memoryview, payload: PayloadHash) -> None:
    length, sealed, found = _opened(header)
    if found != identity:
        raise EnvelopeError("it is the object of another key, model or layout")
    if length != payload.size:
        raise EnvelopeError(f"the payload has {length} bytes instead of {payload.size}")
    if sealed != payload.digest():
        raise EnvelopeError("the payload is damaged")


def _opened(header: memoryview) -> tuple[int, bytes, bytes]:
    """Length and hash of the payload, and the identity, of a header that is as it was sealed. Raises EnvelopeError."""
    front = bytes(header[:-_DIGEST_BYTES])
    if checksum(front) != header[-_DIGEST_BYTES:]:
        raise EnvelopeError("the header is damaged")
    magic, length, sealed, identity_length = _FIELDS.unpack_from(front)
    if magic != _MAGIC:
        raise EnvelopeError("the header is of another format")
    return length, sealed, front[_FIELDS.size : _FIELDS.size + identity_length]


def _identity(key: bytes, namespace: Namespace) -> bytes:
    return msgspec.msgpack.encode(
        (
            key,
            namespace.model_name,
            namespace.world_size,
            namespace.shard,
            namespace.fingerprint,
            namespace.cache_salt,
        )
    )
