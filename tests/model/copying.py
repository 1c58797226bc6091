"""Stores and retrieves that the server copies."""

from __future__ import annotations

from engine.events import Copy, Piece
from engine.wire import messages as m
from tests.model.cast import CHUNK, ServerCopies
from tests.model.device import Device, Null, null_chunks
from tests.model.oracle import Identity, Slot
from tests.model.parties import Blocks, Job, Request, Worker
from tests.model.schedulers import use_up
from tests.model.transfers import Task
from tests.model.world import World

NO_BLOCKS = ServerCopies("none", ())
"""The KV cache of a worker that never registered one."""


def store(world: World, worker: Worker, request: Request, start: int, end: int, null: Null | None) -> None:
    blocks = _take_blocks(world, worker, (end - start) // CHUNK, null)
    if blocks is None:
        return
    world.seen(worker)
    not_after = world.now + world.liveness.transfer_max_age
    message = m.Store(worker.key(request, start, end), worker.role.instance_id, blocks.ids, b"stub")
    tasks = world.send(worker.client, message, blocks.answered)
    if not _is_served(worker):
        assert (tasks, blocks.outcome) == ([], [False])
        return
    objects = worker.objects(request, start, end)
    wanted = world.oracle.wanted(objects, null_chunks(blocks.device.shape, blocks.ids))
    copied: list[int] = []
    for task in tasks:
        copy = _copy(task, "store", blocks)
        assert copy.not_after <= not_after
        copied = [piece.chunk for piece in copy.pieces]
        slots = [_written(world, objects[piece.chunk], piece, blocks) for piece in copy.pieces]
        world.jobs[copy.job_id] = Job(worker, blocks, slots, not_after, is_store=True)
    assert copied == wanted[: len(copied)], "stores something else than what is missing, first chunks first"
    assert copied == wanted or not world.roomy, "stores less than what is missing"
    assert copied or blocks.outcome == [True]


def retrieve(
    world: World, worker: Worker, request: Request, start: int, end: int, *, skip: int = 0, waited: float = 0.0
) -> None:
    """`waited`: how long the request may have lain unread."""
    blocks = _take_blocks(world, worker, (end - start) // CHUNK)
    if blocks is None:
        return
    world.seen(worker)
    not_after = world.now - waited + world.liveness.transfer_max_age
    objects = worker.objects(request, start, end)
    sure = use_up(world, worker, request, objects)
    message = m.Retrieve(worker.key(request, start, end), worker.role.instance_id, blocks.ids, b"stub", skip)
    tasks = world.send(worker.client, message, blocks.answered, world.now - waited)
    if not _is_served(worker) or world.now > not_after:
        assert (tasks, blocks.outcome) == ([], [False])
        return
    assert tasks or (blocks.outcome == [False] and not sure), "a retrieve of what is there failed"
    for task in tasks:
        copy = _copy(task, "retrieve", blocks)
        assert copy.skip_tokens == skip
        assert copy.not_after <= not_after
        assert [piece.chunk for piece in copy.pieces] == list(range(len(objects)))
        size = blocks.device.shape.object_bytes
        slots = [world.oracle.begin_read(objects[piece.chunk], piece.offset, size) for piece in copy.pieces]
        world.jobs[copy.job_id] = Job(worker, blocks, slots, not_after, is_store=False, skip_tokens=skip)


def _is_served(worker: Worker) -> bool:
    registration = worker.registration
    return registration is not None and registration.device is not None and registration.state == "ready"


def _take_blocks(world: World, worker: Worker, chunks: int, null: Null | None = None) -> Blocks | None:
    """Blocks of the worker's newest KV cache; None if too few are free."""
    if not worker.devices:
        return Blocks(Device(NO_BLOCKS, world.random), [])
    device = worker.devices[-1]
    ids = device.take_blocks(chunks, null)
    return None if ids is None else Blocks(device, ids)


def _written(world: World, identity: Identity, piece: Piece, blocks: Blocks) -> Slot:
    data = blocks.device.gather(blocks.ids, piece.chunk)
    return world.oracle.begin_write(identity, piece.offset, blocks.device.shape.object_bytes, data)


def _copy(task: Task, direction: str, blocks: Blocks) -> Copy:
    """The effect of a task, which has to be a copy of these blocks."""
    copy = task.effect
    assert isinstance(copy, Copy)
    assert task.device is blocks.device
    assert (copy.direction, copy.block_ids, copy.event_handle) == (direction, blocks.ids, b"stub")
    return copy
