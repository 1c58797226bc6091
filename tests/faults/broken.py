"""The server with threads that fail when a file says so; otherwise the same as `python -m service`.

A fault is armed by a file of its name in the folder `KVKEEP_TEST_FAULTS`. It strikes once, where the thread comes by
next, and takes the file away.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from threading import Event
from typing import Any, Final

from waitress import wasyncore

from engine.advisor.advisor import Advisor
from engine.core import Engine
from engine.events import CopyEnded
from engine.l2.memory_l2 import Adapter
from engine.monitor import Monitor
from engine.pins import Pins
from engine.recording.recorder import Recorder
from engine.transfer.torch_copier import TorchCopier
from service.__main__ import run
from service.config_watch import ConfigWatch

FAULTS: Final = "KVKEEP_TEST_FAULTS"
HOLD: Final = "hold"
"""While this file is there, questions to the storage are not answered."""

RESTARTED: Final = {
    "advisor": (Advisor, "_do_a_part", KeyError("a defect")),
    "recorder": (Recorder, "_take_switches", SystemExit(1)),
    "monitor": (Monitor, "_publish", SystemExit(1)),
    "config-watch": (ConfigWatch, "_look", MemoryError()),
    "waitress": (wasyncore, "loop", OSError("a defect")),
    "l2-memory-r": (Adapter, "contains", SystemExit(1)),
    "l2-memory-w": (Adapter, "write", SystemExit(1)),
    "l2-memory-keeper": (Adapter, "used", SystemExit(1)),
    "tick:pins": (Pins, "tick", KeyError("a defect")),
}
"""By the beginning of the names of the threads or jobs that it strikes: what raises then, and what."""


def fail_when_told(owner: Any, method: str, error: BaseException, trigger: Path) -> None:
    original = getattr(owner, method)

    def faulty(*arguments: Any, **more: Any) -> Any:
        if taken(trigger):
            raise error
        return original(*arguments, **more)

    setattr(owner, method, faulty)


def taken(trigger: Path) -> bool:
    """Whether it was there; one caller only is told so."""
    try:
        trigger.unlink()
    except FileNotFoundError:
        return False
    return True


def hold_questions(gate: Path) -> None:
    contains, never = Adapter.contains, Event()

    def held(self: Adapter, names: Any) -> list[bool]:
        while gate.exists():
            never.wait(0.01)
        return contains(self, names)

    Adapter.contains = held  # type: ignore[method-assign]


def break_engine_at_the_end_of_a_copy(trigger: Path) -> None:
    handle: Callable[..., Any] = Engine.handle

    def faulty(self: Engine, event: Any) -> Any:
        if isinstance(event, CopyEnded) and taken(trigger):
            raise RuntimeError("a broken invariant")
        return handle(self, event)

    Engine.handle = faulty  # type: ignore[method-assign]


if __name__ == "__main__":
    folder = Path(os.environ[FAULTS])
    for name, (owner, method, error) in RESTARTED.items():
        fail_when_told(owner, method, error, folder / name)
    fail_when_told(TorchCopier, "copy", SystemExit(1), folder / "transfer")
    break_engine_at_the_end_of_a_copy(folder / "engine")
    hold_questions(folder / HOLD)
    run()
