"""The audit sees what it is there for: each thing that is put wrong in a cache or an engine is found."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from engine.core import Engine
from engine.discovery import policy_maker
from engine.keys import Namespace
from engine.l1.cache import ALIGNMENT, L1Cache
from engine.l1.entry import Entry
from engine.settings import EngineSettings
from engine.wire import messages as m
from tests.soak.audit import check_cache, check_engine, held
from tests.soak.cast import CHUNK, MODELS, EngineCopies, Identity, difference, keys, pattern, prompts
from tests.unit.engine.support import arrived, key, register_engine_driven

SPACE = Namespace("m", 1, 0, b"layout", "")
TOKENS = list(range(CHUNK * 3))


@pytest.fixture
def cache() -> L1Cache:
    """Of four objects: one leased, one being written, one doomed and still leased, one that nobody uses."""
    made = L1Cache(8 * ALIGNMENT, policy_maker("lru"))
    entries = [made.reserve(bytes([number]) * 48, 100, SPACE, 0.0) for number in range(4)]
    for entry in entries[:3]:
        made.commit(entry)
    for entry in entries[:2]:
        made.lease(entry)
    made.doom(entries[1], "cleared")
    return made


@pytest.fixture
def engine() -> Engine:
    """With a worker that holds slots to write, and a request that holds what another one has written."""
    settings = EngineSettings(chunk_size=CHUNK)
    made = Engine(settings, L1Cache(1 << 20, policy_maker("lru")), m.RegisterEngineDrivenReply("pool", 1 << 20))
    for message in (
        register_engine_driven(1),
        m.PrepareStore(key(TOKENS, worker_id=0), 1),
        m.CommitStore(key(TOKENS, worker_id=0), 1, b""),
        m.Lookup(key(TOKENS), m.NIL),
        m.PrepareRetrieve(key(TOKENS, worker_id=0, request_id="other"), 1),
        m.PrepareStore(key([9] * CHUNK, worker_id=0), 1),
    ):
        made.handle(arrived(message))
    return made


def entry(cache: L1Cache, number: int) -> Entry:
    [found] = [each for each in {*cache._entries.values(), *cache._in_use} if each.key[0] == number]
    return found


def test_nothing_is_wrong_with_what_is_right(cache: L1Cache, engine: Engine) -> None:
    assert check_cache(cache) == []
    assert check_engine(engine) == []
    assert held(engine)["sessions"] == 1
    assert held(engine)["reserved objects"] == 1


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda cache: cache._free(entry(cache, 1)), id="a slot is freed while somebody reads it"),
        pytest.param(lambda cache: cache._allocator.free(0, ALIGNMENT), id="a slot is free and used"),
        pytest.param(lambda cache: cache._places.remove(entry(cache, 2)), id="an object has no place"),
        pytest.param(lambda cache: setattr(entry(cache, 0), "leases", 0), id="a lease is gone"),
        pytest.param(lambda cache: setattr(entry(cache, 3), "ready", True), id="it is ready without a commit"),
        pytest.param(lambda cache: cache._entries.pop(entry(cache, 2).key), id="an object is lost"),
        pytest.param(lambda cache: entry(cache, 2).queue.owner.hold(entry(cache, 2)), id="it is never evicted"),
        pytest.param(lambda cache: setattr(cache, "_ready", 7), id="a count is wrong"),
    ],
)
def test_what_is_wrong_in_the_cache_is_found(cache: L1Cache, spoil: Callable[[L1Cache], object]) -> None:
    spoil(cache)
    assert check_cache(cache)


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda engine: next(iter(engine._sessions)).leases.clear(), id="a session forgets its leases"),
        pytest.param(lambda engine: engine._workers.get(1).pins.clear(), id="a worker forgets what it reads"),
        pytest.param(lambda engine: engine._workers.get(1).reservations.clear(), id="or what it writes"),
        pytest.param(lambda engine: engine._workers.remove(1), id="a worker is gone and nothing was taken back"),
    ],
)
def test_who_forgets_what_it_holds_is_found(engine: Engine, spoil: Callable[[Engine], object]) -> None:
    spoil(engine)
    assert check_engine(engine)


def test_a_foreign_byte_is_told_with_its_place_and_its_owner() -> None:
    layout = next(layout for layout in MODELS[1].layouts if isinstance(layout, EngineCopies))
    mine, other = (Identity("lent", 0, layout.name, "", prompt[:CHUNK]) for prompt in prompts(3)[:2])
    expected, foreign = pattern(mine, layout.object_bytes), pattern(other, layout.object_bytes)
    found = expected[:1024] + foreign[1024:2048] + expected[2048:]
    told = difference(found, expected, seed=3)
    assert told == f"from byte 1024 of {layout.object_bytes} on it has those of {other}"


def test_every_object_that_there_can_be_has_bytes_of_its_own() -> None:
    known = keys(5)
    patterns = {pattern(identity, 16) for identity, _ in known.values()}
    assert len(patterns) == len(known) == len({identity for identity, _ in known.values()})
