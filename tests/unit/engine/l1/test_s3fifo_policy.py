"""S3-FIFO is what the paper says."""

from __future__ import annotations

from random import Random

import pytest

from engine.l1.policies.s3fifo_policy import Policy
from tests.unit.engine.l1.policy_suite import PolicySuite
from tests.unit.engine.l1.shelf import FullShelf, Shelf, keys, remembered


class TestS3Fifo(PolicySuite):
    make = staticmethod(Policy)
    ghost_capacities = 1


class PaperS3Fifo:
    """Algorithm 1 of Yang, Zhang, Qiu, Yue, Rashmi (SOSP 2023); lists have the tail in front.

    NOTE: In three points it says less or something else than the policy. Which queue has to give is decided anew after
    each object that moves from S to M, so that one object goes for one that comes. Whether an object is in G is looked
    up before room is made. And G remembers as many as the cache holds.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.s: list[int] = []
        self.m: list[int] = []
        self.g: list[int] = []
        self.freq: dict[int, int] = {}

    def read(self, x: int) -> bool:
        if x in self.freq:
            self.freq[x] = min(self.freq[x] + 1, 3)
            return True
        self.insert(x)
        self.freq[x] = 0
        return False

    def insert(self, x: int) -> None:
        known = x in self.g
        if known:
            self.g.remove(x)
        while len(self.freq) == self.size:
            self.evict()
        (self.m if known else self.s).append(x)

    def evict(self) -> None:
        if self.s and (len(self.s) >= 0.1 * self.size or not self.m):
            self.evict_s()
        else:
            self.evict_m()

    def evict_s(self) -> None:
        t = self.s.pop(0)
        if self.freq[t] > 1:
            self.freq[t] = 0
            self.m.append(t)
        else:
            del self.freq[t]
            self.g = [*self.g, t][-self.size :]

    def evict_m(self) -> None:
        t = self.m.pop(0)
        if self.freq[t] > 0:
            self.freq[t] -= 1
            self.m.append(t)
        else:
            del self.freq[t]


@pytest.mark.parametrize(("capacity", "names"), [(1, 3), (2, 5), (10, 25), (25, 60), (40, 50), (40, 400)])
def test_every_request_does_what_algorithm_1_does(capacity: int, names: int) -> None:
    random = Random(capacity * names)
    paper, policy = PaperS3Fifo(capacity), Policy(capacity)
    shelf = FullShelf(policy, capacity)
    for number in range(12_000):
        phase = number // 500 % 3
        key = number % names if phase == 0 else random.randrange(names) if phase == 1 else random.randrange(names) // 2
        assert shelf.request(key) == paper.read(key)
        assert (keys(policy._small), keys(policy._main), remembered(policy._ghosts)) == (paper.s, paper.m, paper.g)
        assert {ranked.key: ranked.stamp for ranked in shelf.there.values()} == paper.freq


class TestUses:
    @pytest.mark.parametrize(("uses", "stays"), [(0, False), (1, False), (2, True), (3, True), (9, True)])
    def test_two_of_them_bring_an_object_to_the_main_queue(self, uses: int, stays: bool) -> None:
        policy = Policy(10)
        shelf = Shelf(policy)
        shelf.put("ab", 1)
        for _ in range(uses):
            shelf.hit("a")
        assert shelf.order == (["b", "a"] if stays else ["a", "b"])
        assert (shelf.there["a"].queue is policy._main) is stays

    def test_while_it_is_written_they_do_not_count(self) -> None:
        shelf = Shelf(Policy(10))
        shelf.begin("a", 1)
        for _ in range(3):
            shelf.hit("a")
        shelf.unhold("a")
        shelf.put("b", 1)
        assert shelf.order == ["a", "b"]


def test_what_comes_back_while_it_is_remembered_goes_to_the_main_queue() -> None:
    policy = Policy(10)
    shelf = Shelf(policy)
    shelf.put("ab", 1)
    shelf.evict("a")
    shelf.put("ac", 1)
    assert (keys(policy._main), keys(policy._small)) == (["a"], ["b", "c"])
