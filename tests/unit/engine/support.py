"""What the engine's unit tests share: keys and registrations as a client writes them, its segments, its socket."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from math import prod
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import zmq

from engine.events import ReplyTo, RequestArrived
from engine.layouts import ITEM_BYTES
from engine.wire import codec
from engine.wire import messages as m

SHM = Path("/dev/shm")
HANDLE = b"stub_ipc_handle"
"""What a client on a CPU sends as its event handle."""
RECEIVE_SECONDS = 20
NOBODYS_UID = b"\xff"
"""Of a reply that only shows that the connection stands."""
_numbers = count()


def packed(value: object) -> bytes:
    """One msgpack frame."""
    return msgspec.msgpack.encode(value)


def unpacked(frame: bytes) -> Any:
    return msgspec.msgpack.decode(frame)


def key(
    tokens: Sequence[int],
    start: int = 0,
    end: int | None = None,
    *,
    worker_id: int | None = None,
    model_name: str = "m",
    world_size: int = 1,
    request_id: str = "r",
    cache_salt: str = "",
    num_kv_readers: int = 1,
) -> m.Key:
    """A key as a client sends it; `end` is all complete chunks of 16 tokens unless it is given."""
    return m.Key(
        model_name=model_name,
        world_size=world_size,
        worker_id=worker_id,
        token_ids=msgspec.Raw(packed(list(tokens))),
        start=start,
        end=len(tokens) // 16 * 16 if end is None else end,
        request_id=request_id,
        cache_salt=cache_salt,
        num_kv_readers=num_kv_readers,
    )


def contiguous(shape: Sequence[int]) -> list[int]:
    """Strides of a tensor without gaps."""
    return [prod(shape[index + 1 :]) for index in range(len(shape))]


def cpu_tensor(
    shape: Sequence[int],
    stride: Sequence[int] | None = None,
    offset: int = 0,
    *,
    shm_name: str = "/segment",
    nbytes: int | None = None,
    dtype: str = "bfloat16",
    version: int = 1,
) -> dict[str, Any]:
    """A descriptor's body; the segment ends where the tensor does unless `nbytes` is given."""
    stride = contiguous(shape) if stride is None else stride
    last = sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
    return {
        "type": "cpu_shm",
        "shm_name": shm_name,
        "nbytes": ITEM_BYTES[dtype] * (offset + last + 1) if nbytes is None else nbytes,
        "version": version,
        "metadata": {
            "dtype": dtype,
            "shape": list(shape),
            "stride": list(stride),
            "storage_offset": offset,
            "device_uuid": "cpu",
        },
    }


def cuda_tensor(shape: Sequence[int], *, handle: bytes = b"h" * 64, storage_bytes: int = 1 << 20) -> dict[str, Any]:
    """The body of a descriptor of CUDA memory that nobody has."""
    return {
        "type": "cuda",
        "version": 1,
        "handle": [0, handle, storage_bytes, 0, b"counter", 0, b"event", True],
        "metadata": {
            "dtype": "bfloat16",
            "shape": list(shape),
            "stride": contiguous(shape),
            "storage_offset": 0,
            "device_uuid": "GPU-none",
        },
    }


def extensions(bodies: Iterable[object], code: int = 1) -> bytes:
    """The `kv_caches` frame of these descriptors."""
    return packed([msgspec.msgpack.Ext(code, packed(body)) for body in bodies])


def group(indices: Sequence[int], tokens_per_block: int = 8, group_id: int = 0, **more: object) -> dict[str, object]:
    """A group info."""
    return {"engine_group_id": group_id, "layer_indices": list(indices), "tokens_per_block": tokens_per_block, **more}


