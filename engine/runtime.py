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

from engine.commands import ClearAll, Command
from engine.errors import EngineStoppedError, EngineTimeoutError, StartError
from engine.settings import EngineSettings
from engine.status import Cleared, StatusReport

if TYPE_CHECKING:
    import zmq

    from engine.l1.policies.base import EvictionPolicy
    from engine.wire.router import Router

logger = logging.getLogger(__name__)

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
        from engine.l1.arena import PREFIX, Arena, remove_leftovers
        from engine.l1.cache import L1Cache
        from engine.loop import EngineLoop, Mailbox
        from engine.transfer.torch_copier import TorchCopier
        from engine.transfer.worker import TransferWorker
        from engine.wire.messages import RegisterEngineDrivenReply

        self._on_death = on_death
        policy = _policy(settings.eviction_policy)
        self._context = zmq.Context()
        router = _bind(self._context, settings)
        try:
            for left in remove_leftovers():
                logger.warning("removed /dev/shm/%s, which a killed server had left behind", left)
            name = f"{PREFIX}{os.getpid()}_{os.urandom(4).hex()}"
            self._arena = Arena(name, settings.l1_size, progress)
        except BaseException:
            router.close()
            self._context.term()
            raise
        self.endpoint: Final = router.endpoint
        """Where the data plane listens, with the real port: `tcp://127.0.0.1:5555`."""
        pool = RegisterEngineDrivenReply(self._arena.name, self._arena.size)
        engine = Engine(settings, L1Cache(settings.l1_size, policy), pool)
        self._mailbox = Mailbox()
        transfers = TransferWorker(TorchCopier(self._arena.bytes, time.monotonic), self._mailbox.post, time.monotonic)
        self._loop = EngineLoop(engine, router, self._mailbox, transfers, time.monotonic)
        self._thread = threading.Thread(target=self._run, name="engine")
        self._stopped = False
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

    def clear(self, timeout: float) -> Cleared:
        """Makes everything in L1 invisible. Raises EngineTimeoutError, EngineStoppedError."""
        cleared: Cleared = self._ask(ClearAll(), timeout)
        return cleared

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

    def _ask(self, command: Command, timeout: float) -> Any:
        if not self._thread.is_alive():
            raise EngineStoppedError("the engine thread has ended")
        try:
            return self._loop.ask(command).result(timeout)
        except TimeoutError:
            raise EngineTimeoutError(f"the engine did not answer within {timeout:g} seconds") from None
        except CancelledError:
            raise EngineStoppedError("the engine is stopping") from None

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
