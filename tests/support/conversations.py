"""Traffic as chat servers have it, made from a seed: conversations that come back with a longer prompt."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from random import Random


def conversations(requests: int, seed: int, system_blocks: int = 2) -> Iterator[list[int]]:
    """The block ids of each request: shared system prompts, then the conversation so far; equal ids, equal prefixes."""
    random, ids = Random(seed), count(1000)
    waiting: list[list[int]] = []
    for _ in range(requests):
        if waiting and random.random() < 0.6:
            prompt = waiting.pop(random.randrange(max(1, len(waiting) - 40), len(waiting) + 1) - 1)
        else:
            system = random.randrange(3)
            prompt = [10 * system + place for place in range(system_blocks)]
        prompt = prompt + [next(ids) for _ in range(random.randint(1, 8))]
        if random.random() < 0.7:
            waiting.append(prompt)
        yield prompt


def popular_conversations(references: int, seed: int) -> Iterator[list[int]]:
    """The same at length, up to so many block references: assistants of unequal popularity with a system prompt each,
    and conversations that come back, most of them soon and some much later.
    """
    random, ids = Random(seed), count(1_000_000)
    weights = [1 / (place + 1) for place in range(30)]
    waiting: list[list[int]] = []
    while references > 0:
        if waiting and random.random() < 0.55:
            prompt = waiting.pop(-1 - int(len(waiting) * random.random() ** 4))
        else:
            assistant = random.choices(range(30), weights)[0]
            prompt = [100 * assistant + place for place in range(1 + assistant % 7)]
        prompt = prompt + [next(ids) for _ in range(random.randint(1, 10))]
        if random.random() < 0.85:
            waiting.append(prompt)
        references -= len(prompt)
        yield prompt