def register(
    instance_id: int,
    bodies: Sequence[object],
    *,
    model_name: str = "m",
    world_size: int = 1,
    kv_layout: str | None = "HND",
    groups: Sequence[object] | None = None,
) -> m.RegisterKVCache:
    """A registration for copies by the server; one group of all tensors, 8 tokens a block, unless it is given."""
    infos = [group(range(len(bodies)))] if groups is None else groups
    hints = {} if kv_layout is None else {"kv_layout": kv_layout}
    return m.RegisterKVCache(
        instance_id, extensions(bodies), model_name, world_size, packed("vllm"), packed(hints), packed(infos)
    )


def register_engine_driven(instance_id: int, *, model_name: str = "m", **more: object) -> m.RegisterEngineDriven:
    """A registration for copies by the engine: objects of 2 layers x 16 tokens x 16 values, 1,024 bytes."""
    payload: dict[str, object] = {
        "instance_id": instance_id,
        "model_name": model_name,
        "world_size": 1,
        "block_size": 8,
        "num_layers": 2,
        "hidden_dim_size": 16,
        "dtype_str": "bfloat16",
        "use_mla": True,
        "num_physical_slots": 16,
    }
    return m.RegisterEngineDriven(packed(payload | more))


def arrived(message: m.Message, now: float = 0.0, *, client: bytes = b"c", waited: float = 0.0) -> RequestArrived:
    """The event of a request, with a uid of its own."""
    operation = codec.BY_MESSAGE[type(message)]
    to = ReplyTo(client, packed(next(_numbers)), packed(operation.name))
    return RequestArrived(now, now - waited, to, message)


class FakeClock:
    """A clock that stands still until it is told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Segment:
    """A client's shared memory, filled with random bytes."""

    def __init__(self, nbytes: int, *, empty: bool = False) -> None:
        """`empty`: zeros that take no memory until they are written."""
        self.name = f"/kvkeep_test_{os.getpid()}_{next(_numbers)}"
        self.path = SHM / self.name[1:]
        with self.path.open("xb") as file:
            if empty:
                file.truncate(nbytes)
            else:
                file.write(np.random.default_rng(nbytes).bytes(nbytes))
        self.bytes = np.memmap(self.path, np.uint8, "r+")
        """The memory itself."""

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)


class Client:
    """A DEALER socket of a client."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], endpoint: str) -> None:
        self._socket = context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.RCVTIMEO, RECEIVE_SECONDS * 1000)
        self._socket.connect(endpoint)
        self._uids = count(1000)

    def send(self, *frames: bytes) -> None:
        self._socket.send_multipart(frames)

    def receive(self) -> list[bytes]:
        """The next reply to a request of this client; fails after a while without one."""
        while (reply := self._socket.recv_multipart())[0] == NOBODYS_UID:
            pass
        return reply

    def start(self, message: m.Message) -> bytes:
        """Sends a request; returns its uid."""
        operation = codec.BY_MESSAGE[type(message)]
        name = operation.name if operation.id is None else operation.id
        uid = packed(next(self._uids))
        self.send(uid, packed(name), *codec.encode(message))
        return uid

    def ask(self, message: m.Message) -> Any:
        """The decoded answer to a request; None for a reply without a value."""
        uid = self.start(message)
        reply = self.receive()
        assert reply[0] == uid, f"a reply to {reply[0].hex()} where one to {uid.hex()} was due"
        return unpacked(reply[2]) if len(reply) > 2 else None

    def fence(self) -> list[list[bytes]]:
        """Everything that was sent to this client and not received yet.

        The server answers one client's immediate operations in order, so what comes before the answer to this last
        question is all there is.
        """
        uid = self.start(m.GetChunkSize())
        early = []
        while (reply := self.receive())[0] != uid:
            early.append(reply)
        return early

    @contextmanager
    def monitored(self, event: int) -> Iterator[zmq.Socket[bytes]]:
        """A socket that is readable once such an event of the connection has happened."""
        with self._socket.get_monitor_socket(event) as monitor:
            yield monitor
        self._socket.disable_monitor()

    def close(self) -> None:
        self._socket.close()
