"""What the kernel does with the pages of a real mapping of shared memory, and who runs meanwhile."""

from __future__ import annotations

import errno
import mmap
import os
import threading
import time
from collections.abc import Callable, Iterator

import pytest
import torch

from engine.l1 import pages
from tests.support.polling import until
from tests.unit.engine.support import SHM

SIZE = 128 << 20


@pytest.fixture
def descriptor() -> Iterator[int]:
    path = SHM / f"kvkeep_test_pages_{os.getpid()}"
    opened = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
    path.unlink()
    os.ftruncate(opened, SIZE)
    yield opened
    os.close(opened)


@pytest.fixture
def mapping(descriptor: int) -> torch.Tensor:
    return torch.frombuffer(mmap.mmap(descriptor, SIZE), dtype=torch.uint8)


def taken(descriptor: int) -> int:
    return os.fstat(descriptor).st_blocks * 512


def test_memory_comes_zeroed_and_goes_again(descriptor: int, mapping: torch.Tensor) -> None:
    assert pages.populate(mapping.data_ptr(), 1 << 20)
    assert taken(descriptor) == 1 << 20
    assert not mapping[: 1 << 20].any()
    mapping[0] = 7
    pages.remove(mapping.data_ptr(), 1 << 20)
    assert (taken(descriptor), int(mapping[1])) == (0, 0)


def test_memory_that_is_not_there_is_an_error_and_not_the_end(descriptor: int, mapping: torch.Tensor) -> None:
    """Behind the end of the file there is none, as in a file system that is full."""
    os.ftruncate(descriptor, 1 << 20)
    with pytest.raises(OSError, match="No space left on device") as caught:
        pages.populate(mapping.data_ptr(), 2 << 20)
    assert caught.value.errno == errno.ENOSPC


def test_a_kernel_that_cannot_is_told_apart(mapping: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "_POPULATE_WRITE", 12345)
    assert not pages.populate(mapping.data_ptr(), 4096)


def test_what_is_not_mapped_is_an_error(mapping: torch.Tensor) -> None:
    with pytest.raises(OSError, match=os.strerror(errno.ENOMEM)):
        pages.populate(0, 4096)
    with pytest.raises(OSError, match=os.strerror(errno.EINVAL)):
        pages.remove(mapping.data_ptr() + 1, 4096)


def test_huge_pages_can_be_wanted_anywhere(descriptor: int, mapping: torch.Tensor) -> None:
    pages.want_huge(mapping.data_ptr(), 4 << 20)
    assert pages.populate(mapping.data_ptr(), 4 << 20)
    assert taken(descriptor) >= 4 << 20


class Counting:
    """A thread that counts as long as it may run."""

    def __init__(self) -> None:
        self.count = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._stop.wait(0.001):
            self.count += 1

    def may_run_during(self, action: Callable[[], object]) -> bool:
        """Whether it counted once in 5 ms at least. Who is held up counts on the way in and out only."""
        began, at = self.count, time.monotonic()
        action()
        return self.count - began > max(3, 200 * (time.monotonic() - at))

    def __enter__(self) -> Counting:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def test_other_threads_run_while_memory_comes_and_goes(descriptor: int) -> None:
    mapped = mmap.mmap(descriptor, SIZE)
    mapped.madvise(mmap.MADV_NOHUGEPAGE)
    address = torch.frombuffer(mapped, dtype=torch.uint8).data_ptr()

    def come_and_go(other: Counting) -> bool:
        coming = other.may_run_during(lambda: pages.populate(address, SIZE))
        going = other.may_run_during(lambda: pages.remove(address, SIZE))
        return coming and going

    with Counting() as other:
        until(lambda: come_and_go(other), "others run meanwhile")
