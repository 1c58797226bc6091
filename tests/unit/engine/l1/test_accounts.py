"""Every byte of L1 is accounted for whatever happens, and room is found wherever there is some."""

from __future__ import annotations

from collections import Counter, deque
from itertools import count
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.discovery import policy_maker, policy_names
from engine.keys import Namespace, namespace
from engine.l1.cache import ALIGNMENT, L1Cache, NoSpaceError
from engine.l1.entry import Entry
from engine.l1.partitions import Quota
from engine.l1.policies.base import Queue

PAGE = ALIGNMENT
PAGES = 160
SIZES = [1, 2, 3, 7, 16, 40, 64]
"""Pages of an object, by model."""
SALTS = ["", "a", "b", "c"]
QUOTAS = [None, Quota(), Quota(limit=0), Quota(limit=20 * PAGE), Quota(limit=60 * PAGE, reservation=30 * PAGE)]
QUOTAS += [Quota(reservation=40 * PAGE)]
SPACES: dict[tuple[int, str], Namespace] = {
    (model, salt): namespace(f"m{model}", 1, 0, bytes(16), salt) for model in range(len(SIZES)) for salt in SALTS
}
OFTEN = ["store", "look up", "let go"]
SOMETIMES = [*OFTEN, *OFTEN, *OFTEN, "begin", "commit", "abort", "touch"]
SELDOM = ["doom", "clear", "resize", "evict beyond", "cut", "policy", "quota", "default", "bring home", "hand over"]
ACTIONS = st.sampled_from([*SOMETIMES, *SELDOM, "evict over"])
STEPS = st.lists(st.tuples(ACTIONS, st.integers(0, 1 << 20)), max_size=60)


