"""Opening the memory of other processes. CUDA as far as it goes without a GPU."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from engine.layouts import TensorDescriptor
from engine.transfer import ipc, sigbus
from engine.transfer.ipc import OpenError, open_storage, release_unused, wait_for
from tests.unit.engine.support import SHM, Segment, cpu_tensor, cuda_tensor
from tests.unit.engine.transfer.kv_caches import MakeSegment

CUDA = torch.device("cuda:0")
OPEN_FILES = Path("/proc/self/fd")


def descriptor(body: dict[str, Any]) -> TensorDescriptor:
    return msgspec.convert(body, TensorDescriptor)


def shm(name: str, nbytes: int = 4096) -> TensorDescriptor:
    return descriptor(cpu_tensor([4, 8, 4], shm_name=name, nbytes=nbytes))


def test_a_segment_is_its_bytes_both_ways(segment: MakeSegment) -> None:
    one = segment(5000)
    storage = open_storage(shm(one.name, 5000)).bytes
    assert np.array_equal(storage.numpy(), one.bytes)
    storage[4999] = 7
    assert one.bytes[4999] == 7


@pytest.mark.parametrize("slash", ["/", ""])
def test_a_name_may_begin_with_a_slash_or_not(segment: MakeSegment, slash: str) -> None:
    one = segment(4096)
    assert open_storage(shm(slash + one.name[1:])).bytes.numel() == 4096


def test_a_segment_may_be_longer_than_it_is_registered(segment: MakeSegment) -> None:
    assert open_storage(shm(segment(8192).name, 100)).bytes.numel() == 100


def test_opening_much_memory_shows_that_it_moves_on(segment: MakeSegment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.transfer.ipc._STEP_BYTES", 4096)
    beats: list[None] = []
    open_storage(shm(segment(10_000).name, 10_000), lambda: beats.append(None))
    assert len(beats) == 3


def test_a_segment_outlives_its_name_while_it_is_open(segment: MakeSegment) -> None:
    one = segment(4096)
    storage = open_storage(shm(one.name)).bytes
    first = int(storage[0])
    one.remove()
    assert int(storage[0]) == first


def test_letting_go_leaves_the_clients_segment_alone(segment: MakeSegment) -> None:
    one = segment(4096)
    storage = open_storage(shm(one.name)).bytes
    del storage
    assert one.path.exists()


@pytest.mark.parametrize("name", ["", "/", ".", "..", "/..", "/../etc/passwd", "a/b", "//a", "a\0b"])
def test_a_name_that_could_lead_elsewhere_is_refused(name: str) -> None:
    with pytest.raises(OpenError, match="no name of a shared-memory segment"):
        open_storage(shm(name))


@pytest.mark.parametrize("name", ["/kvkeep_test_nobody_made_this", "x" * 300])
def test_a_segment_that_does_not_exist_is_refused(name: str) -> None:
    with pytest.raises(OpenError, match="cannot open /dev/shm/"):
        open_storage(shm(name))


def test_a_segment_that_is_too_short_is_refused(segment: MakeSegment) -> None:
    with pytest.raises(OpenError, match="has 4095 bytes, the registration says 4096"):
        open_storage(shm(segment(4095).name))


def test_a_segment_of_another_user_is_refused(segment: MakeSegment, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(OpenError, match="Permission denied; kvkeep and the engine must share /dev/shm and the user"):
        open_storage(shm(segment(4096).name))


@pytest.fixture(params=["link", "folder", "pipe"])
def odd(request: pytest.FixtureRequest, segment: MakeSegment) -> Any:
    """A name in /dev/shm that is no segment."""
    target: Segment = segment(4096)
    path = SHM / f"kvkeep_test_{os.getpid()}_odd"
    {
        "link": lambda: path.symlink_to(target.path),
        "folder": path.mkdir,
        "pipe": lambda: os.mkfifo(path),
    }[request.param]()
    yield path.name
    path.rmdir() if request.param == "folder" else path.unlink()


def test_a_link_a_folder_and_a_pipe_are_no_segments(odd: str) -> None:
    with pytest.raises(OpenError):
        open_storage(shm(odd, 1))


def test_the_pool_of_a_server_is_refused_by_whatever_name(segment: MakeSegment) -> None:
    """Ours too: a server holds a lock on its pool."""
    pool = segment(4096)
    link = pool.path.with_name(pool.path.name + "_link")
    os.link(pool.path, link)
    with pool.path.open("rb") as owner:
        fcntl.flock(owner, fcntl.LOCK_EX)
        for name in (pool.name, link.name):
            with pytest.raises(OpenError, match="is the pool of a server"):
                open_storage(shm(name))
    link.unlink()
    assert open_storage(shm(pool.name)).bytes.numel() == 4096


def test_what_belongs_to_another_user_is_refused_though_it_could_be_opened(
    segment: MakeSegment, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = segment(4096)
    monkeypatch.setattr(os, "geteuid", lambda: 4_000_000)
    with pytest.raises(OpenError, match="belongs to user"):
        open_storage(shm(one.name))


def test_a_segment_that_is_cut_short_while_it_is_opened_is_refused(
    segment: MakeSegment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.transfer.ipc._STEP_BYTES", 4096)
    one = segment(20_000)
    with pytest.raises(OpenError, match="cut short, to 4096 of the 20000"):
        open_storage(shm(one.name, 20_000), lambda: os.truncate(one.path, 4096))


def test_a_segment_says_that_it_has_been_cut_short(segment: MakeSegment) -> None:
    one = segment(4096)
    storage = open_storage(shm(one.name))
    assert storage.problem() is None
    os.truncate(one.path, 4095)
    assert storage.problem() == f"/dev/shm{one.name} has been cut short, to 4095 of the 4096 registered bytes"
    storage.close()


def test_addresses_are_not_watched_when_the_memory_is_gone(segment: MakeSegment) -> None:
    before = sigbus._watched
    storage = open_storage(shm(segment(4096).name))
    assert len(sigbus._watched) == len(before) + 1
    del storage
    assert sigbus._watched == before


def test_refused_segments_leave_no_file_open(segment: MakeSegment) -> None:
    short = segment(100)
    before = set(OPEN_FILES.iterdir())
    with pytest.raises(OpenError):
        open_storage(shm(short.name))
    assert set(OPEN_FILES.iterdir()) == before


def test_a_cuda_cache_of_a_device_that_is_not_here_is_refused() -> None:
    with pytest.raises(OpenError, match="CUDA device GPU-none, which this server does not see"):
        open_storage(descriptor(cuda_tensor([4, 8, 4])))


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    names = ["GPU-other", "GPU-none"]
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda ordinal: SimpleNamespace(uuid=names[ordinal]))


@pytest.mark.usefixtures("two_gpus")
def test_a_cuda_handle_is_opened_on_the_device_with_its_uuid(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[object] = []

    def refuse(*arguments: object) -> None:
        opened.extend(arguments)
        raise RuntimeError("not really")

    monkeypatch.setattr(torch.UntypedStorage, "_new_shared_cuda", refuse)
    body = cuda_tensor([4, 8, 4])
    with pytest.raises(OpenError, match="the CUDA handle cannot be opened: not really"):
        open_storage(descriptor(body))
    assert opened == [1, *body["handle"][1:]]


@pytest.mark.usefixtures("two_gpus")
def test_a_cuda_device_that_nobody_has_is_not_the_nearest_one() -> None:
    with pytest.raises(OpenError):
        ipc._cuda_ordinal("GPU-third")


def test_on_a_cpu_there_is_nothing_to_wait_for_and_nothing_to_release() -> None:
    wait_for(b"no event at all", torch.device("cpu"))
    release_unused(torch.device("cpu"))


def test_a_cuda_copy_waits_for_the_clients_event(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[object] = []
    monkeypatch.setattr(torch.cuda.Event, "from_ipc_handle", lambda device, handle: (device, handle))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(wait_event=waited.append))
    wait_for(b"", CUDA)
    assert waited == []
    wait_for(b"handle", CUDA)
    assert waited == [(CUDA, b"handle")]


def test_cuda_memory_that_is_let_go_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: called.append("empty_cache"))
    monkeypatch.setattr(torch.cuda, "ipc_collect", lambda: called.append("ipc_collect"))
    release_unused(CUDA)
    assert called == ["empty_cache", "ipc_collect"]
