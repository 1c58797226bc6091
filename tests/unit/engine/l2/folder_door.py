"""The folder behind the filesystem adapter, walked by other means than the adapter's."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from engine.l2.base import Usage
from tests.unit.engine.l2.adapter_suite import BackDoor

BLOCK = 4096


def blocks(size: int) -> int:
    """Bytes that an object counts for."""
    return -(-max(1, size) // BLOCK) * BLOCK


class FolderDoor(BackDoor):
    """Every object is FOLDER/e/f/NAME, where "ef" are the last two characters of the name, or what stands for them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def put(self, name: str, content: bytes) -> None:
        path = self.path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = self.folder / "unfinished"
        unfinished.write_bytes(content)
        unfinished.rename(path)

    def get(self, name: str) -> bytes | None:
        path = self.path(name)
        return path.read_bytes() if path.exists() else None

    def names(self) -> set[str]:
        return {path.name for path in self.files() if "." not in path.name}

    def files(self) -> list[Path]:
        """All files in the shards, whatever they are."""
        return [path for path in self.folder.glob("?/?/*") if path.is_file()]

    def leftovers(self) -> list[Path]:
        """Files of what is being written, or was."""
        return [path for path in self.folder.glob("writing/*") if path.is_file()]

    def occupied(self) -> int:
        """Bytes of the blocks of all files, finished or not. Nobody counts or removes anything meanwhile."""
        with self.account_locked():
            return self.stored().bytes + sum(self._in_writing())

    def stored(self) -> Usage:
        """What the account should say."""
        objects = [path for path in self.files() if "." not in path.name]
        return Usage(len(objects), sum(blocks(path.stat().st_size) for path in objects))

    def _in_writing(self) -> Iterator[int]:
        """Bytes of blocks. Files that have none yet may go even so."""
        for path in self.leftovers():
            with suppress(FileNotFoundError):
                yield -(-path.stat().st_size // BLOCK) * BLOCK

    @contextmanager
    def account_locked(self) -> Iterator[None]:
        """As long as another server would hold it if it were stopped in the wrong moment."""
        with (self.folder / "account").open("rb+") as account:
            fcntl.flock(account, fcntl.LOCK_EX)
            yield

    def age(self, name: str, seconds: float) -> None:
        """Makes the last use of an object earlier than now."""
        os.utime(self.path(name), (0, time.time() - seconds))

    def unfinished(self, name: str, room: int, number: int = 0) -> Path:
        """Where a file with so many bytes reserved lies until it is an object. The folder is made."""
        folder = self.folder / "writing"
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"{name}.{room:x}.{number:016x}.tmp"

    def path(self, name: str) -> Path:
        high, low = (self._digit(character) for character in name.rjust(2, "0")[-2:])
        return self.folder / high / low / name

    @staticmethod
    def _digit(character: str) -> str:
        return character if character in "0123456789abcdef" else f"{ord(character) % 16:x}"
