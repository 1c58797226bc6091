"""The running engine as the service sees it: start it, ask it, command it, stop it."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError
from dataclasses import replace
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from engine.answers import LookReport
from engine.commands import A, ChangePolicy, Command, Grow, Look, Question, Shrink, StopShrinking
from engine.errors import EngineStoppedError, EngineTimeoutError, NoMemoryError, StartError
from engine.settings import EngineSettings
from engine.status import StatusReport

if TYPE_CHECKING:
    import zmq

    from engine.l1.policies.base import EvictionPolicy
    from engine.wire.router import Router

logger = logging.getLogger(__name__)

_ANSWER_SECONDS: Final = 10.0
"""The engine thread answers between two batches of requests; far longer than that means it is stuck."""
_SILENCE_SECONDS: Final = 5.0
"""Age of the newest report at which the engine thread counts as stuck; it makes one each second at least."""


class Runtime:
    """A started engine with its threads.

    Every method may be called from any thread. Reading is free of locks: a report is published by the engine thread
    and only looked at here. `on_death` is called once, from the engine thread, if that ends by itself.
    """

    def __init__(
        self,
        settings: EngineSettings,
        on_death: Callable[[BaseException], None],
        progress: Callable[[int], None] = lambda done: None,
    ) -> None:
        """Allocates L1, binds the data plane, starts the threads; returns when they serve.

        `progress` is called with the bytes of L1 allocated so far; what it raises ends the start. Raises StartError.
        """
        # PERF: torch takes a second to import, and HTTP must answer before that; so nothing above here imports it.
        import zmq

        from engine.core import Engine
        from engine.l1.arena import Arena
        from engine.l1.cache import L1Cache
        from engine.loop import EngineLoop, Mailbox
        from engine.transfer.torch_copier import TorchCopier
        from engine.transfer.worker import TransferWorker
        from engine.wire.messages import RegisterEngineDrivenReply

        self._on_death = on_death
        self._chunk_size = settings.chunk_size
        policy = _policy(settings.eviction_policy)
        self._context = zmq.Context()
        router = _bind(self._context, settings)
        try:
            name = f"kvkeep_l1_{os.getpid()}_{os.urandom(4).hex()}"
            self._arena = Arena(name, settings.l1_size, settings.l1_max_size, progress)
        except BaseException:
            router.close()
            self._context.term()
            raise
        self.endpoint: Final = router.endpoint
        """Where the data plane listens, with the real port: `tcp://127.0.0.1:5555`."""
        pool = RegisterEngineDrivenReply(self._arena.name, self._arena.length)
        engine = Engine(settings, L1Cache(settings.l1_size, policy), pool)
        self._mailbox = Mailbox()
        copier = TorchCopier(self._arena.bytes, time.monotonic)
        transfers = TransferWorker(copier, self._arena.discard, self._mailbox.post, time.monotonic)
        self._loop = EngineLoop(engine, router, self._mailbox, transfers, time.monotonic)
        self._thread = threading.Thread(target=self._run, name="engine")
        self._stopped = False
        self._tuning = threading.Lock()
        """Held while L1 is being resized."""
        transfers.start()
        self._thread.start()

    def status(self) -> StatusReport:
        """The newest report. Raises EngineStoppedError once the engine has ended."""
        if not self._thread.is_alive():
            raise EngineStoppedError("the engine thread has ended")
        made, report = self._loop.published
        age = time.monotonic() - made
        if age < _SILENCE_SECONDS:
            return report
        problem = f"the engine thread has not reported for {age:.0f} seconds"
        return replace(report, is_healthy=False, problems=(*report.problems, problem))

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
                self._arena.grow(present, size)
                self.ask(Grow(size), _ANSWER_SECONDS)
            elif size < present:
                self.ask(Shrink(size), _ANSWER_SECONDS)

    def change_policy(self, name: str) -> None:
        """Lets another eviction policy rank what is cached.

        Raises StartError if there is none of that name; EngineTimeoutError, EngineStoppedError.
        """
        self.ask(ChangePolicy(name, _policy(name)), _ANSWER_SECONDS)

    def stop(self) -> None:
        """Ends the threads in order and frees the shared memory. A second call does nothing."""
        if self._stopped:
            return
        self._stopped = True
        self._loop.stop()
        self._thread.join()
        self._context.term()
        self._mailbox.close()
        self._arena.close()

    def _run(self) -> None:
        try:
            self._loop.run()
        except BaseException as error:
            logger.exception("the engine thread has ended")
            self._on_death(error)


def _policy(name: str) -> EvictionPolicy:
    try:
        module: Any = import_module(f"engine.l1.policies.{name}_policy")
    except ModuleNotFoundError:
        raise StartError(f"there is no eviction policy {name!r}") from None
    policy: EvictionPolicy = module.Policy()
    return policy


def _bind(context: zmq.Context[zmq.Socket[bytes]], settings: EngineSettings) -> Router:
    import zmq

    from engine.logs import WarningBudget
    from engine.wire.router import Router

    warn = WarningBudget(logging.getLogger("engine.clients"), time.monotonic)
    try:
        return Router(context, settings.host, settings.port, warn)
    except zmq.ZMQError as error:
        context.term()
        raise StartError(
            f"cannot listen on {settings.host}:{settings.port}: {error.strerror}; another server may use that port: "
            "choose another one with --port, or end that server"
        ) from None
