"""What reads foreign bytes, each as a function that takes any bytes and raises if its reader breaks a promise.

A reader refuses with its own error, or accepts; and what it accepts has to be right, by an account of its own here.
"""

from __future__ import annotations

import json
import random
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from math import isnan, prod
from tempfile import NamedTemporaryFile
from typing import Final

import msgspec
from libvalkey import ProtocolError
from xxhash import xxh3_128_digest

from engine.hashing import BadTokensError, ChunkHasher, TokenArray, hash_tokens
from engine.keys import Namespace
from engine.l2.envelope import HEADER_BYTES, EnvelopeError, PayloadHash, check, seal
from engine.l2.resp import Exchange, RefusedError
from engine.layouts import (
    CUDA_HANDLE_ITEMS,
    ITEM_BYTES,
    EngineDrivenPayload,
    KVLayout,
    LayoutError,
    read_kv_layout,
    slot_layout,
)
from engine.simulation.trace import TraceError, parse_trace
from engine.status import LayoutReport
from engine.transfer.plan import Stack, stacks
from engine.wire import codec
from engine.wire import messages as m
from service import assets
from service.problems import ConfigError
from service.schema import load_schema
from service.settings import load_settings
from tests.fuzz.hostile import Frames

CHUNK: Final = 16
_PATIENCE: Final = 20.0
_SCHEMA: Final = load_schema(assets.schema_path())
Target = Callable[[bytes], None]


def joined(frames: Sequence[bytes]) -> bytes:
    """Several frames as one input: each behind its length."""
    return b"".join(len(frame).to_bytes(2, "big") + frame for frame in frames if len(frame) < 1 << 16)


def parted(data: bytes) -> Frames:
    """The frames of any bytes; the last one ends where they do."""
    frames = []
    while len(data) > 2:
        end = 2 + int.from_bytes(data[:2], "big")
        frames.append(data[2:end])
        data = data[end:]
    return frames


def codec_target(data: bytes) -> None:
    """A request is read or refused with DecodeError; written again it is the same, and so it is read again."""
    op, *payload = parted(data) or [b""]
    operation = codec.find_operation(op)
    if operation is None:
        return
    try:
        message = codec.decode(operation, payload)
    except codec.DecodeError:
        return
    assert type(message) is operation.message
    again = codec.encode(message)
    second = codec.decode(operation, again)
    assert codec.encode(second) == again, (message, second)
    assert second == message or _is_nan(message), (message, second)
    key = getattr(message, "key", None)
    if key is not None:
        _same_key(key, payload[0])


def _is_nan(message: m.Message) -> bool:
    """Holds the only value that is not equal to itself."""
    return isinstance(message, m.WaitPrefetchStatus) and isnan(message.timeout)


