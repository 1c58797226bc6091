"""The running engine as the service sees it: start it, ask it, command it, stop it."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError
from contextlib import ExitStack, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from engine.answers import JobReport, LookReport, PinReport
from engine.commands import (
    A,
    ChangePolicy,
    Command,
    ConfigureQuotas,
    ConfigureTiers,
    Drain,
    Grow,
    Look,
    PauseTier,
    Question,
    SetPin,
    SetPinBudget,
    Shrink,
    StartPrefetch,
    StopShrinking,
)
from engine.discovery import make_l2_adapter, policy_maker, policy_names
from engine.errors import (
    EngineError,
    EngineStoppedError,
    EngineStuckError,
    EngineTimeoutError,
    NoMemoryError,
    StartError,
    TierError,
)
from engine.health import MonitorReport
from engine.settings import EngineSettings, L2Settings, QuotaSettings
from engine.status import StatusReport
from engine.supervision import SupervisedThread, Supervisor

if TYPE_CHECKING:
    import zmq

    from engine.advisor.report import AdvisorReport
    from engine.l2.tier import L2Tier
    from engine.logs import WarningBudget
    from engine.recording.report import RecordingReport
    from engine.wire.connections import Connections
    from engine.wire.router import Router

logger = logging.getLogger(__name__)

_ANSWER_SECONDS: Final = 10.0
"""The engine thread answers between two batches of requests; far longer than that means it is stuck."""
_FIRST_PASS_SECONDS: Final = 5.0
_DETACH_SECONDS: Final = 2.0
"""For the threads of a tier that is not wanted any more; they end by themselves when their storage answers."""
_STOP_SECONDS: Final = 10.0
"""For the engine thread to end; it waits for the transfer thread itself."""


class Runtime:
    """A started engine with its threads.

    Every method may be called from any thread. Reading is free of locks: a report is published by the engine thread
    and only looked at here. `on_death` is called once, from the engine thread, when that has failed; after that it
    tells its clients, and ends.
    """

    def __init__(
        self,
        settings: EngineSettings,
        on_death: Callable[[BaseException], None],
        progress: Callable[[int], None] = lambda done: None,
        supervisor: Supervisor | None = None,
    ) -> None:
        """Allocates L1, binds the data plane, starts the threads; returns when the monitor finds them alive.

        `supervisor` is to watch the threads, and makes a part of the check `loops`; it may know others already.
        `progress` is called with the bytes of L1 allocated so far; what it raises ends the start. Raises StartError.
        """
        # PERF: torch takes a second to import, and HTTP must answer before that; so nothing above here imports it.
        import zmq

        from engine.advisor.advisor import Advisor
        from engine.background import Background
        from engine.core import Engine
        from engine.l1.arena import PREFIX, Arena, remove_leftovers
        from engine.l1.cache import L1Cache
        from engine.l2.group import TierGroup
        from engine.loop import EngineLoop, Mailbox
        from engine.monitor import Monitor
        from engine.recording.recorder import Recorder
        from engine.traffic import Traffic
        from engine.transfer import leftovers
        from engine.transfer.torch_copier import TorchCopier
        from engine.transfer.worker import TransferWorker
        from engine.wire.connections import Connections
        from engine.wire.messages import RegisterEngineDrivenReply

        self._on_death = on_death
        supervisor = supervisor or Supervisor(time.monotonic)
        self._chunk_size = settings.chunk_size
        make_policy = policy_maker(settings.eviction_policy)
        self._context = zmq.Context()
        self._connections = Connections(_warnings(), time.monotonic)
        router = _bind(self._context, settings, self._connections)
        with ExitStack() as undo:
            undo.callback(self._context.term)
            undo.callback(self._connections.close)
            undo.callback(router.close)
            for left in remove_leftovers():
                logger.warning("removed /dev/shm/%s, which a killed server had left behind", left)
            for left in leftovers.remove_leftovers():
                logger.warning("removed /dev/shm/%s, which a killed worker had left behind", left)
            name = f"{PREFIX}{os.getpid()}_{os.urandom(4).hex()}"
            self._arena = Arena(name, settings.l1_size, settings.l1_max_size, progress, settings.huge_pages)
            undo.callback(self._arena.close)
            self.endpoint: Final = router.endpoint
            """Where the data plane listens, with the real port: `tcp://127.0.0.1:5555`."""
            pool = RegisterEngineDrivenReply(self._arena.name, self._arena.length)
            traffic = Traffic()
            engine = Engine(settings, L1Cache(settings.l1_size, make_policy), pool, traffic)
            self._mailbox = Mailbox()
            undo.callback(self._mailbox.close)
            copier = TorchCopier(self._arena.bytes, time.monotonic)
            self._transfers = TransferWorker(
                copier, self._arena.discard, self._mailbox.post, time.monotonic, supervisor
            )
            self._tiers = TierGroup(make_l2_adapter, self._arena.memory, self._mailbox.post, time.monotonic, supervisor)
            undo.callback(self._tiers.stop)
            self._tiers.attach(settings.l2)
            # NOTE: Not begun again: a broken invariant may lead to wrong bytes, an empty cache does not.
            self._thread = thread = SupervisedThread(supervisor, "engine", self._run, attempts=1)
            self._loop = loop = EngineLoop(
                engine, router, self._mailbox, self._transfers, self._tiers, time.monotonic, supervisor, thread.count
            )
            self._monitor = Monitor(
                self.endpoint,
                lambda: thread.state == "running",
                lambda: loop.published[0],
                self._transfers,
                time.monotonic,
                supervisor,
            )
            policies = {name: policy_maker(name) for name in policy_names()}
            self._advisor = Advisor(
                traffic.references, policies, lambda: loop.published[1], time.monotonic, time.thread_time, supervisor
            )
            self._recorder = Recorder(
                traffic.prompts, settings.recording, settings.chunk_size, time.monotonic, supervisor
            )
            self._watch = Background(
                "connections", self._connections.work, self._connections.close, supervisor=supervisor
            )
            self._helpers = (self._advisor.thread, self._recorder.thread)
            undo.pop_all()
        self._stopped = False
        self._tuning = threading.Lock()
        """Held while L1 is being resized."""
        self._l1_size = settings.l1_size
        self._watch.start()
        self._transfers.start()
        self._thread.start()
        self._start_helpers(settings)
        self._watch_tiers()
        self._monitor.start()
        self._await_first_pass()

    def status(self) -> StatusReport:
        """The newest report, with what the monitor finds wrong. Raises EngineStoppedError once the engine has ended."""
        if not self._thread.is_alive():
            raise EngineStoppedError("the engine thread has ended")
        report = self._loop.published[1]
        found = tuple(str(check) for check in self._monitor.failing() if check.detail not in report.problems)
        return replace(report, is_healthy=False, problems=(*report.problems, *found)) if found else report

    def checks(self) -> MonitorReport:
        """Every check and every loop, as the monitor found them last. Never raises."""
        return self._monitor.report()

    def advice(self) -> AdvisorReport:
        """What another size or policy of L1 would do, as the advisor has found last. Never raises."""
        return self._advisor.report

    def set_advisor(self, enabled: bool) -> None:
        """Has the advisor look at the traffic from now on, or no more."""
        self._advisor.enable(enabled)

    def recording(self) -> RecordingReport:
        """What the recorder does. Never raises."""
        return self._recorder.report

    def record(self, enabled: bool) -> None:
        """Begins a recording of the traffic, or ends it; returns when that is done.

        Raises RecordingError, and then records nothing, or EngineTimeoutError.
        """
        self._recorder.switch(enabled)

    def ask(self, command: Command[A], timeout: float) -> A:
        """Has a command carried out between two requests.

        Raises EngineTimeoutError, after which it may still be carried out, EngineStoppedError, and what it raises.
        """
        if not self._thread.is_alive():
            raise EngineStoppedError("the engine thread has ended")
        try:
            return self._loop.ask(command).result(timeout)
        except TimeoutError:
            raise EngineTimeoutError(f"the engine did not answer within {timeout:g} seconds") from None
        except CancelledError:
            raise EngineStoppedError("the engine is stopping") from None

    def look(self, question: Question, timeout: float) -> LookReport:
        """What a lookup of these tokens would find now. Raises as `ask` does, and AmbiguousError."""
        from engine.hashing import hash_tokens

        # NOTE: Hashed here rather than on the engine thread, which would serve nobody meanwhile.
        hashes = tuple(hash_tokens(question.tokens, self._chunk_size))
        spare = len(question.tokens) % self._chunk_size
        look = Look(question.model_name, question.world_size, question.cache_salt, hashes, spare)
        return self.ask(look, timeout)

    def resize_l1(self, size: int) -> None:
        """Changes the capacity of L1 to `size` bytes, and returns when it is in force.

        Growing allocates the memory first, which takes a while; engines are served meanwhile. Shrinking puts nothing
        behind the new size any more, evicts what lies there, and gives the memory back when what was in use there has
        ended. Raises NoMemoryError, and then changes nothing; EngineTimeoutError, EngineStoppedError.
        """
        if size > self._arena.length:
            raise NoMemoryError(f"L1 cannot be grown beyond {self._arena.length} bytes (l1.max_size) without a restart")
        with self._tuning:
            present = self.ask(StopShrinking(), _ANSWER_SECONDS)
            if size > present:
                self._grow_l1(present, size)
            elif size < present:
                self.ask(Shrink(size), _ANSWER_SECONDS)
            self._l1_size = size

    def change_policy(self, name: str) -> None:
        """Lets another eviction policy rank what is cached.

        Raises StartError if there is none of that name; EngineTimeoutError, EngineStoppedError.
        """
        self.ask(ChangePolicy(name, policy_maker(name)), _ANSWER_SECONDS)

    def _grow_l1(self, present: int, size: int) -> None:
        try:
            self._arena.grow(present, size)
        except NoMemoryError:
            # An earlier shrink may have been stopped for this.
            if self._l1_size < present:
                self.ask(Shrink(self._l1_size), _ANSWER_SECONDS)
            raise
        self.ask(Grow(size), _ANSWER_SECONDS)

    def configure_quotas(self, quotas: QuotaSettings) -> None:
        """Puts the configuration's quotas in force; those that operators have set stay.

        Raises EngineTimeoutError, EngineStoppedError.
        """
        self.ask(ConfigureQuotas(quotas), _ANSWER_SECONDS)

    def configure_tiers(self, tiers: tuple[L2Settings, ...]) -> None:
        """Attaches and detaches tiers of L2 until there are these; what stays the same is not disturbed.

        Raises StartError, and then nothing has changed; EngineTimeoutError, EngineStoppedError.
        """
        with self._tuning:
            left = self._tiers.attach(tiers)
            self.ask(ConfigureTiers(tiers), _ANSWER_SECONDS)
            for tier in left:
                stuck = tier.stop(_DETACH_SECONDS)
                if stuck:
                    logger.warning("L2 %s: threads that do not end yet: %s", tier.settings.name, ", ".join(stuck))
            self._watch_tiers()

    def tier(self, name: str) -> L2Tier:
        """One tier of L2. Raises TierError if there is none of that name."""
        return self._tiers.get(name)

    def pause_tier(self, name: str, paused: bool, timeout: float) -> None:
        """Lets nothing be asked of a tier, or lets it be asked again. Raises as `ask` does, and TierError."""
        tier = self._tiers.get(name)
        self.ask(PauseTier(name, paused), timeout)
        tier.is_paused = paused

    def clear_tiers(self) -> None:
        """Begins to clear every tier. Raises TierError, and then some may have begun."""
        for tier in self._tiers.tiers:
            tier.clear()

    def find_in_tiers(self, rows: Sequence[tuple[bytes, ...]], timeout: float) -> int:
        """How many of these chunks, in order, are in the tiers together, with all of their objects.

        Paused tiers are not asked. `timeout` is for each of the others; one that does not answer in time has nothing.
        """
        missing = {key for row in rows for key in row}
        paused = {each.name for each in self._loop.published[1].l2 if each.is_paused}
        for tier in self._tiers.tiers:
            if tier.settings.name in paused or not missing:
                continue
            keys = [key for row in rows for key in row if key in missing]
            with suppress(TierError, TimeoutError):
                found = tier.find(keys).result(timeout)
                missing -= {key for key, there in zip(keys, found, strict=True) if there}
        return next((index for index, row in enumerate(rows) if missing.intersection(row)), len(rows))

    def delete_in_tiers(self, keys: Sequence[bytes], timeout: float) -> int:
        """Deletes these objects from every tier; returns how many there were. Raises TierError."""
        asked = [(tier, tier.delete(keys)) for tier in self._tiers.tiers]
        try:
            return sum(future.result(timeout) for _, future in asked)
        except TimeoutError:
            raise TierError(f"an L2 tier did not answer within {timeout:g} seconds") from None

    def prefetch(self, question: Question, timeout: float) -> JobReport:
        """Begins to load what L2 has of these tokens into L1. Raises as `ask` does, and PrefetchError."""
        from engine.hashing import hash_tokens

        hashes = tuple(hash_tokens(question.tokens, self._chunk_size))
        command = StartPrefetch(question.model_name, question.world_size, question.cache_salt, hashes)
        return self.ask(command, timeout)

    def set_pin_budget(self, budget: int | None) -> None:
        """Lets pins hold at most `budget` bytes from now on, a quarter of L1 if it is None.

        Raises EngineTimeoutError, EngineStoppedError.
        """
        self.ask(SetPinBudget(budget), _ANSWER_SECONDS)

    def pin(self, question: Question, ttl: float, timeout: float) -> PinReport:
        """Keeps the complete chunks of these tokens in L1 for `ttl` seconds. Raises as `ask` does, and PinError."""
        from engine.hashing import hash_tokens

        hashes = tuple(hash_tokens(question.tokens, self._chunk_size))
        pin = SetPin(question.model_name, question.world_size, question.cache_salt, hashes, ttl)
        return self.ask(pin, timeout)

    def drain(self, timeout: float) -> None:
        """From now on lookups find nothing and stores are skipped as done, so that running transfers run out.

        Raises EngineTimeoutError, EngineStoppedError.
        """
        self.ask(Drain(), timeout)

    def stop(self) -> None:
        """Ends the threads in order and frees the shared memory. A second call does nothing.

        Raises EngineStuckError, in bounded time, if a thread does not end; the name of the shared memory is removed all
        the same. The process should then end without waiting for its threads; another call tries once more.
        """
        if self._stopped:
            return
        stuck = [] if self._monitor.stop() else ["monitor"]
        stuck += [helper.name for helper in self._helpers if not helper.stop()]
        self._thread.ask_to_end()
        self._loop.stop()
        self._thread.join(_STOP_SECONDS)
        if self._thread.is_alive():
            stuck.append("engine")
        # NOTE: Behind the socket that is watched: libzmq waits for whoever reads what it tells of it.
        elif not self._watch.stop():
            stuck.append(self._watch.name)
        else:
            self._context.term()
        stuck += self._tiers.stop()
        if not self._transfers.stop():
            stuck.append("transfer")
        if stuck:
            self._arena.unlink()
            raise EngineStuckError(f"threads that do not end: {', '.join(stuck)}")
        self._stopped = True
        self._mailbox.close()
        self._arena.close()

    def _start_helpers(self, settings: EngineSettings) -> None:
        for helper in self._helpers:
            helper.start()
        self._advisor.enable(settings.advisor_enabled)
        if settings.recording.enabled:
            try:
                self._recorder.switch(True)
            except EngineError as error:
                logger.warning("the traffic is not recorded: %s", error)

    def _watch_tiers(self) -> None:
        """A required tier that does not answer keeps the server from being ready; no restart would cure that."""
        required = {f"l2:{tier.settings.name}": tier.problem for tier in self._tiers.tiers if tier.settings.required}
        self._monitor.replace_checks("l2:", required, "readiness")

    def _await_first_pass(self) -> None:
        failed = self._monitor.first_pass(_FIRST_PASS_SECONDS)
        if not failed:
            return
        # NOTE: What does not come to life may not end either; the check that fails is what the operator needs to read.
        with suppress(EngineStuckError):
            self.stop()
        found = "; ".join(f"{check.name}: {check.detail or 'no answer yet'}" for check in failed)
        raise StartError(f"the engine does not come to life within {_FIRST_PASS_SECONDS:g} seconds: {found}")

    def _run(self, thread: SupervisedThread) -> None:
        self._loop.run(self._fail)

    def _fail(self, error: BaseException) -> None:
        """Called on the engine thread; whoever waits for it is answered after that."""
        self._thread.fail(error)
        failure = EngineStoppedError(f"the engine thread has ended: {type(error).__name__}: {error}")
        failure.__cause__ = error
        self._on_death(failure)


def _warnings() -> WarningBudget:
    from engine.logs import WarningBudget

    return WarningBudget(logging.getLogger("engine.clients"), time.monotonic)


def _bind(context: zmq.Context[zmq.Socket[bytes]], settings: EngineSettings, connections: Connections) -> Router:
    import zmq

    from engine.wire.router import Router

    try:
        return Router(context, settings.host, settings.port, _warnings(), connections)
    except zmq.ZMQError as error:
        connections.close()
        context.term()
        raise StartError(
            f"cannot listen on {settings.host}:{settings.port}: {error.strerror}; another server may use that port: "
            "choose another one with --port, or end that server"
        ) from None
