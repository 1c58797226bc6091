"""Kinds of storage that a tier of L2 can have, each running while its context lasts."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Storage:
    """A storage that runs, with the settings by which a tier reaches it."""

    settings: dict[str, Any] = field(repr=False)

    def config(self, **more: Any) -> str:
        """A configuration with this storage as the only tier, and with further settings of that."""
        # JSON is YAML.
        return json.dumps({"l2": [{**self.settings, **more}]})


@contextmanager
def folder(path: Path) -> Iterator[Storage]:
    """A folder of this machine."""
    yield Storage({"type": "filesystem", "path": str(path / "kv"), "capacity": "1GiB", "keep_free": 0})


STORAGES: dict[str, Callable[[Path], AbstractContextManager[Storage]]] = {"filesystem": folder}
"""By type: starts it, with a folder for its files."""
