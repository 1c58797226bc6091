"""The baseline: ``np.copyto`` between two pre-faulted shared-memory segments, one chunk object at a time."""

from __future__ import annotations

import mmap
import os
import time
from pathlib import Path
from typing import Self

import numpy as np


class Segment:
    """A shared-memory segment with all its pages present; it ends with the ``with`` block."""

    def __init__(self, word: str, size: int) -> None:
        self.name = f"kvkeep_bench_{os.getpid()}_{word}"
        self.size = size
        self._path = Path("/dev/shm", self.name)

    def __enter__(self) -> Self:
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, self.size)
            self.mapping = mmap.mmap(descriptor, self.size)
        finally:
            os.close(descriptor)
        self.bytes = np.frombuffer(self.mapping, dtype=np.uint8)
        self.bytes[:] = 1
        return self

    def __exit__(self, *_: object) -> None:
        # The mapping ends with the last view of it; the name goes now.
        self._path.unlink(missing_ok=True)


class Baseline:
    """Copies as many bytes as a measured transfer moves, in pieces of ``piece`` bytes."""

    def __init__(self, source: Segment, target: Segment, piece: int) -> None:
        self._pairs = [
            (target.bytes[start : start + piece], source.bytes[start : start + piece])
            for start in range(0, source.size, piece)
        ]

    def seconds(self) -> float:
        start = time.perf_counter()
        for target, source in self._pairs:
            np.copyto(target, source)
        return time.perf_counter() - start
