"""Lookups and what follows from them, and clears."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from math import inf

from engine.commands import ClearAll, StartPrefetch
from engine.errors import PrefetchError
from engine.hashing import hash_tokens
from engine.tiers import LONGEST_WAIT
from engine.wire import messages as m
from tests.model.cast import CHUNK, Role
from tests.model.oracle import Identity, Session, SessionId
from tests.model.parties import Request, Worker
from tests.model.world import World


def look_up(world: World, role: Role, request: Request) -> None:
    world.oracle.end((role.scheduler, request.request_id))
    world.tell(role.scheduler, m.Lookup(request.key(role, 0, request.end, None), b"\x01"))
    whole = Identity(*role.pair, 0, "", request.salt, request.tokens)
    spaces = [
        whole._replace(shard=shard, layout=layout)
        for layout in world.layouts(role.pair)
        for shard in range(role.world_size)
    ]
    chunks = [request.tokens[:stop] for stop in range(CHUNK, request.end + 1, CHUNK)]
    session_id = (role.scheduler, request.request_id)
    more_may_come = bool(world.storage.in_use)
    now, awake = world.now, world.awake
    world.oracle.look_up(now, awake, session_id, chunks, spaces, role.readers, more_may_come=more_may_come)


def collect(world: World, session_id: SessionId, *, wait: float | None) -> None:
    """Asks for the answer once, or waits for it for so many seconds."""
    client, request_id = session_id
    if wait is None:
        world.send(client, m.QueryPrefetchStatus(request_id), _answer(world, session_id, inf))
    else:
        until = world.now + max(0.0, wait)
        world.send(client, m.WaitPrefetchStatus(request_id, wait), _answer(world, session_id, until))


def _answer(world: World, session_id: SessionId, until: float) -> Callable[[int | None], None]:
    """Checks what a lookup is answered. `until`: when somebody who waits stops to; infinite for one who does not."""
    asked = world.oracle.sessions.get(session_id)

    def check(value: int | None) -> None:
        session = world.oracle.sessions.get(session_id)
        if session is None or session is not asked or session.collected or world.transfers.ending:
            assert value == 0
        elif value is None:
            assert session.pending, "there is nothing to wait for"
            assert world.now - session.asked < LONGEST_WAIT
            assert until in (inf, world.now) or until < world.now, "it was not waited long enough"
        else:
            _collected(world, session_id, session, value)

    return check


def _collected(world: World, session_id: SessionId, session: Session, value: int) -> None:
    if session.pending:
        world.settle(session_id, session, value)
    assert value == session.hits, "a lookup found something else than what was there"
    session.collected = True


def free(world: World, role: Role, request: Request, start: int, end: int) -> None:
    """While the lookup still waits for L2 nothing is freed; whether it does, only the server knows."""
    session_id, whole = (role.scheduler, request.request_id), Identity(*role.pair, 0, "", request.salt, request.tokens)
    world.tell(role.scheduler, m.FreeLookupLocks(request.key(role, start, end, None), b"\x01"))
    session = world.oracle.sessions.get(session_id)
    if session is not None and session.pending and start < end:
        if (hits := world.hits_of(session_id)) is None:
            return
        world.settle(session_id, session, hits, freed=True)
    world.oracle.free(session_id, whole, start, end)


def let_it_come(world: World, role: Role, request: Request) -> None:
    """Looks up, and waits until nothing more comes: then it finds what is there, and what was in L2 is."""
    session_id = (role.scheduler, request.request_id)
    look_up(world, role, request)
    session = world.oracle.sessions[session_id]
    sure = _sure_hits(world, session)
    world.finish_loads()
    collect(world, session_id, wait=None)
    assert session.collected, "nothing more comes, and still there is no answer"
    assert session.hits >= sure, "L2 has more than was found"


def warm(world: World, role: Role, request: Request) -> None:
    """An operator has what L2 has of a prompt loaded. It may be that nothing can be."""
    hashes = tuple(hash_tokens(request.tokens[: request.end], CHUNK))
    with suppress(PrefetchError):
        report = world.command(StartPrefetch(*role.pair, request.salt, hashes))
        assert (report.state == "running") <= world.storage.is_loading


def _sure_hits(world: World, session: Session) -> int:
    """The leading chunks that are in L1, or in L2 with room for them in L1 and nobody writing them."""
    oracle = world.oracle
    if not world.roomy or any(slot.void for slot in oracle.writes):
        return session.hits
    lent = {slot.identity for slot in oracle.writes} - world.storage.loading
    for place, row in enumerate(session.rows):
        for each in row:
            if each not in oracle.present and (each in lent or not world.storage.has(oracle.key_of(each))):
                return place
    return len(session.rows)


def end(world: World, session_id: SessionId) -> None:
    world.oracle.end(session_id)
    world.tell(session_id[0], m.EndSession(session_id[1]))


def clear(world: World, *, force: bool) -> None:
    world.oracle.clear()
    world.tell(world.workers[0].role.scheduler, m.Clear(force))


def clear_by_operator(world: World) -> None:
    expected = world.oracle.clear()
    cleared = world.command(ClearAll())
    assert (cleared.objects, cleared.bytes) == expected


def stored(world: World) -> list[tuple[Role, tuple[int, ...], str]]:
    """What could be looked up with success: the tokens and the salt of each object that is there."""
    return [
        (worker.role, each.tokens, each.salt)
        for each in world.oracle.present
        for worker in world.workers
        if worker.role.pair == (each.model, each.world_size)
    ]


def save_elsewhere(world: World, pick: int) -> None:
    """Another server has the same objects, and has saved them: each to one of the tiers."""
    tiers = world.storage.in_use
    for place, (identity, slot) in enumerate(world.oracle.present.items()):
        world.storage.put(tiers[pick % (place + 2) % len(tiers)], world.oracle.key_of(identity), slot)


def saved(world: World) -> list[tuple[Role, tuple[int, ...], str]]:
    """What L2 has."""
    identities = [world.oracle.identity(key) for name in world.storage.in_use for key in world.storage.keys(name)]
    return [
        (worker.role, each.tokens, each.salt)
        for each in identities
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
