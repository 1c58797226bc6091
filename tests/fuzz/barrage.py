"""Many connections that send what a generator makes, and count what comes back.

Every known operation is answered exactly once, with a value that its client can take; nothing else is answered at all.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Self

import msgspec
import zmq

from engine.layouts import EngineDrivenPayload
from engine.wire import codec
from engine.wire import messages as m
from tests.fuzz.hostile import Frames, noise, packed, spoil
from tests.fuzz.wellformed import Requests, recorded

_CONNECTIONS: Final = 12
BATCH: Final = 256
_MOST_FRAMES: Final = 30
"""No operation has more than eight."""
_PATIENCE: Final = 10.0
"""Seconds within which every message of a batch has to be answered."""

_ANSWERS: Final[dict[str, Any]] = {
    "register_kv_cache_engine_driven_context": m.RegisterEngineDrivenReply,
    "store": tuple[bytes, bool],
    "store_q": tuple[bytes, bool],
    "retrieve": tuple[bytes, bool],
    "cb_retrieve_pre_computed": tuple[bytes, bool],
    "prepare_store": m.PrepareStoreReply,
    "prepare_retrieve": m.PrepareRetrieveReply,
    "commit_store": bool,
    "commit_retrieve": bool,
    "ping": bool,
    "query_prefetch_status": int | None,
    "wait_prefetch_status": int | None,
    "get_chunk_size": int,
    "get_experimental": list[str],
    "noop": str,
    "subscribe_kv_events": m.KVEventBatch,
}
"""What the value of a reply is; the other operations have none."""
_TO_NOBODY: Final = [packed(-1), packed(24)]
"""A reply to no request, which clients do not heed: sent to see whether a connection stands."""
_OPERATIONS: Final[dict[object, codec.Operation]] = {each.id: each for each in codec.OPERATIONS if each.id} | {
    each.name: each for each in codec.OPERATIONS
}


class Spared:
    """What belongs to somebody who must not notice. Any message that would be allowed to disturb them is left out."""

    def __init__(self, names: list[str], instance_ids: list[int], own_segments: list[str]) -> None:
        """`names`: models, salts and segments that only their owners may say."""
        self._names = [name.encode() for name in names]
        self._instance_ids = set(instance_ids)
        self._own = own_segments

    def allows(self, frames: Frames) -> bool:
        """False for what may rightly take something away: a clear, or somebody else's leaving or registering."""
        if any(name in frame for frame in frames for name in self._names):
            return False
        operation = operation_of(frames)
        if operation is None or operation.message is None:
            return True
        try:
            message = codec.decode(operation, frames[1:])
        except Exception:
            # NOTE: Refused, or worse: then the server shall show it, and not this.
            return True
        match message:
            case m.Clear():
                return False
            case m.UnregisterKVCache() | m.UnregisterEngineDriven():
                return message.instance_id not in self._instance_ids
            case m.RegisterKVCache():
                return message.instance_id not in self._instance_ids and self._names_own_memory(message.kv_caches)
            case m.RegisterEngineDriven():
                return _payload_instance(message.payload) not in self._instance_ids
        return True

    def _names_own_memory(self, kv_caches: bytes) -> bool:
        """Other processes have shared memory too, and any of it may be registered."""
        try:
            bodies = [
                msgspec.msgpack.decode(each.data)
                for each in msgspec.msgpack.decode(kv_caches, type=tuple[msgspec.msgpack.Ext, ...])
            ]
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return True
        named = [body.get("shm_name") for body in bodies if isinstance(body, dict)]
        return all(name in self._own or not _exists(name) for name in named if isinstance(name, str))


def _exists(name: str) -> bool:
    plain = name.removeprefix("/")
    if not plain or "\0" in plain or len(plain) > 200:
        return False
    return (Path("/dev/shm") / plain).exists()


def _payload_instance(payload: bytes) -> int | None:
    try:
        return msgspec.msgpack.decode(payload, type=EngineDrivenPayload).instance_id
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


class Generator:
    """Messages without an end; the same ones for the same seed and cast."""

    def __init__(self, seed: int, segment_names: list[str], strangers: list[int], spared: Spared) -> None:
        self._rng = random.Random(seed)
        self._requests = Requests(self._rng, segment_names, strangers)
        self._recorded = recorded(segment_names[0])
        self._spared = spared
        self._pending = self._requests.opening()

    def draw(self) -> Frames:
        """All frames but the first, which tells replies apart."""
        while True:
            frames = self._pending.pop(0) if self._pending else self._any()
            if self._spared.allows(frames):
                return frames

    def _any(self) -> Frames:
        rng = self._rng
        kind = rng.random()
        if kind < 0.3:
            return self._requests.draw()
        if kind < 0.65:
            return spoil(rng, self._requests.draw(), self._recorded)
        if kind < 0.9:
            return spoil(rng, rng.choice(self._recorded), self._recorded)
        if kind < 0.92:
            # Now and then all are there again, whatever the others have made of them.
            self._pending = self._requests.opening()
        return noise(rng)


