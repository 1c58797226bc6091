"""`Engine` in a world of simulated clients: what is promised is kept, and every byte is the right one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, TypeVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from engine.settings import L2Settings, Liveness
from tests.model import coming_and_going, copying, lending, schedulers
from tests.model.budget import budget
from tests.model.cast import CASTS, CHUNK, Role
from tests.model.device import Null
from tests.model.malformed import (
    BLOCKS,
    KEYS,
    SCHEDULER_KEYS,
    refuse_blocks,
    refuse_key,
    refuse_others,
    refuse_scheduler,
)
from tests.model.parties import Request, Worker
from tests.model.storage import TIERS, How
from tests.model.world import World

T = TypeVar("T")

PICK = st.integers(0, 1 << 16)
CHUNK_TOKENS = {
    "a": (1, 300, 70_000, 3_000_000_000, 0, 127, 128, 255),
    "b": (4_000_000_000, 2, 70_001, 80_000, 90_000, 100_000, 110_000, 65_535),
}
"""Encoded short, "a" takes too few bytes to be remembered by the hasher; "b" does not."""
REQUESTS = st.builds(
    lambda chunks, tail, **rest: Request(
        tokens=tuple(token for chunk in chunks for token in CHUNK_TOKENS[chunk]) + (9,) * tail, **rest
    ),
    st.sampled_from(["aaa", "aab", "ab", "b"]),
    st.integers(0, CHUNK - 1),
    request_id=st.sampled_from(["0", "1"]),
    salt=st.sampled_from(["", "", "", "", "", "tenant"]),
    wide=st.booleans(),
)
STARTS = st.sampled_from([0, 0, 0, 1, 2])
FREED_FROM = st.sampled_from([0, 0, CHUNK - 1, CHUNK])
NULLS = st.none() | st.none() | st.builds(Null, st.integers(0, 2), st.sampled_from(["chunk", "one group", "one block"]))
WAYS = [
    "register",
    "register",
    "register",
    "register another",
    "leave",
    "ping",
    "ping",
    "reconnect",
    "reconnect",
    "cut",
]
TIMES = st.sampled_from([0.5, 0.5, 0.5, 4.0, 4.0, 4.0, 11.0, 11.0, 61.0, 61.0, 125.0, 310.0, 650.0, 3700.0])
WAITS = st.sampled_from([None, None, 0.0, 1.0, 1.0, 100.0])
LIVENESS = st.sampled_from(
    [
        Liveness(),
        Liveness(flag_reconnects=False),
        Liveness(session_ttl=60.0, lease_ttl=9000.0, reservation_ttl=50.0),
        Liveness(registration_grace=7_000.0, worker_timeout=5_000.0),
    ]
)


class EngineMachine(RuleBasedStateMachine):
    """Schedulers and workers of a few models, doing what they may at any time."""

    arenas: Sequence[int] = ()
    """Sizes of L1 to try, in pages."""

    @initialize(roles=st.sampled_from(CASTS), pick=PICK, liveness=LIVENESS, verify=st.booleans())
    def start(self, roles: tuple[Role, ...], pick: int, liveness: Liveness, verify: bool) -> None:
        self._begin(pick, roles, liveness, (), verify)

    def _begin(
        self, pick: int, roles: tuple[Role, ...], liveness: Liveness, tiers: tuple[L2Settings, ...], verify: bool
    ) -> None:
        pages = self._pick(self.arenas, pick)
        self.world = World(pages, roles, liveness, tiers, verify=verify)
        for worker in self.world.workers:
            coming_and_going.register(self.world, worker, worker.role.shape)
        self.world.finish_transfers()

    # Workers

    @rule(pick=PICK, request=REQUESTS)
    def warm(self, pick: int, request: Request) -> None:
        """All workers of a model are there and store a prompt, and the transfer thread does all it has to."""
        self._warm(pick, request)

    def _warm(self, pick: int, request: Request) -> None:
        pair = self._worker(pick).role.pair
        workers = [worker for worker in self.world.workers if worker.role.pair == pair]
        for worker in workers:
            if worker.registration is None or worker.registration.state == "broken":
                coming_and_going.register(self.world, worker, worker.role.shape)
        self.world.finish_transfers()
        for worker in workers:
            self._store(worker, request, 0)
        for worker, lent in lending.lent(self.world):
            if lent.request == request:
                lending.commit_store(self.world, worker, lent)
        self.world.finish_transfers()

    @rule(pick=PICK, request=REQUESTS, start=STARTS, null=NULLS)
    def store(self, pick: int, request: Request, start: int, null: Null | None) -> None:
        start = min(start * CHUNK, request.end)
        fits = null is not None and start + null.chunk * CHUNK < request.end
        self._store(self._worker(pick), request, start, null if fits else None)

    @precondition(lambda self: lending.lent(self.world))
    @rule(pick=PICK, part=st.floats(0, 1), then=st.sampled_from(["wait", "commit", "commit", "commit pickled"]))
    def write(self, pick: int, part: float, then: str) -> None:
        worker, lent = self._pick(lending.lent(self.world), pick)
        lending.fill(self.world, lent, part)
        if then != "wait":
            lending.commit_store(self.world, worker, lent, b"pickled" if then == "commit pickled" else b"")

    @precondition(lambda self: schedulers.promises(self.world))
    @rule(pick=PICK, first=STARTS, skip=st.integers(0, CHUNK - 1), waited=st.sampled_from([0.0, 0.0, 9.0, 10.5]))
    def retrieve_what_was_promised(self, pick: int, first: int, skip: int, waited: float) -> None:
        worker, request = self._pick(schedulers.promises(self.world), pick)
        self._retrieve(worker, request, min(first * CHUNK, request.end - CHUNK), skip, waited)

    @rule(pick=PICK, request=REQUESTS, start=STARTS, skip=st.integers(0, CHUNK - 1))
    def retrieve(self, pick: int, request: Request, start: int, skip: int) -> None:
        worker = self._worker(pick)
        if not schedulers.is_anothers(self.world, worker, request):
            self._retrieve(worker, request, min(start * CHUNK, request.end), skip)

    @precondition(lambda self: lending.borrowed(self.world))
    @rule(pick=PICK)
    def give_back(self, pick: int) -> None:
        worker, request, start = self._pick(lending.borrowed(self.world), pick)
        lending.commit_retrieve(self.world, worker, request, start, request.end)

    @rule(pick=PICK, request=REQUESTS, kind=st.sampled_from(["store", "retrieve"]))
    def commit_what_may_not_be_lent(self, pick: int, request: Request, kind: str) -> None:
        commit = lending.commit_nothing if kind == "store" else lending.commit_retrieve
        commit(self.world, self._worker(pick), request, 0, request.end)

    @rule(pick=PICK, how=st.sampled_from(WAYS))
    def come_and_go(self, pick: int, how: str) -> None:
        worker = self._worker(pick)
        match how:
            case "register":
                coming_and_going.register(self.world, worker, worker.role.shape)
            case "register another":
                coming_and_going.register(self.world, worker, worker.role.other_shape)
            case "leave":
                coming_and_going.unregister(self.world, worker)
            case "cut":
                coming_and_going.cut(worker)
            case _:
                coming_and_going.ping(self.world, worker, reconnected=how == "reconnect")

    # Schedulers

    @rule(pick=PICK, request=REQUESTS, collect=st.booleans())
    def look_up(self, pick: int, request: Request, collect: bool) -> None:
        role = self._worker(pick).role
        schedulers.look_up(self.world, role, request)
        if collect:
            schedulers.collect(self.world, (role.scheduler, request.request_id), wait=None)

    @precondition(lambda self: self.world.oracle.present)
    @rule(pick=PICK, request_id=st.sampled_from(["0", "1"]), more=st.sampled_from(["", "a", "b"]), all_=st.booleans())
    def look_up_what_is_there(self, pick: int, request_id: str, more: str, all_: bool) -> None:
        """One scheduler does, or all that serve the model, under the same request id."""
        chosen, tokens, salt = self._pick(schedulers.stored(self.world), pick)
        request = Request(request_id, tokens + CHUNK_TOKENS.get(more, ()), salt)
        roles = {x.role.scheduler: x.role for x in self.world.workers if x.role.pair == chosen.pair}
        for role in roles.values() if all_ else [chosen]:
            schedulers.look_up(self.world, role, request)
            schedulers.collect(self.world, (role.scheduler, request.request_id), wait=None)

    @rule(pick=PICK, request_id=st.sampled_from(["0", "1", "unknown"]), wait=WAITS)
    def collect(self, pick: int, request_id: str, wait: float | None) -> None:
        schedulers.collect(self.world, (self._worker(pick).role.scheduler, request_id), wait=wait)

    @rule(pick=PICK, request=REQUESTS, start=FREED_FROM, end=st.integers(0, 3 * CHUNK + 2))
    def free(self, pick: int, request: Request, start: int, end: int) -> None:
        schedulers.free(self.world, self._worker(pick).role, request, start, end)

    @precondition(lambda self: schedulers.promises(self.world))
    @rule(pick=PICK, start=FREED_FROM, end=st.integers(0, 3 * CHUNK + 2))
    def free_what_was_promised(self, pick: int, start: int, end: int) -> None:
        worker, request = self._pick(schedulers.promises(self.world), pick)
        schedulers.free(self.world, worker.role, request, start, end)

    @precondition(lambda self: self.world.oracle.sessions)
    @rule(pick=PICK)
    def end(self, pick: int) -> None:
        schedulers.end(self.world, self._pick(list(self.world.oracle.sessions), pick))

    @rule(pick=PICK, request_id=st.sampled_from(["0", "1", "unknown"]))
    def end_any(self, pick: int, request_id: str) -> None:
        schedulers.end(self.world, (self._worker(pick).role.scheduler, request_id))

    # The server's own affairs

    @rule(by=st.sampled_from([None, None, None, "client", "client, by force", "operator"]))
    def clear(self, by: str | None) -> None:
        if by == "operator":
            schedulers.clear_by_operator(self.world)
        elif by is not None:
            schedulers.clear(self.world, force=by == "client, by force")

    @rule(seconds=TIMES, how=st.sampled_from(["tick", "tick", "no tick yet", "stand still", "stand still, tick"]))
    def pass_time(self, seconds: float, how: str) -> None:
        if "stand still" in how:
            self.world.stand_still(seconds)
        else:
            self.world.pass_time(seconds)
        if how.endswith("tick"):
            self.world.tick()

    @precondition(lambda self: self.world.transfers.tasks)
    @rule()
    def freeze(self) -> None:
        coming_and_going.freeze(self.world)

    @precondition(lambda self: self.world.transfers.tasks)
    @rule(how=st.sampled_from(["a piece", "one", "all", "fail"]))
    def transfer(self, how: str) -> None:
        match how:
            case "a piece":
                self.world.transfers.move_piece(self.world.now)
            case "fail":
                self.world.finish_transfer("it did not work")
            case "one":
                self.world.finish_transfer()
            case _:
                self.world.finish_transfers()

    @rule(really=st.integers(0, 63))
    def end_transfers(self, really: int) -> None:
        """Seldom while nothing is under way: little can happen afterwards."""
        if really == 17 or (self.world.transfers.tasks and really % 8 == 1):
            self.world.end_transfers()

    # What does not fit. A retrieve uses its request's leases up even if it is refused: this request has none.

    @rule(pick=PICK, prompt=REQUESTS, wrong=st.sampled_from([None, *KEYS, *BLOCKS]))
    def send_what_does_not_fit(self, pick: int, prompt: Request, wrong: str | None) -> None:
        worker, request = self._worker(pick), replace(prompt, request_id="malformed")
        if wrong in KEYS:
            refuse_key(self.world, worker, request, wrong)
        elif wrong in BLOCKS:
            refuse_blocks(self.world, worker, request, wrong)
        else:
            refuse_others(self.world, worker, request)
        if wrong in SCHEDULER_KEYS:
            refuse_scheduler(self.world, worker, prompt, wrong)

    # What always holds

    @invariant()
    def all_is_as_the_oracle_says(self) -> None:
        if hasattr(self, "world"):
            self.world.check()

    def teardown(self) -> None:
        """Every other worker leaves; the others vanish."""
        if hasattr(self, "world") and self.world.sound:
            for worker in self.world.workers[1::2]:
                coming_and_going.unregister(self.world, worker)
            self.world.wait_for_silence()

    def _store(self, worker: Worker, request: Request, start: int, null: Null | None = None) -> None:
        if worker.lends:
            lending.prepare_store(self.world, worker, request, start, request.end)
        else:
            copying.store(self.world, worker, request, start, request.end, null)

    def _retrieve(self, worker: Worker, request: Request, start: int, skip: int, waited: float = 0.0) -> None:
        if worker.lends:
            lending.prepare_retrieve(self.world, worker, request, start, request.end)
        else:
            copying.retrieve(self.world, worker, request, start, request.end, skip=skip, waited=waited)

    def _worker(self, pick: int) -> Worker:
        return self._pick(self.world.workers, pick)

    @staticmethod
    def _pick(items: Sequence[T], pick: int) -> T:
        return items[pick % len(items)]


class PressedMachine(EngineMachine):
    """There is never enough room: everything that is stored pushes something else out."""

    arenas = (3, 5, 8, 12)


class RoomyMachine(EngineMachine):
    """There is always enough room: everything that was stored is found again."""

    arenas = (1000,)


class _WithL2(EngineMachine):
    """What L1 lets go may be in L2, which does what it is asked at any time and in any order, or fails."""

    @initialize(
        roles=st.sampled_from(CASTS), pick=PICK, liveness=LIVENESS, tiers=st.sampled_from(TIERS), verify=st.booleans()
    )
    def start(
        self, roles: tuple[Role, ...], pick: int, liveness: Liveness, tiers: tuple[L2Settings, ...], verify: bool
    ) -> None:
        self._begin(pick, roles, liveness, tiers, verify)

    @precondition(lambda self: self.world.storage.work)
    @rule(pick=PICK, how=st.sampled_from(["done", "done", "done", "loads", "all", "fail", "damage"]))
    def storage(self, pick: int, how: How | Literal["loads", "all"]) -> None:
        if how == "all":
            self.world.finish_all_storage()
        elif how == "loads":
            self.world.finish_loads()
        else:
            self.world.finish_storage(self._pick(self.world.storage.work, pick), how)

    @precondition(lambda self: self.world.storage.in_use and not self.world.transfers.ended)
    @rule(
        pick=PICK,
        request=REQUESTS,
        left=st.sampled_from([0, 0, 1, 2]),
        wait=WAITS,
        loading=st.sampled_from([True, True, True, False]),
    )
    def load(self, pick: int, request: Request, left: int, wait: float | None, loading: bool) -> None:
        """A prompt is in L2 and most of it not in L1, and is looked up."""
        self._warm(pick, request)
        schedulers.save_elsewhere(self.world, pick)
        schedulers.clear(self.world, force=False)
        role = self._worker(pick).role
        if left:
            self._warm(pick, replace(request, tokens=request.tokens[: left * CHUNK]))
        schedulers.look_up(self.world, role, request)
        while loading and (finds := self.world.storage.finds):
            self.world.finish_storage(finds[0])
        schedulers.collect(self.world, (role.scheduler, request.request_id), wait=wait)

    @precondition(lambda self: self.world.storage.loads)
    @rule(pick=PICK, what=st.sampled_from(["done", "fail", "damage", "clear", "store", None]))
    def meanwhile(self, pick: int, what: How | Literal["clear", "store"] | None) -> None:
        """Something happens to an object that is being loaded, and then it comes."""
        work = self._pick(self.world.storage.loads, pick)
        if what in ("clear", "store"):
            schedulers.clear(self.world, force=False)
        if what == "store":
            identity = work.slot.identity if work.slot else None
            for worker in self.world.workers:
                if identity and worker.role.pair == (identity.model, identity.world_size):
                    self._store(worker, Request("0", identity.tokens, identity.salt), 0)
            self.world.finish_transfers()
        if what is not None:
            self.world.finish_storage(work, what if what in ("fail", "damage") else "done")

    @precondition(lambda self: schedulers.saved(self.world))
    @rule(pick=PICK, request_id=st.sampled_from(["0", "1"]), wait=WAITS, how=st.sampled_from(["ask", "wait", "all"]))
    def look_up_what_was_saved(self, pick: int, request_id: str, wait: float | None, how: str) -> None:
        role, tokens, salt = self._pick(schedulers.saved(self.world), pick)
        request = Request(request_id, tokens, salt)
        if how == "all":
            schedulers.let_it_come(self.world, role, request)
        else:
            schedulers.look_up(self.world, role, request)
        if how == "wait":
            schedulers.collect(self.world, (role.scheduler, request_id), wait=wait)

    @rule(pick=PICK, request=REQUESTS)
    def let_it_come(self, pick: int, request: Request) -> None:
        schedulers.let_it_come(self.world, self._worker(pick).role, request)

    @rule(pick=PICK, request=REQUESTS)
    def load_before_anybody_asks(self, pick: int, request: Request) -> None:
        schedulers.warm(self.world, self._worker(pick).role, request)

    @rule(
        pick=PICK,
        what=st.sampled_from(["pause", "resume", "resume", "lose everything", "clear", "configure", *[None] * 4]),
    )
    def change_tiers(self, pick: int, what: str | None) -> None:
        storage = self.world.storage
        tier = self._pick(storage.configured, pick).name
        match what:
            case "pause" | "resume":
                self.world.pause_tier(tier, paused=what == "pause")
            case "lose everything":
                storage.objects.pop(tier, None)
            case "clear":
                self.world.clear_tier(tier)
            case "configure":
                self.world.configure_tiers(self._pick(TIERS, pick))


class PressedMachineWithL2(_WithL2):
    arenas = (4, 8, 12, 16)


class RoomyMachineWithL2(_WithL2):
    arenas = (1000,)


TestEngineUnderPressure = PressedMachine.TestCase
TestEngineUnderPressure.settings = budget(examples=850, steps=50)
TestEngineWithRoom = RoomyMachine.TestCase
TestEngineWithRoom.settings = budget(examples=650, steps=50)
TestEngineWithL2UnderPressure = PressedMachineWithL2.TestCase
TestEngineWithL2UnderPressure.settings = budget(examples=450, steps=50)
TestEngineWithL2AndRoom = RoomyMachineWithL2.TestCase
TestEngineWithL2AndRoom.settings = budget(examples=450, steps=50)
