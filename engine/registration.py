"""Workers coming and going, and their pings. Pure."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from math import inf

import msgspec

from engine.awake import Awake
from engine.events import Effect, Map, Probe, Probed, Reply, ReplyTo, RequestArrived, Unmap, Warn
from engine.layouts import (
    MAX_WORLD_SIZE,
    EngineDrivenPayload,
    KVLayout,
    LayoutError,
    SlotLayout,
    read_kv_layout,
    slot_layout,
)
from engine.prompts import RefusedError
from engine.settings import QUIET_SECONDS, Liveness
from engine.status import TransferMode
from engine.wire.messages import (
    Ping,
    RegisterEngineDriven,
    RegisterEngineDrivenReply,
    RegisterKVCache,
    UnregisterEngineDriven,
    UnregisterKVCache,
)
from engine.workers import Worker, Workers

_REMEMBERED = 10_000
"""Connections and unknown workers that are remembered, each; the oldest are forgotten first."""

_MOST_WORKERS = 4096
_LONGEST_PROBLEM = 500
"""Characters: it may quote what a client has sent, and is kept and shown."""
_LONGEST_REMAP_WAIT = 60.0

_FULL = f"{_MOST_WORKERS} workers are registered: no other one is, and its model's lookups may find what it cannot get"

_payload_decoder = msgspec.msgpack.Decoder(EngineDrivenPayload)


class Registration:
    """Who is there. Belongs to the engine thread.

    `withdraw` takes back what a worker holds; it is called whenever one leaves, is replaced, or is gone. `is_copying`
    says whether a copy of the blocks of an instance is under way, which can outlive its registration.
    """

    def __init__(
        self,
        workers: Workers,
        withdraw: Callable[[Worker], None],
        is_copying: Callable[[int], bool],
        pool: RegisterEngineDrivenReply,
        chunk_size: int,
        liveness: Liveness,
        awake: Awake,
    ) -> None:
        self._workers = workers
        self._withdraw = withdraw
        self._is_copying = is_copying
        self._pool = pool
        self._chunk_size = chunk_size
        self._liveness = liveness
        self._awake = awake
        self._last_mapping = 0
        self._mapping_replies: dict[int, list[ReplyTo]] = {}
        self._unmapping: dict[int, int] = {}
        """By instance: the newest of its mappings that are being let go of."""
        self._unmapping_replies: dict[int, list[ReplyTo]] = {}
        self._connections = _Memory()
        self._reconnected = _Memory()
        """Connections that began with a ping, and have not been told yet."""
        self._told_unknown = _Memory()
        self._transfers_ended: str | None = None

    def seen(self, client: bytes, instance_id: object) -> bool:
        """Notes a sign of life; returns True if it is the first message of its connection."""
        worker = self._workers.get(instance_id) if isinstance(instance_id, int) else None
        if worker is not None:
            worker.last_seen, worker.client = self._awake.now, client
        return self._connections.add(client)

    def ping(self, client: bytes, message: Ping, *, first: bool) -> bool:
        """Whether the client may go on as if nothing had happened.

        False once tells it to drop what it waits for and to register again. That is due when its worker is unknown,
        since the server was restarted or took it for dead; and when its connection begins with a ping instead of the
        questions every client starts with, since the replies to its old connection are lost. It is put off while the
        worker's blocks are being copied: a client that is told uses them for something else at once.
        """
        instance_id = message.instance_id
        if first and self._liveness.flag_reconnects:
            self._reconnected.add(client)
        if instance_id is None:
            return not self._reconnected.discard(client)
        worker = self._workers.get(instance_id)
        if worker is not None:
            worker.pinged = True
        if self._is_copying(instance_id):
            return True
        reconnected = self._reconnected.discard(client)
        return not reconnected if worker is not None else not self._told_unknown.add(instance_id)

    def register_kv_cache(self, event: RequestArrived, message: RegisterKVCache) -> list[Effect]:
        """A worker whose blocks the server copies. Always answered as a success: the protocol knows no other answer."""
        frames = (message.kv_caches, message.layout_hints, message.engine_group_infos)
        old = self._workers.get(message.instance_id)
        same = old is not None and old.frames == frames and old.pair == (message.model_name, message.world_size)
        if same and old is not None and old.state in ("ready", "unsupported"):
            return [Reply(event.to, None)]
        if same and old is not None and old.state == "mapping" and old.mapping_id is not None:
            self._mapping_replies[old.mapping_id].append(event.to)
            return []
        if old is None and self._is_full():
            return [Warn(_FULL), Reply(event.to, None)]
        worker = self._understood(message, frames)
        effects = self._replace(event.to.client, old, worker)
        if worker.state == "mapping" and isinstance(worker.layout, KVLayout):
            return [*self._map(worker, worker.layout, event.to), *effects]
        return [*effects, Reply(event.to, None)]

    def register_engine_driven(self, event: RequestArrived, message: RegisterEngineDriven) -> list[Effect]:
        """A worker that copies by itself. Raises RefusedError, upon which it cannot use the cache."""
        try:
            payload = _payload_decoder.decode(message.payload)
            layout = slot_layout(payload, self._chunk_size)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, LayoutError) as error:
            raise RefusedError(f"the registration cannot be served: {error}") from None
        _check_world_size(payload.world_size)
        old = self._workers.get(payload.instance_id)
        frames = (message.payload,)
        if old is not None and old.frames == frames:
            old.last_seen = self._awake.now
            return [Reply(event.to, self._pool)]
        if old is None and self._is_full():
            raise RefusedError(_FULL)
        worker = _worker(self._awake.now, payload.instance_id, payload.model_name, payload.world_size, layout, frames)
        return [*self._replace(event.to.client, old, worker), Reply(event.to, self._pool)]

    def unregister(self, event: RequestArrived, message: UnregisterKVCache | UnregisterEngineDriven) -> list[Effect]:
        """A worker leaves; answered when no copy touches its memory any more."""
        worker = self._workers.get(message.instance_id)
        effects = self._remove(worker) if worker is not None else []
        mapping_id = self._unmapping.get(message.instance_id)
        if mapping_id is None or self._transfers_ended:
            return [*effects, Reply(event.to, None)]
        self._unmapping_replies.setdefault(mapping_id, []).append(event.to)
        return effects

    def map_ended(self, now: float, mapping_id: int, problem: str | None) -> list[Effect]:
        """A KV cache has been opened, or could not be; then it is tried again after a while.

        What was missing may be there later, such as file descriptors, and nothing would make the client ask again.
        """
        effects: list[Effect] = [Reply(to, None) for to in self._mapping_replies.pop(mapping_id, ())]
        worker = self._workers.mapped(mapping_id)
        if worker is None:
            return effects
        worker.state, worker.problem = ("broken", problem) if problem else ("ready", None)
        worker.remap_wait = min(2 * worker.remap_wait or 1.0, _LONGEST_REMAP_WAIT)
        worker.remap_at = now + worker.remap_wait if problem else inf
        self._workers.changed()
        return [_warning(worker), *effects] if problem else effects

    def mapping_lost(self, mapping_id: int, problem: str | None) -> list[Effect]:
        """The memory behind a mapping is not there any more. Its worker is broken until it registers again."""
        worker = self._workers.mapped(mapping_id)
        if worker is None:
            return []
        worker.state, worker.problem = "broken", problem
        self._workers.changed()
        return [_warning(worker)]

    def unmap_ended(self, mapping_id: int) -> list[Effect]:
        self._unmapping = {instance: mapping for instance, mapping in self._unmapping.items() if mapping != mapping_id}
        return [Reply(to, None) for to in self._unmapping_replies.pop(mapping_id, ())]

    def transfers_ended(self, now: float, problem: str) -> list[Effect]:
        """The transfer thread is gone: every worker whose blocks it copied is broken, now and from now on."""
        self._transfers_ended = problem
        effects: list[Effect] = []
        for mapping_id in list(self._mapping_replies):
            effects += self.map_ended(now, mapping_id, problem)
        for mapping_id in list(self._unmapping_replies):
            effects += self.unmap_ended(mapping_id)
        for worker in self._workers:
            if worker.mapping_id is not None:
                worker.state, worker.problem, worker.remap_at = "broken", problem, inf
        self._workers.changed()
        return effects

    def probes(self) -> list[Probe]:
        """Asks after the connections of silent workers."""
        return [
            Probe(worker.client)
            for worker in self._workers
            if self._awake.now - worker.alive > min(QUIET_SECONDS, self._patience(worker))
        ]

    def probed(self, event: Probed) -> list[Effect]:
        """Takes workers for gone whose connection has not stood, and who have been silent, for too long.

        As long as its connection stands a worker lives: the stock client pings only after its first transfer, and one
        whose pings have ended may still write to what it was lent.
        """
        effects: list[Effect] = []
        now = self._awake.now
        for worker in [worker for worker in self._workers if worker.client == event.client]:
            if event.connected:
                worker.connected = now
            if now - worker.alive > self._patience(worker):
                effects.append(Warn(f"worker {worker.instance_id} of {worker.model_name!r} is gone: silent too long"))
                effects += self._remove(worker, abandoned=True)
        return effects

    def remap(self, now: float) -> list[Effect]:
        """Tries to open what could not be opened."""
        effects: list[Effect] = []
        for worker in self._workers:
            if now >= worker.remap_at and worker.mapping_id is not None and isinstance(worker.layout, KVLayout):
                worker.remap_at = inf
                effects.append(Map(worker.mapping_id, worker.layout))
        return effects

    def _patience(self, worker: Worker) -> float:
        return self._liveness.worker_timeout if worker.pinged else self._liveness.registration_grace

    def _is_full(self) -> bool:
        return len(self._workers) >= _MOST_WORKERS

    def _understood(self, message: RegisterKVCache, frames: tuple[bytes, ...]) -> Worker:
        layout, problem = None, self._transfers_ended
        try:
            layout = read_kv_layout(
                message.kv_caches, message.layout_hints, message.engine_group_infos, self._chunk_size
            )
            _check_world_size(message.world_size)
        except (LayoutError, RefusedError) as error:
            problem = str(error)[:_LONGEST_PROBLEM]
        worker = _worker(self._awake.now, message.instance_id, message.model_name, message.world_size, layout, frames)
        if problem is not None or layout is None:
            worker.state, worker.problem = "broken", problem
        elif layout.unsupported:
            worker.state, worker.problem = "unsupported", layout.unsupported
        else:
            worker.state = "mapping"
        return worker

    def _map(self, worker: Worker, layout: KVLayout, to: ReplyTo) -> list[Effect]:
        self._last_mapping += 1
        worker.mapping_id = self._last_mapping
        self._mapping_replies[self._last_mapping] = [to]
        return [Map(self._last_mapping, layout)]

    def _replace(self, client: bytes, old: Worker | None, new: Worker) -> list[Effect]:
        new.client = client
        effects = self._remove(old) if old is not None else []
        self._told_unknown.discard(new.instance_id)
        self._workers.add(new)
        return [_warning(new), *effects] if new.problem else effects

    def _remove(self, worker: Worker, *, abandoned: bool = False) -> list[Effect]:
        """Ends all that belongs to a worker. Its memory is let go behind the copies that still use it."""
        self._withdraw(worker)
        self._workers.remove(worker.instance_id)
        if worker.mapping_id is None:
            return []
        self._unmapping[worker.instance_id] = worker.mapping_id
        return [Unmap(worker.mapping_id, abandoned)]


class _Memory:
    """A set that forgets its oldest members when it is full."""

    def __init__(self) -> None:
        self._members: OrderedDict[object, None] = OrderedDict()

    def add(self, member: object) -> bool:
        """Returns True if it was not remembered."""
        new = member not in self._members
        self._members[member] = None
        self._members.move_to_end(member)
        if len(self._members) > _REMEMBERED:
            self._members.popitem(last=False)
        return new

    def discard(self, member: object) -> bool:
        """Returns True if it was remembered."""
        present = member in self._members
        self._members.pop(member, None)
        return present


def _worker(
    now: float,
    instance_id: int,
    model_name: str,
    world_size: int,
    layout: KVLayout | SlotLayout | None,
    frames: tuple[bytes, ...],
) -> Worker:
    mode: TransferMode = "engine_driven" if isinstance(layout, SlotLayout) else "lmcache_driven"
    return Worker(instance_id, model_name, world_size, mode, layout, "ready", now, now, frames=frames)


def _check_world_size(world_size: int) -> None:
    if not 1 <= world_size <= MAX_WORLD_SIZE:
        raise RefusedError(f"world_size is {world_size}; 1 to {MAX_WORLD_SIZE} is possible")


def _warning(worker: Worker) -> Warn:
    return Warn(f"worker {worker.instance_id} of {worker.model_name!r} is {worker.state}: {worker.problem}")
