"""One target under atheris: `python -m tests.fuzz.harness NAME [flags of libFuzzer and folders of inputs]`.

Half of the time atheris changes bytes by what the code has done with those before, half of the time a value within
their MessagePack is spoiled, which changed bytes would seldom leave readable.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from typing import Final

import atheris

with atheris.instrument_imports(include=["engine", "service"]):
    from tests.fuzz.targets import TARGETS, joined, parted

from tests.fuzz.hostile import spoil, spoil_frame


def _in_frames(rng: random.Random, data: bytes) -> bytes:
    frames = parted(data)
    return joined(spoil(rng, frames, [frames or [b""]]))


_STRUCTURES: Final[dict[str, Callable[[random.Random, bytes], bytes]]] = {
    "codec": _in_frames,
    "kv_layout": _in_frames,
    "slot_layout": spoil_frame,
    "tokens": spoil_frame,
}
"""How the inputs of a target are spoiled, where they are MessagePack."""


def main(name: str, flags: list[str]) -> None:
    spoiled = _STRUCTURES.get(name)

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        rng = random.Random(seed)
        if spoiled is None or rng.random() < 0.5:
            return bytes(atheris.Mutate(data, max_size))
        return spoiled(rng, data)[:max_size]

    # NOTE: With -merge=1 it runs itself again by this name, through a shell.
    command = f"{sys.executable} -m tests.fuzz.harness {name}"
    atheris.Setup([command, *flags], TARGETS[name], custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