class Ledger:
    """An L1 and, beside it, everything that it should have."""

    def __init__(self, policy: str) -> None:
        self.cache = L1Cache(PAGES * PAGE, policy_maker(policy))
        self.numbers = count()
        self.occupied: dict[Entry, None] = {}
        """Everything whose slot is not free, as it was reserved or is found by a walk."""
        self.written: list[Entry] = []
        self.leased: deque[list[Entry]] = deque()

    def do(self, action: str, number: int) -> None:
        cache, random = self.cache, Random(number)
        salt = SALTS[number % len(SALTS)]
        match action:
            case "store":
                self.begin(random.randrange(len(SIZES)), salt, random.randrange(1, 5))
                while self.written:
                    cache.commit(self.written.pop())
            case "begin":
                self.begin(random.randrange(len(SIZES)), salt, random.randrange(1, 3))
            case "commit" | "abort" if self.written:
                getattr(cache, action)(self.written.pop(number % len(self.written)))
            case "look up":
                found = [entry for entry in self.ready(salt) if random.random() < 0.3]
                for entry in found:
                    cache.lease(entry)
                cache.use(found[::-1], float(number))
                self.leased.append(found)
            case "let go" if self.leased:
                self.leased.rotate(number % 3)
                found = self.leased.popleft()
                for entry in reversed(found):
                    cache.release(entry)
                cache.touch([entry.key for entry in reversed(found)])
            case "touch":
                cache.touch([entry.key for entry in self.ready(salt)])
            case "doom" if there := cache.page(0, 1000).members:
                cache.doom(random.choice(there), "cleared")
            case "clear" if number % 3 == 0:
                cache.clear()
            case "resize":
                cache.set_capacity(random.choice([0, 20, 100, PAGES, PAGES, 2 * PAGES]) * PAGE + number % 2)
            case "evict beyond":
                cache.evict_beyond(0, 100)
            case "cut" if cache.tail_is_free:
                cache.cut_tail()
            case "policy":
                cache.change_policy(policy_maker(random.choice(policy_names())))
            case "quota":
                cache.set_quota(salt, random.choice(QUOTAS))
            case "default":
                cache.set_default_quota(random.choice([Quota(), Quota(limit=0), Quota(limit=50 * PAGE)]))
            case "bring home":
                cache.bring_home(0, 1000)
            case "hand over":
                cache.hand_over(random.randrange(20))
            case "evict over":
                cache.evict_over_limits(random.randrange(10))

    def begin(self, model: int, salt: str, chunks: int) -> None:
        parent = None
        for _ in range(chunks):
            number = next(self.numbers)
            size = SIZES[model] * PAGE - number % 2
            try:
                parent = self.cache.reserve(b"%d" % number, size, SPACES[model, salt], float(number), parent)
            except NoSpaceError:
                return
            self.occupied[parent] = None
            self.written.append(parent)

    def ready(self, salt: str) -> list[Entry]:
        page = self.cache.page(0, 1000)
        return [entry for entry in page.members if entry.ready and entry.namespace.cache_salt == salt]

    def check(self) -> None:
        cache = self.cache
        visible = set(cache.page(0, 1000).members)
        in_use = {*self.written, *(entry for found in self.leased for entry in found)}
        self.occupied = {entry: None for entry in self.occupied if entry in visible | in_use}
        assert {*self.occupied} == visible | in_use
        self.check_places()
        assert cache.used == sum(entry.size for entry in self.occupied)
        assert cache.reserved_bytes == sum(entry.size for entry in self.written)
        assert cache.ready_bytes == sum(entry.size for entry in visible if entry.ready)
        assert cache._in_use_bytes == sum(entry.size for entry in in_use)
        self.check_tenants()
        self.check_ranking(visible, {entry for entry in visible if entry not in in_use})

    def check_places(self) -> None:
        end = 0
        for entry in sorted(self.occupied, key=lambda entry: entry.offset):
            assert entry.offset >= end, "two objects share a page"
            end = entry.offset + entry.size
        assert end <= self.cache.end
        if self.cache.tail[0] == self.cache.tail[1]:
            assert self.cache.used <= self.cache.capacity

    def check_tenants(self) -> None:
        """What each has is counted, wherever it is counted."""
        partitions = self.cache._partitions
        used: Counter[str] = Counter()
        for entry in self.occupied:
            used[entry.namespace.cache_salt] += entry.size
        assert self.cache.usage == used
        own = {salt: partition.used for salt, partition in partitions._own.items()}
        assert own == {salt: used[salt] for salt in own}
        assert partitions._shared.used == used.total() - sum(own.values())
        assert set(own) <= {*used, *partitions.quotas}, "a partition of nobody"

    def check_ranking(self, visible: set[Entry], idle: set[Entry]) -> None:
        """Who is idle can be evicted, by one policy; what the policies count is there."""
        partitions = list(self.cache._partitions)
        named = Counter(victim for partition in partitions for victim in partition.victims())
        assert named == Counter(idle)
        counted: Counter[Queue] = Counter()
        for entry in visible:
            assert entry.queue is not None
            counted[entry.queue] += entry.size
        owners = [policy for partition in partitions for policy in (*partition.former, partition.policy)]
        assert all(queue.size == size for queue, size in counted.items())
        assert {queue.owner for queue in counted} <= set(owners)


def no_room(ledger: Ledger, pages: int) -> bool:
    try:
        entry = ledger.cache.reserve(b"probe", pages * PAGE, SPACES[0, ""], 0.0)
    except NoSpaceError:
        return True
    assert entry.offset + pages * PAGE <= ledger.cache.capacity
    ledger.cache.abort(entry)
    return False


@pytest.mark.parametrize("policy", policy_names())
def test_whatever_happens_every_byte_is_accounted_for(policy: str) -> None:
    @given(steps=STEPS)
    @settings(max_examples=120, deadline=None)
    def happens(steps: list[tuple[str, int]]) -> None:
        ledger = Ledger(policy)
        for action, number in steps:
            before, evicted = ledger.cache.capacity, ledger.cache.counters.evicted_objects
            ledger.do(action, number)
            ledger.check()
            if action in ("look up", "touch", "bring home", "hand over", "quota", "policy"):
                assert (ledger.cache.capacity, ledger.cache.counters.evicted_objects) == (before, evicted)

    happens()


