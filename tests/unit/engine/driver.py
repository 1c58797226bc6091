"""An engine without threads, sockets or memory: what it wants done is done at once, or when a test says so."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import count
from typing import Any, TypeAlias, TypeVar

from engine import EngineSettings, L2Settings, Liveness, LookReport, StatusReport
from engine.commands import A, Command, Look
from engine.core import Engine
from engine.events import (
    Checksum,
    CommandAsked,
    CommandDone,
    Continue,
    Continued,
    Copy,
    CopyEnded,
    Discard,
    Discarded,
    Due,
    Effect,
    Event,
    Failed,
    Find,
    Found,
    Load,
    Loaded,
    Map,
    MapEnded,
    Probe,
    Probed,
    Reply,
    Save,
    Saved,
    Summed,
    Tick,
    Unmap,
    UnmapEnded,
    Warn,
)
from engine.hashing import hash_tokens
from engine.l1.cache import ALIGNMENT, L1Cache
from engine.l1.entry import Entry
from engine.l1.partitions import MakePolicy
from engine.l1.policies.lru_policy import Policy
from engine.status import TierOutcome
from engine.traffic import Traffic
from engine.wire import messages as m
from engine.wire.codec import encode_value
from tests.unit.engine.support import HANDLE, arrived, cpu_tensor, key, packed, register, unpacked

POOL = m.RegisterEngineDrivenReply("pool", 1 << 20)
TENSORS = [cpu_tensor([9, 2, 8, 8], shm_name=f"/{layer}") for layer in range(2)]
"""Two layers, 9 blocks of 8 tokens, 512 bytes a chunk of 16 tokens and layer: each object occupies one slot."""
SLOT = ALIGNMENT


T = TypeVar("T", Find, Load, Save)
Task: TypeAlias = Copy | Map | Unmap | Discard | Checksum


class Storage:
    """The tiers of L2: which keys each has. `working`: what is asked of it is done at once."""

    def __init__(self, names: Iterable[str]) -> None:
        self.keys: dict[str, set[bytes]] = {name: set() for name in names}
        self.pending: list[Find | Load | Save] = []
        self.working = True

    def answer(self, now: float, task: Find | Load | Save, outcome: TierOutcome) -> Event:
        keys = self.keys[task.tier]
        match task:
            case Find():
                return Found(now, task.ticket, tuple(outcome == "done" and key in keys for key in task.keys))
            case Load():
                is_there = task.slot.key in keys
                return Loaded(now, task.ticket, outcome if is_there or outcome != "done" else "absent")
            case Save():
                if outcome == "done":
                    keys.add(task.slot.key)
                return Saved(now, task.ticket, outcome)


class Driver:
    """Asks an engine and notes its effects. `now` is the time of everything that happens."""

    def __init__(
        self,
        slots: int = 100,
        *,
        working: bool = True,
        liveness: Liveness | None = None,
        make_policy: MakePolicy = Policy,
        tiers: Sequence[L2Settings] = (),
        verify: bool = False,
    ) -> None:
        """`slots`: L1 in slots of 4,096 bytes. `working`: what the engine wants done is done at once."""
        liveness = liveness or Liveness()
        settings = EngineSettings(chunk_size=16, liveness=liveness, l2=tuple(tiers), l1_verify=verify)
        self.cache = L1Cache(slots * SLOT, make_policy)
        self.traffic = Traffic()
        self.engine = Engine(settings, self.cache, POOL, self.traffic)
        self.now = 0.0
        self.working = working
        self.problem: str | None = None
        """What goes wrong with the work."""
        self.pending: list[Task] = []
        self.done: list[Task] = []
        self.replies: dict[bytes, Any] = {}
        """By uid."""
        self.answers: dict[int, Any] = {}
        """To commands, by ticket."""
        self.wants_to_continue = False
        self.connected = False
        """Whether the connections of silent workers stand."""
        self.lost: set[bytes] = set()
        """Connections that do not stand, whatever the others do."""
        self.probes: list[Probe] = []
        """All there were."""
        self.warnings: list[str] = []
        self.storage = Storage(tier.name for tier in tiers)
        self._tickets = count()

    def start(self, message: m.Message, *, client: bytes = b"c", waited: float = 0.0) -> bytes:
        """Asks; returns the uid."""
        event = arrived(message, self.now, client=client, waited=waited)
        self.handle(event)
        return event.to.uid

    def ask(self, message: m.Message, *, client: bytes = b"c", waited: float = 0.0) -> Any:
        """The answer as a client reads it; None for one without a value."""
        return self.replies[self.start(message, client=client, waited=waited)]

    def handle(self, event: Event) -> list[Effect]:
        effects = self.engine.handle(event)
        probes: list[Probe] = []
        for effect in effects:
            if isinstance(effect, Reply):
                assert effect.to.uid not in self.replies, "a second reply"
                self.replies[effect.to.uid] = None if effect.value is None else unpacked(encode_value(effect.value))
            elif isinstance(effect, Warn):
                self.warnings.append(effect.text)
            elif isinstance(effect, Failed):
                raise effect.error
            elif isinstance(effect, CommandDone):
                assert effect.ticket not in self.answers, "a second answer"
                self.answers[effect.ticket] = effect.answer
            elif isinstance(effect, Continue):
                assert not self.wants_to_continue, "a second wish to continue"
                self.wants_to_continue = True
            elif isinstance(effect, Probe):
                probes.append(effect)
            elif isinstance(effect, Find | Load | Save):
                self.storage.pending.append(effect)
            else:
                self.pending.append(effect)
        self.probes += probes
        for probe in probes:
            stands = self.connected and probe.client not in self.lost
            self.handle(Probed(self.now, probe.client, stands))
        if self.working:
            self.work()
        if self.storage.working:
            self.work_in_l2()
        return effects

    def work(self) -> None:
        """Does all that the engine wants done."""
        while self.pending:
            task = self.pending.pop(0)
            self.done.append(task)
            self.handle(self.outcome(task))

    def outcome(self, task: Task) -> Event:
        """How something ends that the engine wants done."""
        match task:
            case Copy():
                return CopyEnded(self.now, task.job_id, self.problem)
            case Map():
                return MapEnded(self.now, task.mapping_id, self.problem)
            case Unmap():
                return UnmapEnded(self.now, task.mapping_id)
            case Discard():
                return Discarded(self.now, self.problem)
            case Checksum():
                return Summed(self.now, task.ticket, None)

    def work_in_l2(self, outcome: TierOutcome = "done", kind: type[Find | Load | Save] | None = None) -> None:
        """Lets L2 do all that is asked of it, or all of a kind, as far as this was asked before or follows from it."""
        while task := next((each for each in self.storage.pending if kind is None or isinstance(each, kind)), None):
            self.answer(task, outcome)

    def answer(self, task: Find | Load | Save, outcome: TierOutcome = "done") -> None:
        """Lets L2 do one thing, or fail to. What a tier does not have is absent."""
        self.storage.pending.remove(task)
        self.handle(self.answered(task, outcome))

    def answered(self, task: Find | Load | Save, outcome: TierOutcome) -> Event:
        """How something ends that was asked of L2."""
        return self.storage.answer(self.now, task, outcome)

    def asked(self, kind: type[T]) -> list[T]:
        """What L2 was asked for and has not done, in order."""
        return [each for each in self.storage.pending if isinstance(each, kind)]

    def tick(self, seconds: float) -> None:
        """Time passes, and the engine is told each second."""
        end = self.now + seconds
        while self.now < end:
            self.now = min(end, self.now + 1)
            self.handle(Tick(self.now))

    def stand_still(self, seconds: float) -> None:
        """Time passes, and the engine is told when it is over."""
        self.now += seconds
        self.handle(Tick(self.now))

    def wait(self, seconds: float) -> None:
        """Time passes, and the engine hears of it where it wanted to."""
        self.now += seconds
        if self.engine.due <= self.now:
            self.handle(Due(self.now))

    @property
    def ranked(self) -> list[Entry]:
        """What may be evicted for an object without a salt, first to last."""
        partitions = self.cache._partitions
        return list(partitions.victims(partitions.of("")))

    # What operators do.

    def order(self, command: Command[Any]) -> int:
        """Gives a command; returns its ticket."""
        ticket = next(self._tickets)
        self.handle(CommandAsked(self.now, ticket, command))
        return ticket

    def tell(self, command: Command[A]) -> A:
        """The answer to a command that has to be answered at once."""
        answer: A = self.answers[self.order(command)]
        return answer

    def look(
        self, tokens: Sequence[int], model_name: str = "m", world_size: int | None = None, cache_salt: str = ""
    ) -> LookReport:
        """What a lookup would find now."""
        return self.tell(Look(model_name, world_size, cache_salt, tuple(hash_tokens(tokens, 16)), len(tokens) % 16))

    def go_on(self) -> bool:
        """Those who wait had their turn; returns False if nobody has wanted to continue after that."""
        wanted, self.wants_to_continue = self.wants_to_continue, False
        if wanted:
            self.handle(Continued(self.now))
        return wanted

    def run_jobs(self) -> None:
        """Until none has more to do at once."""
        while self.go_on():
            pass

    def report(self) -> StatusReport:
        return self.engine.report(failed_requests=0, dropped_messages=0, dropped_replies=0)

    # What clients do.

    def register(self, instance_id: int = 1, bodies: Sequence[object] = TENSORS, **more: Any) -> None:
        assert self.ask(register(instance_id, bodies, **more)) is None

    def store(self, tokens: Sequence[int], instance_id: int = 1, block_ids: Any = None, **more: Any) -> Any:
        wanted = key(tokens, worker_id=more.pop("worker_id", 0), **more)
        blocks = [list(range(1, 1 + (wanted.end - wanted.start) // 8))] if block_ids is None else block_ids
        return self.ask(m.Store(wanted, instance_id, blocks, HANDLE))

    def retrieve(
        self,
        tokens: Sequence[int],
        instance_id: int = 1,
        block_ids: Any = None,
        *,
        skip: int = 0,
        waited: float = 0.0,
        **more: Any,
    ) -> Any:
        wanted = key(tokens, worker_id=more.pop("worker_id", 0), **more)
        blocks = [list(range(1, 1 + (wanted.end - wanted.start) // 8))] if block_ids is None else block_ids
        return self.ask(m.Retrieve(wanted, instance_id, blocks, HANDLE, skip), waited=waited)

    def lookup(self, tokens: Sequence[int], *, client: bytes = b"c", **more: Any) -> int:
        """The number of chunks found."""
        wanted = key(tokens, **more)
        assert self.ask(m.Lookup(wanted, packed(1)), client=client) is None
        found = self.ask(m.QueryPrefetchStatus(wanted.request_id), client=client)
        assert isinstance(found, int)
        return found

    def free(self, tokens: Sequence[int], *, client: bytes = b"c", **more: Any) -> None:
        assert self.ask(m.FreeLookupLocks(key(tokens, **more), packed(1)), client=client) is None

    def end(self, request_id: str = "r", *, client: bytes = b"c") -> None:
        assert self.ask(m.EndSession(request_id), client=client) is None

    def look_up(self, tokens: Sequence[int], *, client: bytes = b"c", **more: Any) -> None:
        """Begins a lookup; `query` has the answer."""
        assert self.ask(m.Lookup(key(tokens, **more), packed(1)), client=client) is None

    def query(self, request_id: str = "r", *, client: bytes = b"c") -> int | None:
        """The number of chunks found; None while that is not known."""
        found: int | None = self.ask(m.QueryPrefetchStatus(request_id), client=client)
        return found

    @property
    def leased(self) -> int:
        return self.cache.objects_in_use[0]

    @property
    def reserved(self) -> int:
        return self.cache.objects_in_use[1]
