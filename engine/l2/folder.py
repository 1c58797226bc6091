"""A folder of objects: where each lies, what a look at a part of it finds, and which files nobody writes any more.

    FOLDER/account                          see `folder_account.py`
    FOLDER/e/f/NAME                         an object whose name ends with "ef"
    FOLDER/writing/NAME.ROOM.UNIQUE.tmp     one that is being written, with ROOM bytes reserved for it (in hex)

The two levels are shards, 256 in all. Names are sharded by their ends, since they begin alike. Whoever writes a
temporary file holds a lock on it (flock), which ends with its process, however that ends. Other files are nobody's
business here.

PERF: What is being written lies together, since ext4 takes ten times as long to make a file in one of many folders.
"""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISREG
from typing import Final, NamedTuple

SHARDS: Final = 256
_BLOCK: Final = 4096
_OBJECT: Final = re.compile(r"[a-z0-9_-]{1,128}")
_TEMPORARY: Final = re.compile(rf"(?P<name>{_OBJECT.pattern})\.(?P<room>[0-9a-f]{{1,16}})\.[0-9a-f]{{16}}\.tmp")


class Found(NamedTuple):
    """An object, as a look at a shard has found it."""

    name: str
    size: int
    stamp: int
    """When it was written or last used: nanoseconds of the file's time of modification."""


class Temporary(NamedTuple):
    """The file of an object of a shard that is being written, or was by a server that was killed."""

    path: str
    room: int
    """Bytes reserved for it."""


@dataclass(slots=True)
class Count:
    """What is in a shard. All bytes are those of whole blocks."""

    objects: int = 0
    bytes: int = 0
    """Of the objects."""
    reserved: int = 0
    """For what is being written."""


@dataclass(slots=True)
class Draft:
    """An object that this process is writing."""

    name: str
    shard: int
    path: str
    room: int
    """Bytes to reserve for it."""
    descriptor: int

    def claim(self) -> None:
        """Locks the file, which is counted from now on. The account has to be locked, so that a count of the shard
        meets it either locked or not. If there was one since its creation, the file has been taken for left."""
        fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(self.descriptor).st_nlink == 0:
            os.close(self.descriptor)
            self.descriptor = -1
            self.descriptor = _create(self.path)
            fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def occupied(size: int) -> int:
    """Bytes that an object counts for; one without any counts too, since its file is there."""
    return max(1, -(-size // _BLOCK)) * _BLOCK


def shard_of(name: str) -> int:
    return _digit(name[-2:-1]) << 4 | _digit(name[-1])


class Folder:
    """The paths in one folder. Keeps nothing open. Every method raises OSError, and may be called from any thread."""

    def __init__(self, path: str) -> None:
        self.path: Final = path
        self._writing: Final = f"{path}/writing"

    def object_path(self, name: str) -> str:
        return f"{self.shard_path(shard_of(name))}/{name}"

    def shard_path(self, shard: int) -> str:
        return f"{self.path}/{shard >> 4:x}/{shard & 15:x}"

    def make(self, sync: bool) -> None:
        """Makes what is missing of the folder. `sync` makes that survive a loss of power.

        What lies in the place of a shard stands in the way of that one only.
        """
        make_folder(Path(self._writing))
        for shard in range(SHARDS):
            with suppress(FileExistsError, NotADirectoryError):
                make_folder(Path(self.shard_path(shard)))
        if sync:
            for path in (self.path, *(f"{self.path}/{digit:x}" for digit in range(16))):
                _sync(path)

    def objects(self, shard: int) -> list[Found]:
        """What is in the shard, where others may write meanwhile; nothing if it is not there."""
        entries = _entries(self.shard_path(shard))
        found = (_found(entry) for entry in entries if _OBJECT.fullmatch(entry.name) and shard_of(entry.name) == shard)
        return [each for each in found if each]

    def count(self, shard: int) -> Count:
        """Counts a shard, and removes what nobody writes any more. The account has to be locked."""
        objects = self.objects(shard)
        reserved = sum(each.room for each in self._temporaries(shard) if not _remove_if_left(each.path))
        return Count(len(objects), sum(occupied(each.size) for each in objects), reserved)

    @contextmanager
    def draft(self, name: str, room: int, sync: bool) -> Iterator[Draft]:
        """Makes the file of a new object, which counts once it is claimed. If what is done inside fails, it is removed.

        `sync` makes folders survive a loss of power, if there have to be new ones.
        """
        path = f"{self._writing}/{name}.{room:x}.{os.urandom(8).hex()}.tmp"
        draft = Draft(name, shard_of(name), path, room, self._created(path, sync))
        try:
            yield draft
        except BaseException:
            with suppress(OSError):  # NOTE: what cannot be removed now is removed by the next count of the shard
                os.unlink(path)  # noqa: PTH108
            raise
        finally:
            if draft.descriptor >= 0:
                os.close(draft.descriptor)

    def put(self, draft: Draft, sync: bool) -> None:
        """Lets the draft be the object, in place of the one there was."""
        path = self.object_path(draft.name)
        try:
            os.rename(draft.path, path)  # noqa: PTH104
        except FileNotFoundError:
            self.make(sync)
            os.rename(draft.path, path)  # noqa: PTH104

    def sync(self, shard: int) -> None:
        """Makes the names in the shard survive a loss of power."""
        _sync(self.shard_path(shard))

    def free(self) -> int:
        """Bytes that are free in the file system, for others than root."""
        room = os.statvfs(self.path)
        return room.f_bavail * room.f_frsize

    def _created(self, path: str, sync: bool) -> int:
        try:
            return _create(path)
        except FileNotFoundError:
            self.make(sync)
            return _create(path)

    def _temporaries(self, shard: int) -> list[Temporary]:
        matches = ((entry, _TEMPORARY.fullmatch(entry.name)) for entry in _entries(self._writing))
        return [
            Temporary(entry.path, int(match["room"], 16))
            for entry, match in matches
            if match and shard_of(match["name"]) == shard
        ]


@contextmanager
def held(path: str) -> Iterator[os.stat_result | None]:
    """What the file at the path is, or None if there is no regular one.

    PERF: Inside, the file may be removed or replaced without the wait until the file system has freed its blocks.
    """
    try:
        descriptor = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        yield None
        return
    try:
        status = os.fstat(descriptor)
        yield status if S_ISREG(status.st_mode) else None
    finally:
        os.close(descriptor)


def make_folder(path: Path) -> None:
    """With those above it that are missing. Nobody else may look inside: what was asked and answered lies in there."""
    if not path.parent.exists():
        make_folder(path.parent)
    path.mkdir(mode=0o700, exist_ok=True)


def _digit(character: str) -> int:
    """Of a hex number; of other characters something between 0 and 15 as well, and 0 of none."""
    if not character:
        return 0
    return int(character, 16) if character in "0123456789abcdef" else ord(character) % 16


def _entries(path: str) -> list[os.DirEntry[str]]:
    """Of a folder; nothing if it is not there."""
    try:
        with os.scandir(path) as entries:
            return list(entries)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _found(entry: os.DirEntry[str]) -> Found | None:
    """None if it is no regular file, or gone."""
    try:
        status = entry.stat(follow_symlinks=False)
    except FileNotFoundError:
        return None
    return Found(entry.name, status.st_size, status.st_mtime_ns) if S_ISREG(status.st_mode) else None


def _create(path: str) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


def _remove_if_left(path: str) -> bool:
    """Whether the file is gone, at the latest now. What cannot be opened belongs to another user, and stays.

    NOTE: For writing, since network file systems give the lock to nobody else.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.unlink(path)  # noqa: PTH108
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


def _sync(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