@pytest.mark.parametrize("policy", policy_names())
@pytest.mark.parametrize("seed", range(3))
def test_also_in_the_long_run(policy: str, seed: int) -> None:
    random, ledger = Random(seed), Ledger(policy)
    for _ in range(600):
        rare = random.choice(SELDOM), random.choice([*SELDOM, "evict over"])
        action = random.choice([*SOMETIMES, *rare])
        ledger.do(action, random.randrange(1 << 20))
        ledger.check()
    assert ledger.cache.counters.evicted_objects > 50


@pytest.mark.parametrize("policy", policy_names())
def test_while_nothing_is_in_use_what_fits_into_l1_finds_room(policy: str) -> None:
    """All of it, whatever lies there in whatever sizes; quotas aside."""

    @given(steps=STEPS, pages=st.integers(1, PAGES))
    @settings(max_examples=60, deadline=None)
    def happens(steps: list[tuple[str, int]], pages: int) -> None:
        ledger = Ledger(policy)
        for action, number in steps:
            if action not in ("begin", "quota", "default"):
                ledger.do(action, number)
        while ledger.leased:
            ledger.do("let go", 0)
        assert no_room(ledger, pages) == (pages * PAGE > ledger.cache.capacity)

    happens()


MIXES = [(4, 16, 48), (1, 2, 3, 5, 8, 13, 21, 34, 55, 64), (63, 64), (1, 64)]
LARGE = 4096
"""Pages of an L1 that holds 64 of the largest objects."""


def refusals(cache: L1Cache, sizes: tuple[int, ...], salts: list[str], share: float, prompts: int) -> Counter[str]:
    """Stores prompts of up to 8 chunks and uses some; up to a `share` of L1 is in use for a while. Returns how many
    stores came to what."""
    random, outcomes = Random(1), Counter[str]()
    spaces = {salt: [namespace(f"m{size}", 1, 0, bytes(16), salt) for size in sizes] for salt in salts}
    recent: deque[list[bytes]] = deque(maxlen=500)
    leased: list[list[Entry]] = []
    for prompt in range(prompts):
        model, salt, parent = random.randrange(len(sizes)), random.choice(salts), None
        written: list[Entry] = []
        for chunk in range(random.randrange(1, 9)):
            key = b"%d/%d" % (prompt, chunk)
            try:
                parent = cache.reserve(key, sizes[model] * PAGE, spaces[salt][model], float(prompt), parent)
            except NoSpaceError as error:
                outcomes[error.reason] += 1
                break
            outcomes["stored"] += 1
            written.append(parent)
        for entry in reversed(written):
            cache.commit(entry)
        recent.append([entry.key for entry in written])
        found = [entry for key in random.choice(recent) if (entry := cache.find(key))]
        for entry in found:
            cache.lease(entry)
        cache.use(found[::-1], float(prompt))
        leased.append(found)
        while cache._in_use_bytes > share * cache.capacity:
            for entry in reversed(leased.pop(random.randrange(len(leased)))):
                cache.release(entry)
    return outcomes


@pytest.mark.parametrize("policy", ["hit_density", "lru", "fifo"])
@pytest.mark.parametrize("sizes", MIXES, ids=str)
def test_while_half_of_l1_is_in_use_less_than_one_store_in_a_hundred_finds_no_contiguous_room(
    policy: str, sizes: tuple[int, ...]
) -> None:
    outcomes = refusals(L1Cache(LARGE * PAGE, policy_maker(policy)), sizes, [""], 0.5, 700)
    assert outcomes["stored"] > 2500
    assert outcomes["fragmented"] + outcomes["in_use"] < 0.01 * outcomes.total()


@pytest.mark.parametrize("sizes", MIXES, ids=str)
def test_also_while_tenants_have_reservations(sizes: tuple[int, ...]) -> None:
    cache = L1Cache(LARGE * PAGE, policy_maker("hit_density"))
    for salt in "abc":
        cache.set_quota(salt, Quota(reservation=LARGE * PAGE // 5))
    outcomes = refusals(cache, sizes, [*"abc", "", ""], 0.3, 700)
    assert outcomes["stored"] > 2500
    assert outcomes["fragmented"] + outcomes["in_use"] < 0.01 * outcomes.total()