class Barrage:
    """Connections that send, in batches. Raises AssertionError with the message that was not answered as it should."""

    def __init__(self, endpoint: str, seed: int, draw: Callable[[], Frames]) -> None:
        self.sent = 0
        self.answered = 0
        self.granted = Counter[str]()
        """By operation, how many were answered with something else than its failure value."""
        self.batch: list[Frames] = []
        """What was sent last."""
        self._rng = random.Random(seed)
        self._endpoint = endpoint
        self._draw = draw
        self._context = zmq.Context()
        self._connections = [self._connect() for _ in range(_CONNECTIONS)]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for connection in self._connections:
            connection.close()
        self._context.term()

    def send(self, count: int) -> None:
        """Sends so many messages and waits until all that are owed an answer have it."""
        self.batch = [self._draw() for _ in range(count)]
        for frames in self.batch:
            self.sent += 1
            if len(frames) > _MOST_FRAMES:
                self._send_and_go(frames)
                continue
            # A request's lookup and what follows belong to one connection: half of all messages share one.
            index = self._rng.choice((0, self._rng.randrange(_CONNECTIONS)))
            self._connections[index].send(packed(self.sent), frames)
        deadline = time.monotonic() + _PATIENCE
        for connection in self._connections:
            self.answered += connection.collect(deadline)
        if self._rng.random() < 0.1:
            self._vanish(self._rng.randrange(_CONNECTIONS))

    def suspects(self) -> list[Frames]:
        """Of the last batch, what was sent around the first message that has no answer; all of it if all have one."""
        owed = [uid for connection in self._connections for uid in connection.unanswered()]
        if not owed:
            return self.batch
        index = min(owed) - self.sent - 1 + len(self.batch)
        return self.batch[max(0, index - 20) : index + 10]

    def _vanish(self, index: int) -> None:
        """A client that goes without waiting for its answers; another one comes in its place."""
        for _ in range(20):
            self._connections[index].send(b"gone", self._draw())
        self._connections[index].close()
        self._connections[index] = self._connect()

    def _send_and_go(self, frames: Frames) -> None:
        """Of a message with too many frames nobody says what becomes, nor of the connection that it came by."""
        connection = self._connect()
        connection.send(packed(self.sent), frames)
        connection.close()

    def _connect(self) -> _Connection:
        return _Connection(self._context, self._endpoint, self.granted)


class _Connection:
    """One socket, and what it is owed: by the first and second frame of the reply, the message."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], endpoint: str, granted: Counter[str]) -> None:
        self._granted = granted
        self._socket = context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 100)
        self._socket.connect(endpoint)
        self._owed: dict[tuple[bytes, bytes], Frames] = {}

    def send(self, uid: bytes, frames: Frames) -> None:
        self._socket.send_multipart([uid, *frames])
        operation = operation_of(frames)
        if operation is not None and operation.answers:
            self._owed[uid, frames[0]] = frames

    def unanswered(self) -> list[int]:
        """The numbers of the messages that are still owed an answer."""
        return [msgspec.msgpack.decode(uid, type=int) for uid, _ in self._owed]

    def collect(self, deadline: float) -> int:
        """Takes all answers that are owed; returns how many those were."""
        count = len(self._owed)
        while self._owed:
            left = max(0.0, deadline - time.monotonic())
            assert self._socket.poll(left * 1000), f"not answered: {literal(next(iter(self._owed.values())))}"
            self._take(self._socket.recv_multipart())
        # NOTE: What is answered late and was not owed is found here with the next batch.
        if self._socket.poll(0):
            self._take(self._socket.recv_multipart())
        return count

    def _take(self, reply: list[bytes]) -> None:
        if reply == _TO_NOBODY:
            return
        frames = self._owed.pop((reply[0], reply[1]), None) if len(reply) > 1 else None
        assert frames is not None, f"nobody has asked for the reply {reply}"
        operation = operation_of(frames)
        assert operation is not None  # it was looked up when it was sent
        problem = unfit(operation, reply)
        assert problem is None, f"{problem}, to {literal(frames)}"
        if reply[2:] not in ([], [codec.encode_value(operation.failure)]):
            self._granted[operation.name] += 1

    def close(self) -> None:
        self._socket.close()


def operation_of(frames: Frames) -> codec.Operation | None:
    """What a message asks for, by an account of its own."""
    try:
        named = msgspec.msgpack.decode(frames[0])
    except (IndexError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    return _OPERATIONS.get(named) if type(named) in (int, str) else None


def unfit(operation: codec.Operation, reply: list[bytes]) -> str | None:
    """Why a client of the protocol could not take this reply."""
    kind = _ANSWERS.get(operation.name)
    if kind is None:
        return None if len(reply) == 2 else f"{operation.name} was answered with a value: {reply[2:]}"
    if len(reply) != 3:
        return f"{operation.name} was answered with {len(reply) - 2} values"
    try:
        msgspec.msgpack.decode(reply[2], type=kind)
    except msgspec.MsgspecError as error:
        return f"{operation.name} was answered with what is no answer: {error}"
    return None


def literal(frames: Frames) -> str:
    """A message as it stands in a program. What a spoiled frame repeats thousands of times is cut, with its length."""
    return "[" + ", ".join(map(_shown, frames[:20])) + (f", ... {len(frames)} frames" if len(frames) > 20 else "") + "]"


def _shown(frame: bytes) -> str:
    if len(frame) < 600 or len(set(frame[64:-64])) > 1:
        return repr(frame)
    middle = frame[64:-64]
    return f"{frame[:64]!r} + {middle[:1]!r} * {len(middle)} + {frame[-64:]!r}"
