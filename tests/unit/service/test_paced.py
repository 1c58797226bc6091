"""A value is made seldom, by one thread at a time, and nobody gets a very old one."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import count

import pytest

from service.paced import Paced
from tests.support.polling import until

INTERVAL, BURST = 0.1, 3


class Clock:
    now = 50.0

    def __call__(self) -> float:
        return self.now


class Maker:
    """Counts; holds whoever makes while it is told to."""

    def __init__(self) -> None:
        self.numbers = count(1)
        self.may_go = threading.Event()
        self.may_go.set()
        self.making = 0

    def __call__(self) -> int:
        self.making += 1
        assert self.making == 1, "two threads make it"
        assert self.may_go.wait(10)
        self.making -= 1
        return next(self.numbers)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def maker() -> Maker:
    return Maker()


@pytest.fixture
def paced(clock: Clock, maker: Maker) -> Paced[int]:
    return Paced(maker, INTERVAL, BURST, clock)


def test_a_few_in_a_row_get_a_new_one_each_and_then_one_in_every_interval(paced: Paced[int], clock: Clock) -> None:
    assert [paced.get() for _ in range(5)] == [1, 2, 3, 3, 3]
    clock.now += 0.09
    assert paced.get() == 3
    clock.now += 0.02
    assert [paced.get(), paced.get()] == [4, 4]


def test_what_was_not_asked_for_is_saved_up_to_a_bound(paced: Paced[int], clock: Clock) -> None:
    assert [paced.get() for _ in range(4)] == [1, 2, 3, 3]
    clock.now += 0.7
    assert [paced.get() for _ in range(5)] == [4, 5, 6, 6, 6]


def test_nobody_makes_it_unless_it_is_asked_for(paced: Paced[int], clock: Clock) -> None:
    paced.get()
    clock.now += 1000
    assert paced.get() == 2


def test_while_one_makes_it_the_others_get_the_last_one(paced: Paced[int], clock: Clock, maker: Maker) -> None:
    paced.get()
    clock.now += 0.2
    maker.may_go.clear()
    with ThreadPoolExecutor(1) as other:
        made = other.submit(paced.get)
        until(lambda: maker.making, "the other one makes it")
        assert [paced.get(), paced.get()] == [1, 1]
        maker.may_go.set()
        assert made.result(10) == 2


@pytest.mark.parametrize("asked_before", [False, True])
def test_if_there_is_none_or_a_very_old_one_all_wait_for_the_same(
    paced: Paced[int], clock: Clock, maker: Maker, asked_before: bool
) -> None:
    if asked_before:
        paced.get()
    clock.now += 100
    maker.may_go.clear()
    with ThreadPoolExecutor(3) as others:
        made = [others.submit(paced.get) for _ in range(3)]
        until(lambda: maker.making, "one of them makes it")
        assert not any(future.done() for future in made)
        maker.may_go.set()
        assert {future.result(10) for future in made} == {1 + asked_before}


def test_a_failure_is_the_askers_own_and_is_not_kept(clock: Clock) -> None:
    answers = iter([ZeroDivisionError(), 7])

    def make() -> int:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    paced = Paced(make, INTERVAL, BURST, clock)
    with pytest.raises(ZeroDivisionError):
        paced.get()
    assert paced.get() == 7