def _same_key(key: m.Key, frame: bytes) -> None:
    """A key that the decoder understands as a whole is read as that one, and as nobody's but the sender's."""
    with suppress(msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        assert key == msgspec.msgpack.decode(frame, type=m.Key), (key, frame)


def kv_layout_target(data: bytes) -> None:
    """A registration is refused with LayoutError, or all its blocks lie in the storage that it describes."""
    kv_caches, hints, groups = (*parted(data), b"", b"", b"")[:3]
    try:
        layout = read_kv_layout(kv_caches, hints, groups, CHUNK)
    except LayoutError:
        return
    for group in layout.groups:
        for stack in stacks(group):
            _inside(stack, layout)
        assert group.blocks_per_chunk * group.tokens_per_block == CHUNK
    assert set().union(*(group.layer_indices for group in layout.groups)) == set(range(len(layout.descriptors)))
    assert layout.object_bytes > 0
    _can_be_shown(layout.report)


def _inside(stack: Stack, layout: KVLayout) -> None:
    """Every address that a copy computes for the stack: the first and the last of each plane and block."""
    descriptor = layout.descriptors[stack.storage]
    storage = descriptor.nbytes if descriptor.type == "cpu_shm" else descriptor.handle[2]
    assert descriptor.type == "cpu_shm" or len(descriptor.handle) == CUDA_HANDLE_ITEMS
    assert min(stack.planes, stack.num_blocks, stack.block_bytes) > 0
    assert min(stack.offset, stack.plane_stride, stack.block_stride) >= 0
    last = stack.offset + (stack.planes - 1) * stack.plane_stride + (stack.num_blocks - 1) * stack.block_stride
    assert last + stack.block_bytes <= storage, (stack, storage)
    assert stack.num_blocks == 1 or stack.block_stride >= stack.block_bytes, stack
    width = stack.item_bytes(0)
    assert not any(place % width for place in (stack.offset, stack.block_bytes, stack.block_stride, stack.plane_stride))


def slot_layout_target(data: bytes) -> None:
    """The registration of a worker that copies is refused, or describes objects whose size is their shape's."""
    try:
        payload = msgspec.msgpack.decode(data, type=EngineDrivenPayload)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return
    try:
        layout = slot_layout(payload, CHUNK)
    except LayoutError:
        return
    assert min(layout.shape) > 0
    assert layout.object_bytes == prod(layout.shape) * ITEM_BYTES[layout.dtype]
    _can_be_shown(layout.report)


def _can_be_shown(report: LayoutReport) -> None:
    json.dumps(asdict(report), allow_nan=False)


_NAMESPACE: Final = Namespace("model", 2, 1, b"f" * 16, "salt")
_FIELDS_BYTES: Final = 34
"""Of the header, before the identity, whose length is the last of them."""
_KEY: Final = _NAMESPACE.prefix + b"k" * 32


def envelope_target(data: bytes) -> None:
    """An object is refused with EnvelopeError, or it is, byte for byte, one that was sealed."""
    _opens(data.ljust(HEADER_BYTES, b"\0") if data[:1] == b"K" else _resealed(data))
    # What was sealed is opened, whatever it holds, and never with a byte that differs.
    header = bytearray(HEADER_BYTES)
    payload = data[:2048]
    seal(_KEY, _NAMESPACE, memoryview(payload), memoryview(header))
    sealed = bytes(header) + payload
    assert _opens(sealed)
    rng = random.Random(data)
    place = rng.randrange(len(sealed))
    other = sealed[:place] + bytes((sealed[place] ^ rng.randrange(1, 256),)) + sealed[place + 1 :]
    assert not _opens(other), place
    assert not _opens(sealed[:-1] if payload else sealed + b"\0")


def _resealed(data: bytes) -> bytes:
    """A header with any bytes in it and a right checksum, and a payload: what only a forger writes."""
    front = data[: HEADER_BYTES - 16].ljust(HEADER_BYTES - 16, b"\0")
    return front + xxh3_128_digest(front) + data[HEADER_BYTES - 16 :]


def _opens(sealed: bytes) -> bool:
    seen = PayloadHash()
    half = len(sealed) // 2
    seen.add(memoryview(sealed)[:half])
    seen.add(memoryview(sealed)[half:])
    try:
        check(_KEY, _NAMESPACE, memoryview(sealed)[:HEADER_BYTES], seen)
    except EnvelopeError:
        return False
    again = bytearray(HEADER_BYTES)
    payload = memoryview(sealed)[HEADER_BYTES:]
    seal(_KEY, _NAMESPACE, payload, memoryview(again))
    # NOTE: Bytes behind the identity are fill: a header whose checksum is right may have others there.
    end = _FIELDS_BYTES + int.from_bytes(sealed[_FIELDS_BYTES - 2 : _FIELDS_BYTES], "little")
    assert again[:end] == sealed[:end], "an object was opened that nobody has sealed"
    return True


def tokens_target(data: bytes) -> None:
    """Chunk hashes are those of the tokens that the encoding says, the first time and from memory, or it is refused."""
    hasher = ChunkHasher(CHUNK)
    expected = _true_hashes(data)
    for _ in range(2):
        try:
            tokens = TokenArray.parse(data)
            found = list(hasher.hashes(tokens, min(tokens.length // CHUNK, 64)))
        except BadTokensError:
            continue
        if expected is not None:
            assert found == expected[:64]


def _true_hashes(data: bytes) -> list[bytes] | None:
    try:
        tokens = msgspec.msgpack.decode(data, type=list[int])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    if not all(0 <= token < 1 << 32 for token in tokens):
        return None
    return hash_tokens(tokens, CHUNK)


def resp_target(data: bytes) -> None:
    """Whatever a server answers, a value is filled in whole or not at all, and no connection is in step that is not."""
    size = data[0] if data else 0
    answer = data[1:]
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(answer)
        theirs.shutdown(socket.SHUT_WR)
        exchange = Exchange(ours, deadline=time.monotonic() + _PATIENCE)
        buffer = bytearray(size)
        try:
            found = exchange.get(b"k", [memoryview(buffer)])
        except (OSError, ProtocolError, RefusedError):
            found = None
        if found == size and exchange.in_step:
            front = b"$%d\r\n" % size
            assert answer.startswith(front + bytes(buffer) + b"\r\n"), answer
    _answers(answer)


def _answers(answer: bytes) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(answer)
        theirs.shutdown(socket.SHUT_WR)
        exchange = Exchange(ours, deadline=time.monotonic() + _PATIENCE)
        exchange.in_step = False
        with suppress(OSError, ProtocolError):
            assert len(exchange.receive(2)) == 2
            assert exchange.in_step


def trace_target(data: bytes) -> None:
    """Lines are refused with TraceError and their number, or are requests whose blocks fit their lengths."""
    try:
        trace = parse_trace(data.splitlines())
    except TraceError:
        return
    assert trace.references == sum(len(request.blocks) for request in trace.requests)
    assert 0 < trace.unique <= trace.references


def config_target(data: bytes) -> None:
    """A document is refused with ConfigError, or becomes settings."""
    with NamedTemporaryFile(suffix=".yaml") as file:
        file.write(data)
        file.flush()
        with suppress(ConfigError):
            load_settings(_SCHEMA, file.name, (), {"NAME": "value"})


TARGETS: Final[dict[str, Target]] = {
    "codec": codec_target,
    "kv_layout": kv_layout_target,
    "slot_layout": slot_layout_target,
    "envelope": envelope_target,
    "tokens": tokens_target,
    "resp": resp_target,
    "trace": trace_target,
    "config": config_target,
}
