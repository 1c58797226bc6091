"""The server with copies, or its start, that wait until a file is there; otherwise the same as `python -m service`."""

from __future__ import annotations

import os
from pathlib import Path
from threading import Event

from engine import MIB
from engine.events import Copy
from engine.l1 import arena
from engine.transfer.torch_copier import TorchCopier
from service.__main__ import run
from service.allocation import StartProgress

GATE = "KVKEEP_TEST_GATE"
START_GATE = "KVKEEP_TEST_START_GATE"
"""Waited for in the middle of the allocation of L1, which is made of 16 steps."""


def hold_copies(gate: Path) -> None:
    copy = TorchCopier.copy

    def held(self: TorchCopier, job: Copy) -> None:
        wait_for(gate)
        copy(self, job)

    TorchCopier.copy = held  # type: ignore[method-assign]


def hold_start(gate: Path) -> None:
    told = StartProgress.__call__

    def held(self: StartProgress, done: int) -> None:
        told(self, done)
        if done >= self._size // 2:
            wait_for(gate)

    arena._STEP_BYTES = 4 * MIB  # type: ignore[misc]
    StartProgress.__call__ = held  # type: ignore[method-assign]


def wait_for(gate: Path) -> None:
    never = Event()
    while not gate.exists():
        never.wait(0.01)


if __name__ == "__main__":
    if GATE in os.environ:
        hold_copies(Path(os.environ[GATE]))
    if START_GATE in os.environ:
        hold_start(Path(os.environ[START_GATE]))
    run()
