"""ARC is what the paper says."""

from __future__ import annotations

from random import Random

import pytest

from engine.l1.policies.arc_policy import Policy
from tests.unit.engine.l1.policy_suite import PolicySuite
from tests.unit.engine.l1.shelf import FullShelf, keys, remembered


class TestArc(PolicySuite):
    make = staticmethod(Policy)
    ghost_capacities = 2


class PaperArc:
    """Figure 4 of Megiddo, Modha (FAST 2003), line by line; lists have the least recently used one in front."""

    def __init__(self, c: int) -> None:
        self.c = c
        self.p = 0.0
        self.t1: list[int] = []
        self.b1: list[int] = []
        self.t2: list[int] = []
        self.b2: list[int] = []

    def request(self, x: int) -> bool:
        t1, b1, t2, b2, c = self.t1, self.b1, self.t2, self.b2, self.c
        if x in t1 or x in t2:  # Case I
            (t1 if x in t1 else t2).remove(x)
            t2.append(x)
            return True
        if x in b1:  # Case II
            self.p = min(self.p + (1 if len(b1) >= len(b2) else len(b2) / len(b1)), c)
            self.replace(x)
            b1.remove(x)
            t2.append(x)
        elif x in b2:  # Case III
            self.p = max(self.p - (1 if len(b2) >= len(b1) else len(b1) / len(b2)), 0)
            self.replace(x)
            b2.remove(x)
            t2.append(x)
        else:  # Case IV
            if len(t1) + len(b1) == c:  # Case A
                if len(t1) < c:
                    b1.pop(0)
                    self.replace(x)
                else:
                    t1.pop(0)
            else:  # Case B
                everything = len(t1) + len(t2) + len(b1) + len(b2)
                if everything >= c:
                    if everything == 2 * c:
                        b2.pop(0)
                    self.replace(x)
            t1.append(x)
        return False

    def replace(self, x: int) -> None:
        if self.t1 and (len(self.t1) > self.p or (x in self.b2 and len(self.t1) == self.p)):
            self.b1.append(self.t1.pop(0))
        else:
            self.b2.append(self.t2.pop(0))


@pytest.mark.parametrize(("capacity", "names"), [(1, 3), (2, 5), (5, 9), (8, 20), (20, 50), (20, 21)])
def test_every_request_does_what_figure_4_does(capacity: int, names: int) -> None:
    random = Random(capacity * names)
    paper, policy = PaperArc(capacity), Policy(capacity)
    shelf = FullShelf(policy, capacity)
    for number in range(12_000):
        # Scans, loops and favourites take turns, so that p goes up and down.
        phase = number // 500 % 3
        key = number % names if phase == 0 else random.randrange(names) if phase == 1 else random.randrange(names) // 2
        assert shelf.request(key) == paper.request(key)
        assert policy._p == paper.p
        assert (keys(policy._t1), keys(policy._t2)) == (paper.t1, paper.t2)
        assert (remembered(policy._b1), remembered(policy._b2)) == (paper.b1, paper.b2)


def test_both_lists_and_all_of_p_are_met_by_that() -> None:
    random, paper, seen = Random(0), PaperArc(8), set()
    for _ in range(12_000):
        paper.request(random.randrange(20))
        seen.add((bool(paper.b1), bool(paper.b2), round(paper.p)))
    assert {p for _, _, p in seen} >= {0, 4, 8}


def test_a_lower_capacity_lowers_p_and_what_is_remembered() -> None:
    policy = Policy(8)
    shelf = FullShelf(policy, 8)
    random = Random(2)
    for _ in range(2000):
        shelf.request(random.randrange(20))
    policy._p = 8.0
    for key in list(shelf.there)[2:]:
        shelf.evict(key)
    policy.set_capacity(4)
    assert policy._p == 4
    assert policy._t1.size + policy._b1.size <= 4
    assert policy._t1.size + policy._b1.size + policy._t2.size + policy._b2.size <= 8
