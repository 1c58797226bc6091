"""The inputs in the tree, a folder for each target, and where they came from.

`python -m tests.fuzz.corpus FOLDER` writes what every target begins with there: requests of clients, and objects,
configurations and answers as they should be. The fuzzer finds the others; `python -m tests.fuzz --keep` takes those
that reach code no other input does.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path
from typing import Final

from engine.wire import codec
from engine.wire import messages as m
from tests.fuzz.hostile import Frames, packed, spoil
from tests.fuzz.targets import TARGETS, joined
from tests.fuzz.wellformed import Requests, recorded

CORPUS: Final = Path(__file__).parent / "corpus"
_ROOT: Final = Path(__file__).resolve().parents[2]


def inputs(name: str) -> list[Path]:
    """Those of a target that are in the tree."""
    return sorted((CORPUS / name).iterdir())


def write_first(folder: Path) -> None:
    """What every target begins with, each in a folder of its name."""
    requests = _requests()
    for name, found in {
        "codec": map(joined, requests),
        "kv_layout": (joined([frames[2], frames[6], frames[7]]) for frames in requests if len(frames) == 8),
        "slot_layout": _arguments(requests, m.RegisterEngineDriven, 0),
        "tokens": _tokens(requests),
        "envelope": (b"", b"KVKEEP\0\1", bytes(range(256)) * 4),
        "resp": _RESP,
        "trace": _TRACES,
        "config": (path.read_bytes() for path in [*(_ROOT / "config").glob("**/*.yaml")] if path.stat().st_size < 4000),
    }.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for data in found:
            (folder / name / sha256(data).hexdigest()[:16]).write_bytes(data)


def _requests() -> list[Frames]:
    rng = random.Random(0)
    drawn = Requests(rng, ["/a", "/b", "/c"], [777])
    whole = recorded("/a") + [frames for _ in range(30) for frames in drawn.one_of_each()]
    return whole + [spoil(rng, frames, whole) for frames in whole]


def _arguments(requests: list[Frames], kind: type[m.Message], index: int) -> Iterable[bytes]:
    """One argument of all requests of a kind."""
    operation = codec.BY_MESSAGE[kind]
    return (
        frames[1 + index]
        for frames in requests
        if frames and codec.find_operation(frames[0]) is operation and len(frames) > 1 + index
    )


def _tokens(requests: list[Frames]) -> Iterable[bytes]:
    for frames in requests:
        operation = codec.find_operation(frames[0]) if frames else None
        if operation is codec.BY_MESSAGE[m.Lookup] and len(frames) == 3:
            try:
                message = codec.decode(operation, frames[1:])
            except codec.DecodeError:
                continue
            assert isinstance(message, m.Lookup)
            yield bytes(message.key.token_ids)
    yield packed([1 << 31, *range(100), 1 << 16, 255] * 3)


_RESP: Final = (
    b"\x05$5\r\nvalue\r\n",
    b"\x05$-1\r\n",
    b"\x05-ERR no\r\n+OK\r\n",
    b"\x05$6\r\nvalues\r\n:1\r\n",
    b"\x03+OK\r\n:7\r\n",
    b"\x00$0\r\n\r\n*2\r\n$1\r\na\r\n:1\r\n",
)
_TRACES: Final = (
    b'{"timestamp": 0, "input_length": 1024, "output_length": 5, "hash_ids": [1, 2]}\n'
    b'{"timestamp": 7.5, "input_length": 600, "output_length": 0, "hash_ids": [1, 3]}\n',
    b'{"timestamp": 0, "input_length": 16, "output_length": 5, "hash_ids": [], "block_size": 16}\n',
    b"[]\n",
)

if __name__ == "__main__":
    write_first(Path(sys.argv[1]))
    print(*TARGETS)
