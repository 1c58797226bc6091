"""How a prompt's objects are looked for where each name costs a request."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from engine.l2.memory_l2 import Adapter
from engine.l2.metering import Metering
from engine.l2.objects import Bench, Quarantine

NAMES = [f"n{index}" for index in range(20)]


class Costly(Adapter):
    """Wants to be asked for few names first; notes what it is asked for."""

    first_names = 2

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[int] = []

    def contains(self, names: Sequence[str]) -> list[bool]:
        self.asked.append(len(names))
        return super().contains(names)


@pytest.fixture
def bench() -> Bench:
    return Bench("tier", memoryview(bytearray()), lambda event: None, lambda: 0.0, Metering(), Quarantine())


@pytest.mark.parametrize(
    ("there", "asked"), [(0, [2]), (1, [2]), (2, [2, 4]), (5, [2, 4]), (6, [2, 4, 8]), (20, [2, 4, 8, 6])]
)
def test_the_search_ends_where_one_is_missing(bench: Bench, there: int, asked: list[int]) -> None:
    adapter = Costly()
    for name in NAMES[:there]:
        adapter.write(name, [])
    assert bench.leading(adapter, NAMES) == (True,) * there + (False,) * (20 - there)
    assert adapter.asked == asked


def test_where_names_cost_nothing_all_are_asked_for_at_once(bench: Bench) -> None:
    adapter = Adapter()
    adapter.write(NAMES[3], [])
    assert bench.leading(adapter, NAMES) == tuple(name == NAMES[3] for name in NAMES)


def test_nothing_is_asked_for_nothing(bench: Bench) -> None:
    adapter = Costly()
    assert bench.leading(adapter, []) == ()
    assert adapter.asked == []
