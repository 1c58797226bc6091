"""Says to a server what recorded clients said, and notes what it answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Self

import msgspec
import numpy as np
import zmq

from engine import Runtime
from engine.wire import messages as m
from tests.unit.engine.support import Client, Segment, packed, unpacked
from tests.unit.engine.wire.golden import Recorded, from_aid, scenario

Step = str | Callable[["Replay"], None]
"""The name of a scenario, or what has to be done before the next one makes sense."""

VLLM_BYTES = 1 << 30


def first_blocks(segment: Segment) -> np.ndarray:
    """Blocks 0 to 7 of the four layers that a real vLLM has in one segment: 4,096 blocks of 64 KiB each."""
    return segment.bytes.reshape(4, 4096, -1)[:, :8]


@dataclass
class Answers:
    """What a scenario's requests were, what they were answered then, and now: the frames, by socket and uid."""

    asked: dict[tuple[str, str], list[bytes]] = field(default_factory=dict)
    recorded: dict[tuple[str, str], list[bytes]] = field(default_factory=dict)
    given: dict[tuple[str, str], list[bytes]] = field(default_factory=dict)
    unasked: list[list[bytes]] = field(default_factory=list)
    """Replies to nothing."""


class Replay:
    """Recorded clients in front of a server. Their shared memory gets names of this process."""

    def __init__(self, server: Runtime) -> None:
        self._server = server
        self._context = zmq.Context()
        self._clients: dict[str, Client] = {}
        self.answers: dict[str, Answers] = {}
        self.segments: dict[str, Segment] = {}
        """By the name in the recording."""
        self.snapshots: dict[str, dict[str, np.ndarray]] = {}
        """The small segments' bytes after each scenario."""
        self.first_blocks: dict[str, np.ndarray] = {}
        """The first blocks of a real vLLM's large segments at the end: [layer, block, bytes]."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for client in self._clients.values():
            client.close()
        self._context.term()
        for name, segment in self.segments.items():
            if len(segment.bytes) == VLLM_BYTES:
                self.first_blocks[name] = np.array(first_blocks(segment))
            segment.remove()

    def run(self, *steps: Step) -> None:
        for step in steps:
            if callable(step):
                step(self)
            else:
                self.answers[step] = self._scenario(step)
                self.snapshots[step] = {
                    name: np.array(segment.bytes)
                    for name, segment in self.segments.items()
                    if len(segment.bytes) != VLLM_BYTES
                }

    def client(self, name: str) -> Client:
        """The socket of a recorded client. It begins like every client, with the question for the chunk size."""
        if name not in self._clients:
            self._clients[name] = Client(self._context, self._server.endpoint)
            self._clients[name].ask(m.GetChunkSize())
        return self._clients[name]

    def segment(self, name: str, nbytes: int) -> Segment:
        """Stands for a segment of the recording."""
        if name not in self.segments:
            segment = self.segments[name] = Segment(nbytes, empty=nbytes == VLLM_BYTES)
            if nbytes == VLLM_BYTES:
                blocks = first_blocks(segment)
                blocks[:] = np.random.default_rng(len(self.segments)).integers(0, 256, blocks.shape, np.uint8)
        return self.segments[name]

    def _scenario(self, name: str) -> Answers:
        answers = Answers()
        sockets = set()
        for message in scenario(name):
            place = message.socket, message.hex[0]
            sockets.add(message.socket)
            if message.is_control:
                self.client(message.socket).send(*message.frames)
            elif message.is_request:
                answers.asked[place] = self._sendable(message)
                self.client(message.socket).send(*answers.asked[place])
            else:
                answers.recorded[place] = message.frames
                self._receive_if_due(message.socket, answers)
        for socket in sockets:
            for reply in self.client(socket).fence():
                self._note(socket, reply, answers)
        return answers

    def _receive_if_due(self, socket: str, answers: Answers) -> None:
        """Waits for one reply, like the recorded client did here, unless all its requests have been answered."""
        if any(place[0] == socket for place in answers.asked.keys() - answers.given.keys()):
            self._note(socket, self.client(socket).receive(), answers)

    @staticmethod
    def _note(socket: str, reply: list[bytes], answers: Answers) -> None:
        place = socket, reply[0].hex()
        if place in answers.asked and place not in answers.given:
            answers.given[place] = reply
        else:
            answers.unasked.append(reply)

    def _sendable(self, message: Recorded) -> list[bytes]:
        frames = message.frames
        for index in message.cut:
            aid = message.decoded["payloads"][index - 2]
            # A cut list of tokens counts from 0; data that were cut were the bytes of a store, of which there are none.
            frames[index] = packed(b"" if isinstance(aid, str) else from_aid(aid))
        if message.decoded["operation"] == "register_kv_cache":
            frames[3] = self._renamed(frames[3])
        return frames

    def _renamed(self, kv_caches: bytes) -> bytes:
        descriptors = []
        for extension in msgspec.msgpack.decode(kv_caches):
            body: dict[str, Any] = unpacked(extension.data)
            body["shm_name"] = self.segment(body["shm_name"], body["nbytes"]).name
            descriptors.append(msgspec.msgpack.Ext(extension.code, packed(body)))
        return packed(descriptors)
