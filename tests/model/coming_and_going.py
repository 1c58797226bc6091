"""Workers register, leave and ping, and notice when the server has forgotten them or does not answer."""

from __future__ import annotations

from typing import Any

from engine.events import Map
from engine.wire import messages as m
from tests.model.cast import EngineCopies, ServerCopies, Shape
from tests.model.device import Device
from tests.model.parties import Registration, Worker
from tests.model.world import World


def register(world: World, worker: Worker, shape: Shape) -> None:
    """For the first time, once more, or as something else than before."""
    world.knows(shape)
    old = worker.registration
    if old is not None and old.shape == shape and old.state != "broken":
        new = old
        new.seen, new.client = world.awake, worker.client
    else:
        new = worker.registration = _replaced(world, worker, old, shape)
    world.opening = new.device
    instance_id, pair = worker.role.instance_id, worker.role.pair
    if isinstance(shape, EngineCopies):
        message = m.RegisterEngineDriven(shape.payload(instance_id, *pair))
        assert world.ask(worker.client, message) == world.pool
        return
    caches, hints, infos = shape.frames(instance_id)
    registering = m.RegisterKVCache(instance_id, caches, *pair, b"\xa4vllm", hints, infos)
    for task in world.send(worker.client, registering, _void):
        if isinstance(task.effect, Map):
            world.mappings[task.effect.mapping_id] = new


def _replaced(world: World, worker: Worker, old: Registration | None, shape: Shape) -> Registration:
    """The same memory as before if it is registered as the same."""
    device = old.device if old is not None and old.shape == shape else None
    if isinstance(shape, ServerCopies) and device is None:
        device = Device(shape, world.random)
        worker.devices.append(device)
    if old is not None:
        old.withdraw(world.oracle)
    world.told_unknown.discard(worker.role.instance_id)
    state = "ready" if device is None else "broken" if world.transfers.ended else "mapping"
    return Registration(shape, device, state, world.awake, worker.client)


def unregister(world: World, worker: Worker) -> None:
    """Its memory is gone as soon as it is answered."""
    if worker.registration is not None:
        worker.registration.withdraw(world.oracle)
        worker.registration = None

    def check(value: Any) -> None:
        assert value is None
        copies = sum(world.transfers.copies_of(device) for device in worker.devices)
        assert not copies, "told to have left while its memory is being copied"

    instance_id = worker.role.instance_id
    message = m.UnregisterKVCache(instance_id) if instance_id % 2 else m.UnregisterEngineDriven(instance_id)
    world.send(worker.client, message, check)


def ping(world: World, worker: Worker, *, reconnected: bool) -> None:
    """A client that is told False takes everything for lost that it still waits for."""
    if reconnected:
        cut(worker)
    if worker.client not in world.connections and world.liveness.flag_reconnects:
        world.owed_false.add(worker.client)
    worker.beats = True
    if worker.registration is not None:
        worker.registration.pinged = True
    world.seen(worker)
    expected = _expected_answer(world, worker)
    assert world.ask(worker.client, m.Ping(worker.role.instance_id)) is expected
    if not expected:
        _give_up(world, worker)


def cut(worker: Worker) -> None:
    """The worker loses its connection, and makes another one, which the server will hear of by its next message."""
    worker.client = b"%s, again" % worker.client


def freeze(world: World) -> None:
    """The server stands still for longer than a client waits for an answer to its ping."""
    world.stand_still(10.5)
    for worker in world.workers:
        if worker.beats:
            _give_up(world, worker)


def _expected_answer(world: World, worker: Worker) -> bool:
    """False once to the forgotten and the reconnected, but not while the server uses their blocks."""
    if any(job.worker is worker for job in world.jobs.values()):
        return True
    owed = worker.client in world.owed_false
    world.owed_false.discard(worker.client)
    if worker.registration is None:
        owed = worker.role.instance_id not in world.told_unknown
        world.told_unknown.add(worker.role.instance_id)
    return not owed


def _give_up(world: World, worker: Worker) -> None:
    for job in world.jobs.values():
        if job.worker is worker:
            job.drop()


def _void(value: Any) -> None:
    assert value is None
