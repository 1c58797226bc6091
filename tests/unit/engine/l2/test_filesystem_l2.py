"""The adapter of folders: the suite in all its modes, its limits, faults of the file system, and foreign files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from engine.l2.filesystem_l2 import Adapter
from engine.l2.folder import occupied
from tests.unit.engine.l2.adapter_suite import AdapterSuite, BackDoor, Memory
from tests.unit.engine.l2.folder_door import FolderDoor


class FilesystemSuite(AdapterSuite):
    settings: ClassVar[dict[str, Any]] = {}

    @pytest.fixture
    def adapter(self, tmp_path: Path, memory: Memory) -> Iterator[Adapter]:
        adapter = Adapter(path=str(tmp_path / "store"), **self.settings)
        adapter.open([memory.whole])
        yield adapter
        adapter.close()

    @pytest.fixture
    def back_door(self, tmp_path: Path) -> BackDoor:
        return FolderDoor(tmp_path / "store")

    def occupied(self, size: int) -> int:
        return occupied(size)


class TestFilesystemAdapter(FilesystemSuite):
    pass


class TestWithACapacityAndFsync(FilesystemSuite):
    settings: ClassVar = {"capacity": 32 << 20, "fsync": True}


class TestWithDirectIO(FilesystemSuite):
    settings: ClassVar = {"direct": True}
