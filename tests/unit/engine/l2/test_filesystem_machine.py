"""Two servers on one folder against a dictionary, with restarts and kills in between."""

from __future__ import annotations

import shutil
import tempfile
from itertools import count
from math import inf
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from engine.l2.base import AbsentError, Stored, Usage
from engine.l2.filesystem_l2 import Adapter
from tests.unit.engine.l2 import children
from tests.unit.engine.l2.folder_door import BLOCK, FolderDoor, blocks

SERVERS = st.integers(0, 1)
NAMES = st.sampled_from(["a", "b", "0a", "0b", "ff" * 48, "fe" * 48, "_", "-x"])
SIZES = st.sampled_from([0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK, 7 * BLOCK + 5])
MOMENTS = st.integers(0, 40)
"""System calls that a server still makes before it is killed."""


class Machine(RuleBasedStateMachine):
    """Nothing is evicted: the folder has what the dictionary has, whoever is killed."""

    capacity: float = inf

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="kvkeep-test-"))
        self.door = FolderDoor(self.folder)
        self.servers = [self._start(), self._start()]
        self.objects: dict[str, bytes] = {}
        self.seeds = count()
        self.left = 0
        """Bytes reserved for what killed servers were writing, before this step."""

    def teardown(self) -> None:
        shutil.rmtree(self.folder)

    # What servers do

    @rule(server=SERVERS, name=NAMES, size=SIZES)
    def write(self, server: int, name: str, size: int) -> None:
        content = self._content(size)
        self._write(self.servers[server], name, content)
        self._forget_evicted(name, size)
        self.objects[name] = content

    @rule(server=SERVERS, name=NAMES)
    def read(self, server: int, name: str) -> None:
        if name not in self.objects:
            with pytest.raises(AbsentError):
                self.servers[server].read_into(name, [])
            return
        content = bytearray(len(self.objects[name]))
        assert self.servers[server].read_into(name, [memoryview(content)]) == len(content)
        assert content == self.objects[name]

    @rule(server=SERVERS, names=st.lists(NAMES))
    def delete(self, server: int, names: list[str]) -> None:
        self.servers[server].delete(names)
        for name in names:
            self.objects.pop(name, None)

    @rule(server=SERVERS, names=st.lists(NAMES))
    def ask(self, server: int, names: list[str]) -> None:
        assert self.servers[server].contains(names) == [name in self.objects for name in names]

    @rule(server=SERVERS)
    def restart(self, server: int) -> None:
        self.servers[server].close()
        self.servers[server] = self._start()

    @rule(server=SERVERS, name=NAMES, size=SIZES)
    def restart_with_a_restored_object(self, server: int, name: str, size: int) -> None:
        content = self._content(size)
        self.door.put(name, content)
        self.restart(server)
        self._forget_evicted(name, size)
        if self.door.get(name) == content:
            self.objects[name] = content

    # Kills

    @rule(name=NAMES, size=SIZES, moment=MOMENTS)
    def kill_in_a_write(self, name: str, size: int, moment: int) -> None:
        content = self._content(size)
        children.run_and_die(moment, self._write, self._adapter(), name, content)
        self._forget_evicted(name, size)
        if self.door.get(name) == content:
            self.objects[name] = content

    @rule(names=st.lists(NAMES, min_size=1, unique=True), moment=MOMENTS)
    def kill_in_a_deletion(self, names: list[str], moment: int) -> None:
        children.run_and_die(moment, self._adapter().delete, names)
        there = self.door.names()
        self.objects = {name: it for name, it in self.objects.items() if name in there or name not in names}

    @rule(server=SERVERS)
    def restart_after_kills(self, server: int) -> None:
        self.restart(server)
        assert self.door.leftovers() == []

    # What holds at any time

    @invariant()
    def what_was_left_is_known_to_the_next_step(self) -> None:
        self.left = sum(int(path.name.split(".")[1], 16) for path in self.door.leftovers())

    @invariant()
    def the_folder_has_what_the_dictionary_has(self) -> None:
        assert {name: self.door.get(name) for name in self.door.names()} == self.objects
        expected = sorted(Stored(name, len(content)) for name, content in self.objects.items())
        assert sorted(self.servers[0].scan()) == expected

    @invariant()
    def the_account_of_both_is_right(self) -> None:
        expected = Usage(len(self.objects), sum(blocks(len(content)) for content in self.objects.values()))
        assert [server.used() for server in self.servers] == [expected, expected]

    @invariant()
    def the_capacity_holds(self) -> None:
        assert self.door.occupied() <= self.capacity

    def _adapter(self) -> Adapter:
        capacity = None if self.capacity == inf else int(self.capacity)
        return Adapter(path=str(self.folder), capacity=capacity, keep_free=0)

    def _start(self) -> Adapter:
        adapter = self._adapter()
        adapter.open([])
        return adapter

    def _content(self, size: int) -> bytes:
        return f"{next(self.seeds)} ".encode().ljust(size, b".")[:size]

    @staticmethod
    def _write(adapter: Adapter, name: str, content: bytes) -> None:
        half = len(content) // 2
        adapter.write(name, [memoryview(content)[:half], memoryview(content)[half:]])

    def _forget_evicted(self, written: str, size: int) -> None:
        """Nothing goes without a capacity."""


class SmallMachine(Machine):
    """Objects may go, but only while something is written that does not fit."""

    capacity: float = 16 * BLOCK

    def _forget_evicted(self, written: str, size: int) -> None:
        there = self.door.names()
        before = self.left + sum(blocks(len(content)) for content in self.objects.values())
        if before + blocks(size) <= self.capacity:
            assert self.objects.keys() <= there
        self.objects = {name: content for name, content in self.objects.items() if name in there}


TestMachine = Machine.TestCase
TestSmallMachine = SmallMachine.TestCase
TestMachine.settings = TestSmallMachine.settings = settings(
    max_examples=15, stateful_step_count=25, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
