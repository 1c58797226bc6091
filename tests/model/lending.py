"""Stores and retrieves where the worker copies, into and out of slots that it is lent."""

from __future__ import annotations

from collections import deque
from math import prod

from engine.wire import messages as m
from tests.model.cast import Shape
from tests.model.oracle import PAGE, Identity, Slot
from tests.model.parties import Lent, Request, Worker
from tests.model.schedulers import use_up
from tests.model.world import World


def prepare_store(world: World, worker: Worker, request: Request, start: int, end: int) -> None:
    registration = worker.registration
    world.seen(worker)
    message = m.PrepareStore(worker.key(request, start, end), worker.role.instance_id)
    context = world.ask(worker.client, message).context
    assert len(context.slots) == len(context.chunk_indices)
    if registration is None or not worker.lends:
        assert not context.slots
        return
    place, objects = worker.place(request, start, end), worker.objects(request, start, end)
    wanted = [] if place in registration.lent else world.oracle.wanted(objects)
    assert context.chunk_indices == wanted[: len(context.slots)]
    assert context.chunk_indices == wanted or not world.roomy
    if context.slots:
        pairs = zip(context.chunk_indices, context.slots, strict=True)
        slots = [_lend(world, registration.shape, slot, objects[index]) for index, slot in pairs]
        registration.lent[place] = Lent(request, start, end, slots, world.awake)


def _lend(world: World, shape: Shape, slot: m.Slot, identity: Identity) -> Slot:
    """Decides at once what the worker is going to write there."""
    _check_slot(world, slot, shape)
    return world.oracle.begin_write(identity, slot.offset, slot.length, world.random.randbytes(slot.length))


def fill(world: World, lent: Lent, part: float) -> None:
    """The worker writes so much of what it was lent."""
    for slot in lent.slots:
        end = int(slot.size * part)
        world.arena[slot.offset : slot.offset + end] = slot.data[:end]


def commit_store(world: World, worker: Worker, lent: Lent, data: bytes = b"") -> None:
    """`data` is what a worker sends that cannot open the pool, having written nothing into it."""
    assert worker.registration is not None
    if not data:
        fill(world, lent, 1.0)
    del worker.registration.lent[worker.place(lent.request, lent.start, lent.end)]
    for slot in lent.slots:
        world.oracle.end_write(slot, written=not data and world.can_sum_up)
    world.seen(worker)
    message = m.CommitStore(worker.key(lent.request, lent.start, lent.end), worker.role.instance_id, data)
    published = not data and world.can_sum_up and not any(slot.void for slot in lent.slots)
    assert world.ask(worker.client, message) is published


def commit_nothing(world: World, worker: Worker, request: Request, start: int, end: int) -> None:
    """Commits a range for which nothing was lent."""
    registration = worker.registration
    if registration is not None and worker.place(request, start, end) in registration.lent:
        return
    world.seen(worker)
    message = m.CommitStore(worker.key(request, start, end), worker.role.instance_id, b"")
    assert world.ask(worker.client, message) is False


def prepare_retrieve(world: World, worker: Worker, request: Request, start: int, end: int) -> None:
    registration = worker.registration
    world.seen(worker)
    objects = worker.objects(request, start, end)
    sure = use_up(world, worker, request, objects) and worker.lends and start < end
    message = m.PrepareRetrieve(worker.key(request, start, end), worker.role.instance_id)
    reply = world.ask(worker.client, message)
    assert reply.data == b""
    if not reply.success:
        assert reply.context.slots is None
        assert not (sure and world.can_sum_up), "a retrieve of what is there failed"
        return
    assert registration is not None
    assert worker.lends
    for slot in reply.context.slots:
        _check_slot(world, slot, registration.shape)
    pairs = zip(objects, reply.context.slots, strict=True)
    slots = [world.oracle.begin_read(identity, slot.offset, slot.length) for identity, slot in pairs]
    registration.borrowed.setdefault(worker.place(request, start, end), deque()).append(slots)


def commit_retrieve(world: World, worker: Worker, request: Request, start: int, end: int) -> None:
    """Also sent when nothing was lent."""
    registration, place = worker.registration, worker.place(request, start, end)
    borrowed = registration.borrowed.get(place) if registration is not None else None
    if registration is not None and borrowed:
        for slot in borrowed.popleft():
            world.oracle.end_read(slot)
        if not borrowed:
            del registration.borrowed[place]
    world.seen(worker)
    message = m.CommitRetrieve(worker.key(request, start, end), worker.role.instance_id)
    assert world.ask(worker.client, message) is worker.lends


def lent(world: World) -> list[tuple[Worker, Lent]]:
    """What workers may write now."""
    return [(x, lent) for x in world.workers if x.registration for lent in x.registration.lent.values()]


def borrowed(world: World) -> list[tuple[Worker, Request, int]]:
    """What workers may read now: the prompt and where the range starts; it ends with the prompt."""
    return [
        (x, Request("any", whole.tokens, whole.salt), start)
        for x in world.workers
        if x.registration
        for whole, start in x.registration.borrowed
    ]


def _check_slot(world: World, slot: m.Slot, shape: Shape) -> None:
    assert slot.length == shape.object_bytes == prod(slot.shape)
    assert slot.dtype == "uint8"
    assert slot.offset % PAGE == 0
    assert 0 <= slot.offset <= world.pool.pool_size - slot.length
