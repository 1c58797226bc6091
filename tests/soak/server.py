"""The server as `python -m service` starts it, which also looks through its engine when it gets SIGUSR1.

What it finds is written to the file that KVKEEP_SOAK_AUDIT names. KVKEEP_SOAK_SEED says which objects there can be.
"""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Sized
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from types import FrameType
from typing import Any

import service.__main__ as program
from engine import Runtime
from engine.commands import Command
from engine.core import Engine
from engine.events import CommandAsked, CommandDone, Effect
from tests.soak.audit import check_engine, held
from tests.soak.cast import fresh_pattern, keys

ANSWER_SECONDS = 60.0
_MOST_PROBLEMS = 20


@dataclass(frozen=True, slots=True)
class Audit(Command[dict[str, Any]]):
    """Look through everything."""


class Auditor:
    """Carries the command out; between two events nothing moves but what loads and stores write into reserved slots."""

    def __init__(self, engine: Engine, arena: memoryview, mappings: Sized, seed: int) -> None:
        """`mappings`: the KV caches that are open."""
        self._engine = engine
        self._arena = arena
        self._mappings = mappings
        self._known = keys(seed)

    def audit(self, event: CommandAsked, _: Audit) -> list[Effect]:
        problems = [*check_engine(self._engine), *self._check_bytes()]
        holding = {**held(self._engine), "mapped KV caches": len(self._mappings)}
        found = {"problems": problems[:_MOST_PROBLEMS], "held": holding, **self._sizes()}
        return [CommandDone(event.ticket, found)]

    def _sizes(self) -> dict[str, int]:
        cache = self._engine._cache
        return {"objects": cache.ready_objects, "used": cache.used, "capacity": cache.capacity}

    def _check_bytes(self) -> list[str]:
        """Every object that can be found has its bytes."""
        problems = []
        for entry in self._engine._cache._entries.values():
            if not entry.ready:
                continue
            identity, size = self._known[entry.key]
            if self._arena[entry.offset : entry.offset + size] != fresh_pattern(identity, size):
                problems.append(f"WRONG BYTES in L1: {identity}")
        return problems


class AuditedRuntime(Runtime):
    """The running engine, which knows one command more."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        engine = self._loop._engine
        mappings = self._transfers._copier._caches  # type: ignore[attr-defined]
        auditor = Auditor(engine, self._arena.memory, mappings, int(os.environ["KVKEEP_SOAK_SEED"]))
        engine._commands[Audit] = auditor.audit
        # NOTE: A SimpleQueue, since a signal handler puts into it. A thread that stays, since threads are counted.
        self._asked: SimpleQueue[int] = SimpleQueue()
        signal.signal(signal.SIGUSR1, self._ask_for_audit)
        threading.Thread(target=self._serve, name="audit", daemon=True).start()

    def _ask_for_audit(self, number: int, frame: FrameType | None) -> None:
        self._asked.put(number)

    def _serve(self) -> None:
        while self._asked.get():
            self._audit(Path(os.environ["KVKEEP_SOAK_AUDIT"]))

    def _audit(self, file: Path) -> None:
        try:
            found = self.ask(Audit(), ANSWER_SECONDS)
        except Exception as error:
            found = {"problems": [f"the audit did not end: {error!r}"], "held": {}}
        draft = file.with_suffix(".draft")
        draft.write_text(json.dumps(found))
        draft.rename(file)


if __name__ == "__main__":
    program.Runtime = AuditedRuntime  # type: ignore[misc]
    program.run()
