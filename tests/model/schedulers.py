"""Lookups and what follows from them, and clears."""

from __future__ import annotations

from engine.commands import ClearAll
from engine.events import CommandAsked, CommandDone
from engine.wire import messages as m
from tests.model.cast import CHUNK, Role
from tests.model.oracle import Identity, SessionId
from tests.model.parties import Request, Worker
from tests.model.world import World

TICKET = 7


def look_up(world: World, role: Role, request: Request) -> None:
    world.tell(role.scheduler, m.Lookup(request.key(role, 0, request.end, None), b"\x01"))
    whole = Identity(*role.pair, 0, "", request.salt, request.tokens)
    spaces = [
        whole._replace(shard=shard, layout=layout)
        for layout in world.layouts(role.pair)
        for shard in range(role.world_size)
    ]
    chunks = [request.tokens[:stop] for stop in range(CHUNK, request.end + 1, CHUNK)]
    world.oracle.look_up(world.now, (role.scheduler, request.request_id), chunks, spaces, role.readers)


def collect(world: World, session_id: SessionId, *, wait: bool) -> None:
    client, request_id = session_id
    message = m.WaitPrefetchStatus(request_id, 1.0) if wait else m.QueryPrefetchStatus(request_id)
    expected = world.oracle.collect(session_id)
    assert world.ask(client, message) == expected, "a lookup found something else than what was there"


def free(world: World, role: Role, request: Request, start: int, end: int) -> None:
    whole = Identity(*role.pair, 0, "", request.salt, request.tokens)
    world.oracle.free((role.scheduler, request.request_id), whole, start, end)
    world.tell(role.scheduler, m.FreeLookupLocks(request.key(role, start, end, None), b"\x01"))


def end(world: World, session_id: SessionId) -> None:
    world.oracle.end(session_id)
    world.tell(session_id[0], m.EndSession(session_id[1]))


def clear(world: World, *, force: bool) -> None:
    world.oracle.clear()
    world.tell(world.workers[0].role.scheduler, m.Clear(force))


def clear_by_operator(world: World) -> None:
    expected = world.oracle.clear()
    (done,) = world.engine.handle(CommandAsked(world.now, TICKET, ClearAll()))
    assert isinstance(done, CommandDone)
    assert (done.ticket, done.answer.objects, done.answer.bytes) == (TICKET, *expected)


def stored(world: World) -> list[tuple[Role, tuple[int, ...], str]]:
    """What could be looked up with success: the tokens and the salt of each object that is there."""
    return [
        (worker.role, each.tokens, each.salt)
        for each in world.oracle.present
        for worker in world.workers
        if worker.role.pair == (each.model, each.world_size)
    ]


def promises(world: World) -> list[tuple[Worker, Request]]:
    """Registered workers, with the prompts that they may still retrieve the last chunk of."""
    return [
        (worker, Request(request_id, each.tokens, each.salt))
        for worker in world.workers
        if worker.registration is not None
        for (scheduler, request_id), session in world.oracle.sessions.items()
        if scheduler == worker.role.scheduler
        for each in session.shares
        if each[:4] == (*worker.role.pair, worker.role.shard, worker.registration.shape.name)
    ]


def use_up(world: World, worker: Worker, request: Request, objects: list[Identity]) -> bool:
    """A retrieve ends the promise of these. True if it has to succeed: each was promised or is there anyway."""
    session_id, oracle = (worker.role.scheduler, request.request_id), world.oracle
    sure = all(oracle.promised(session_id, each) or each in oracle.present for each in objects)
    for each in objects:
        oracle.use_share(session_id, each)
    return sure


def is_anothers(world: World, worker: Worker, request: Request) -> bool:
    """True if only the other scheduler has a request of this id: this worker has no business with it."""
    known = {client for client, request_id in world.oracle.sessions if request_id == request.request_id}
    return bool(known) and worker.role.scheduler not in known
