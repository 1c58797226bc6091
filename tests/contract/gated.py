"""The server with copies that wait until a file is there, otherwise the same as `python -m service`."""

from __future__ import annotations

import os
from pathlib import Path
from threading import Event

from engine.events import Copy
from engine.transfer.torch_copier import TorchCopier
from service.__main__ import run

GATE = "KVKEEP_TEST_GATE"

if __name__ == "__main__":
    never, gate, copy = Event(), Path(os.environ[GATE]), TorchCopier.copy

    def held(self: TorchCopier, job: Copy) -> None:
        while not gate.exists():
            never.wait(0.01)
        copy(self, job)

    TorchCopier.copy = held  # type: ignore[method-assign]
    run()
