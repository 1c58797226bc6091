"""Requests that a server can serve, to begin with: drawn for workers of its own, and those that were recorded."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

import msgspec

from engine.wire import codec
from engine.wire import messages as m
from tests.fuzz.hostile import LARGEST, NUMBERS, SMALLEST, Frames, packed
from tests.unit.engine.support import (
    HANDLE,
    Segment,
    cpu_tensor,
    extensions,
    group,
    key,
    register,
    register_engine_driven,
)
from tests.unit.engine.wire.golden import NAMES, from_aid, scenario

CHUNK: Final = 16
BLOCKS: Final = 16
BLOCK_BYTES: Final = 512
COPIED: Final = (1, 2, 3)
"""Instance ids of workers whose blocks the server copies, and of those that copy by themselves."""
LENT: Final = (11, 12)
COPIED_MODEL: Final = "fuzz-copied"
LENT_MODEL: Final = "fuzz-lent"
_PROMPTS: Final = tuple([*range(same), *range(1000 * same, 1000 * same + 96 - same)] for same in (0, 16, 40, 64))


@contextmanager
def segments() -> Iterator[list[Segment]]:
    """The memory of the workers whose blocks the server copies."""
    made = [Segment(BLOCKS * BLOCK_BYTES) for _ in COPIED]
    try:
        yield made
    finally:
        for segment in made:
            segment.remove()


def frames_of(message: m.Message) -> Frames:
    """Operation and arguments."""
    operation = codec.BY_MESSAGE[type(message)]
    return [packed(operation.name if operation.id is None else operation.id), *codec.encode(message)]


def recorded(segment_name: str) -> list[Frames]:
    """What recorded clients have asked; where they named their memory, it is this segment."""
    return [
        _completed(message, segment_name)
        for name in NAMES
        for message in scenario(name)
        if message.is_request and not message.is_control
    ]


def _completed(message: Any, segment_name: str) -> Frames:
    frames = message.frames
    for index in message.cut:
        aid = message.decoded["payloads"][index - 2]
        frames[index] = packed(b"" if isinstance(aid, str) else from_aid(aid))
    if message.decoded["operation"] == "register_kv_cache":
        bodies = [msgspec.msgpack.decode(extension.data) for extension in msgspec.msgpack.decode(frames[3])]
        frames[3] = extensions([{**body, "shm_name": segment_name} for body in bodies])
    return frames[1:]


class Requests:
    """Draws requests of every operation that the workers of this cast could send, in no sensible order."""

    def __init__(self, rng: random.Random, segment_names: list[str], strangers: list[int]) -> None:
        """`strangers`: instance ids of workers that are somebody else's."""
        self._rng = rng
        self._segments = segment_names
        self._last_lent = self._key(LENT_MODEL)
        self._ids = (*COPIED, *LENT) * 4 + tuple(strangers)
        self._kinds: Final[list[tuple[int, Callable[[], m.Message]]]] = [
            (3, self._register_copied),
            (2, self._register_hostile),
            (2, self._register_lent),
            (2, self._register_hostile_lent),
            (12, self._store),
            (12, self._retrieve),
            (8, lambda: m.Lookup(self._key(shard=None), packed(1))),
            (8, lambda: m.QueryPrefetchStatus(self._request())),
            (3, lambda: m.WaitPrefetchStatus(self._request(), rng.choice((0.0, 0.01, 1.0, 1e9)))),
            (4, lambda: m.FreeLookupLocks(self._key(shard=None), packed(1))),
            (4, lambda: m.EndSession(self._request())),
            (10, lambda: m.PrepareStore(self._lent_key(), self._id(LENT))),
            (10, lambda: m.CommitStore(self._lent_key(), self._id(LENT), rng.choice((b"", b"", b"", b"x")))),
            (10, lambda: m.PrepareRetrieve(self._lent_key(), self._id(LENT))),
            (10, lambda: m.CommitRetrieve(self._lent_key(), self._id(LENT))),
            (4, lambda: m.Ping(rng.choice((None, *self._ids, 999)))),
            (1, lambda: m.UnregisterKVCache(rng.choice((*self._ids, *range(20, 40))))),
            (1, lambda: m.UnregisterEngineDriven(rng.choice((*self._ids, *range(20, 40))))),
            (1, m.GetChunkSize),
            (1, m.GetExperimental),
            (1, m.Noop),
            (1, lambda: m.ReportBlockAllocation(packed(1), packed("m"), packed([]))),
            (1, lambda: m.SubscribeKVEvents(1, COPIED_MODEL, 0, 1024)),
            (1, lambda: m.Clear(rng.random() < 0.5)),
        ]
        self._weights = [weight for weight, _ in self._kinds]

    def draw(self) -> Frames:
        """Any of them."""
        [(_, make)] = self._rng.choices(self._kinds, self._weights)
        return frames_of(make())

    def opening(self) -> list[Frames]:
        """All workers come."""
        copied = [self._copied(instance_id) for instance_id in COPIED]
        return [frames_of(message) for message in (*copied, *map(self._lent, LENT))]

    def one_of_each(self) -> list[Frames]:
        """One request of each kind."""
        return [frames_of(make()) for _, make in self._kinds]

    def _id(self, usual: tuple[int, ...]) -> int:
        return self._rng.choice(usual if self._rng.random() < 0.9 else self._ids)

    def _request(self) -> str:
        return f"fuzz-{self._rng.randrange(12)}"

    def _key(self, model: str = COPIED_MODEL, shard: int | None = 0) -> m.Key:
        tokens = self._rng.choice(_PROMPTS)
        start = self._rng.randrange(0, 5) * CHUNK if self._rng.random() < 0.4 else 0
        end = self._rng.randrange(start // CHUNK, len(tokens) // CHUNK + 1) * CHUNK
        salt = self._rng.choice(("", "", f"fuzz-{self._rng.randrange(200)}"))
        return key(tokens, start, end, worker_id=shard, model_name=model, request_id=self._request(), cache_salt=salt)

    def _store(self) -> m.Store:
        wanted = self._key()
        return m.Store(wanted, self._id(COPIED), self._blocks(wanted), HANDLE)

    def _retrieve(self) -> m.Retrieve:
        wanted = self._key()
        return m.Retrieve(wanted, self._id(COPIED), self._blocks(wanted), HANDLE, self._rng.choice((0, 0, 8, 16, -1)))

    def _lent_key(self) -> m.Key:
        """Often that of the request before: what was prepared is committed, now and then by the right worker."""
        if self._rng.random() < 0.4:
            self._last_lent = self._key(LENT_MODEL)
        return self._last_lent

    def _blocks(self, wanted: m.Key) -> list[list[int]]:
        """Mostly as many as the key's range has."""
        count = max(0, wanted.end - wanted.start) // 8
        if self._rng.random() < 0.1:
            count += self._rng.choice((-2, -1, 1, 2))
        return [[self._rng.randrange(BLOCKS) for _ in range(count)]]

    def _copied(self, instance_id: int) -> m.RegisterKVCache:
        name = self._segments[COPIED.index(instance_id)]
        return register(instance_id, [cpu_tensor([BLOCKS, 2, 8, 16], shm_name=name)], model_name=COPIED_MODEL)

    def _lent(self, instance_id: int) -> m.RegisterEngineDriven:
        return register_engine_driven(instance_id, model_name=LENT_MODEL)

    def _register_copied(self) -> m.RegisterKVCache:
        return self._copied(self._rng.choice(COPIED))

    def _register_lent(self) -> m.RegisterEngineDriven:
        return self._lent(self._rng.choice(LENT))

    def _register_hostile(self) -> m.RegisterKVCache:
        """Tensors whose places are near the end of what they lie in, or far behind it."""
        rng, name = self._rng, self._rng.choice(self._segments)
        bodies = [hostile_tensor(rng, name) for _ in range(rng.choice((1, 1, 2, 5)))]
        groups = [
            group(
                [rng.choice((*range(len(bodies)), -1, len(bodies))) for _ in range(rng.randrange(0, 4))],
                rng.choice((0, 1, 8, 16, -8, 1 << 62)),
                rng.choice((0, 1, -1, 1 << 62)),
            )
            for _ in range(rng.randrange(1, 3))
        ]
        return register(
            rng.choice((*COPIED, *range(21, 27))),
            bodies,
            model_name=rng.choice((COPIED_MODEL, *("fuzz-hostile",) * 4)),
            world_size=rng.choice((1, 1, 1, 2, 0, -1, 4096, 4097, 1 << 62)),
            kv_layout=rng.choice((None, "HND", "NHD", "BLHNC", "none")),
            groups=rng.choice((groups, None, [])),
        )

    def _register_hostile_lent(self) -> m.RegisterEngineDriven:
        rng = self._rng
        number = partial(rng.choice, (1, 2, 16, 1 << 20, *NUMBERS))
        fields = ("world_size", "block_size", "num_layers", "hidden_dim_size", "num_physical_slots")
        chosen = {name: number() for name in rng.sample(fields, rng.randrange(1, 4))}
        return register_engine_driven(rng.choice((*LENT, *range(31, 37))), model_name="fuzz-hostile", **chosen)


def hostile_tensor(rng: random.Random, shm_name: str) -> dict[str, Any]:
    """A descriptor's body that is right or nearly so: each number the right one, or one of those beside it."""

    def near(number: int) -> int:
        drawn = rng.choice((*(number,) * 12, number + 1, number - 1, 0, -number, number * 2, rng.choice(NUMBERS)))
        return min(max(drawn, SMALLEST), LARGEST)

    rest = [2, 8, 16] if rng.random() < 0.6 else rng.choice(([8, 64], [2, 8, 2, 8], [2, 2, 8, 2, 4], [2, 8, 32]))
    shape = [near(size) for size in (BLOCKS, *rest)]
    if rng.random() < 0.2:
        shape = [2, shape[0], *shape[1:]]
    stride, step = [], 1
    for size in reversed(shape):
        stride.insert(0, step)
        step = near(step * size)
    body = cpu_tensor(shape, shm_name=shm_name, nbytes=near(BLOCKS * BLOCK_BYTES))
    body["metadata"] |= {
        "stride": stride,
        "storage_offset": rng.choice((0, 0, 0, near(BLOCK_BYTES))),
        "dtype": rng.choice(("bfloat16", "bfloat16", "uint8", "float64", "none")),
    }
    return body
