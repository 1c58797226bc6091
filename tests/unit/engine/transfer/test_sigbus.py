"""Shared memory that is cut short under a reader or writer: what is watched is lost, anything else ends the process."""

from __future__ import annotations

import mmap
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch

from engine.transfer import sigbus
from tests.unit.engine.support import Segment
from tests.unit.engine.transfer.kv_caches import MakeSegment

SIZE = 8 * mmap.PAGESIZE


class Mapping:
    """A mapped segment, watched or not."""

    def __init__(self, segment: Segment) -> None:
        with segment.path.open("r+b") as file:
            self.memory = mmap.mmap(file.fileno(), SIZE)
        self.tensor = torch.frombuffer(self.memory, dtype=torch.uint8)
        self.path = segment.path

    def watch(self) -> sigbus.Watched:
        return sigbus.watch(self.tensor.data_ptr(), SIZE)


@pytest.fixture
def mapping(segment: MakeSegment) -> Mapping:
    return Mapping(segment(SIZE))


@pytest.fixture
def watched(mapping: Mapping) -> Iterator[sigbus.Watched]:
    watched = mapping.watch()
    yield watched
    sigbus.forget(watched)


def by_torch(tensor: torch.Tensor) -> None:
    torch.index_select(tensor.view(8, -1), 0, torch.arange(8))


def by_numpy(tensor: torch.Tensor) -> None:
    tensor.numpy().reshape(8, -1)[np.arange(8)] = 1


@pytest.mark.parametrize("touch", [by_torch, by_numpy, torch.Tensor.max, lambda tensor: tensor.fill_(3)])
def test_a_touch_of_what_was_cut_off_ends_and_the_memory_is_lost(
    mapping: Mapping, watched: sigbus.Watched, touch: Callable[[torch.Tensor], object]
) -> None:
    assert not watched.is_lost
    os.truncate(mapping.path, SIZE // 2)
    touch(mapping.tensor)
    assert watched.is_lost
    assert mapping.path.stat().st_size == SIZE // 2


def test_lost_memory_is_zeros_and_not_the_clients_any_more(mapping: Mapping, watched: sigbus.Watched) -> None:
    os.truncate(mapping.path, 0)
    assert int(mapping.tensor.max()) == 0
    mapping.tensor.fill_(9)
    os.truncate(mapping.path, SIZE)
    assert not any(mapping.path.read_bytes())


def test_only_what_was_touched_is_lost(mapping: Mapping, watched: sigbus.Watched, segment: MakeSegment) -> None:
    other = Mapping(segment(SIZE))
    beside = other.watch()
    os.truncate(other.path, 0)
    other.tensor.max()
    sigbus.forget(beside)
    assert (beside.is_lost, watched.is_lost) == (True, False)


ELSEWHERE = """
import mmap, os, tempfile, torch
from engine.transfer import sigbus
def mapped(file):
    os.ftruncate(file.fileno(), 8192)
    return torch.frombuffer(mmap.mmap(file.fileno(), 8192), dtype=torch.uint8)
with tempfile.TemporaryFile(dir="/dev/shm") as one, tempfile.TemporaryFile(dir="/dev/shm") as other:
    client, ours = mapped(one), mapped(other)
    watched = sigbus.watch(client.data_ptr(), 8192)
    {forget}
    os.ftruncate({cut}.fileno(), 0)
    {touch}.max()
"""


@pytest.mark.parametrize(
    ("forget", "cut", "touch"), [("", "other", "ours"), ("sigbus.forget(watched)", "one", "client")]
)
def test_a_missing_page_of_anything_else_ends_the_process(forget: str, cut: str, touch: str) -> None:
    program = ELSEWHERE.format(forget=forget, cut=cut, touch=touch)
    ended = subprocess.run([sys.executable, "-c", program], timeout=60, capture_output=True, check=False)
    assert ended.returncode == -signal.SIGBUS, ended.stderr
