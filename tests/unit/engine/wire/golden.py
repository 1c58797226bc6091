"""The recorded conversations in `frames/`; its README says what they are."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import msgspec

FRAMES: Final = Path(__file__).parent / "frames"
NAMES: Final = sorted(path.stem for path in FRAMES.glob("*.json"))
_CUT: Final = "..."


@dataclass(frozen=True)
class Recorded:
    """One multipart message."""

    is_request: bool
    socket: str
    hex: tuple[str, ...]
    decoded: dict[str, Any]

    @property
    def is_control(self) -> bool:
        """A raw word about a stream, which has an empty op frame."""
        return self.hex[1] == ""

    @property
    def cut(self) -> tuple[int, ...]:
        """Indices of the frames of which only the beginning is known."""
        return tuple(index for index, frame in enumerate(self.hex) if _CUT in frame)

    @property
    def frames(self) -> list[bytes]:
        """The frames, as far as they are known."""
        return [bytes.fromhex(frame.partition(_CUT)[0]) for frame in self.hex]


@cache
def scenario(name: str) -> tuple[Recorded, ...]:
    """The messages of one file, in order."""
    return tuple(
        Recorded(
            message["dir"] == "client->server", message["socket"], tuple(message["frames_hex"]), message["decoded"]
        )
        for message in json.loads((FRAMES / f"{name}.json").read_text())["messages"]
    )


def from_aid(value: Any) -> Any:
    """What a part of `decoded` stands for; token lists that were left out count from 0."""
    match value:
        case {"__bytes_hex__": text}:
            return bytes.fromhex(text)
        case {"__ext__": code, "body": body}:
            return msgspec.msgpack.Ext(code, msgspec.msgpack.encode(from_aid(body)))
        case dict():
            return {name: from_aid(part) for name, part in value.items()}
        case list():
            return [from_aid(part) for part in value]
        case str() if value.endswith(" ids>"):
            return list(range(int(value[1:].partition(" ")[0])))
        case _:
            return value
