"""Traces like those of chats: conversations that share a system prompt, grow by turns, and come and go."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path

BLOCK_SIZE = 512


def conversations(seed: int, requests: int, at_once: int = 8) -> list[list[int]]:
    """The blocks of each request; the same for the same seed. Equal blocks have equal predecessors."""
    chance, ids = random.Random(seed), count()
    system = [next(ids) for _ in range(2)]
    open_ones = [[*system] for _ in range(at_once)]
    asked = []
    for _ in range(requests):
        place = chance.randrange(at_once)
        if chance.random() < 0.15:
            open_ones[place] = [*system]
        open_ones[place] = [*open_ones[place], *(next(ids) for _ in range(chance.randint(1, 4)))]
        asked.append(open_ones[place])
    return asked


def lines(asked: Sequence[Sequence[int]], spare: int = 100, **more: int) -> Iterator[str]:
    """The requests as a trace; each one's last block lacks `spare` tokens."""
    for index, blocks in enumerate(asked):
        length = BLOCK_SIZE * len(blocks) - spare
        entry = {"timestamp": index, "input_length": length, "output_length": 1, "hash_ids": blocks, **more}
        yield json.dumps(entry) + "\n"


def write(path: Path, asked: Sequence[Sequence[int]], **more: int) -> str:
    """Writes a trace; returns its name."""
    path.write_text("".join(lines(asked, **more)))
    return str(path)


def popular_conversations(references: int, seed: int) -> Iterator[list[int]]:
    """Up to so many block references: assistants of unequal popularity with a system prompt each, and conversations
    that come back, most of them soon and some much later.
    """
    chance, ids = random.Random(seed), count(1_000_000)
    weights = [1 / (place + 1) for place in range(30)]
    waiting: list[list[int]] = []
    while references > 0:
        if waiting and chance.random() < 0.55:
            prompt = waiting.pop(-1 - int(len(waiting) * chance.random() ** 4))
        else:
            assistant = chance.choices(range(30), weights)[0]
            prompt = [100 * assistant + place for place in range(1 + assistant % 7)]
        prompt = prompt + [next(ids) for _ in range(chance.randint(1, 10))]
        if chance.random() < 0.85:
            waiting.append(prompt)
        references -= len(prompt)
        yield prompt
