"""Both transfer modes of one model on one server: their objects are laid out differently and must never be mixed."""

from __future__ import annotations

from collections.abc import Callable

from tests.interop.client import ENGINE_COPIES, SERVER_COPIES, Engine, fresh, prompt
from tests.interop.kv import CHUNK, FUSED_HND, SPLIT_NHD, differing
from tests.support.server import ServerProcess

MakeEngine = Callable[..., Engine]


def loaded(engine: Engine, tokens: list[int]) -> list[bytes]:
    """The bytes a new request of ``engine`` gets for ``tokens``, all of which must hit."""
    request, target = fresh("request"), engine.blocks(len(tokens) // CHUNK, first=20)
    engine.worker.fill(target)
    assert engine.scheduler.lookup(request, tokens) == len(tokens)
    assert engine.worker.retrieve(request, tokens, target)
    engine.scheduler.end(request)
    return engine.worker.contents(target)


def test_each_mode_loads_its_own_bytes(make_engine: MakeEngine) -> None:
    one = make_engine(SERVER_COPIES)
    other = make_engine(ENGINE_COPIES, model=one.model)
    tokens = prompt(2 * CHUNK)
    stored = {}
    for engine in (one, other):
        stored[engine] = engine.worker.fill(engine.blocks(2))
        assert engine.worker.store(fresh("request"), tokens, engine.blocks(2))

    for engine in (one, other):
        assert differing(loaded(engine, tokens), stored[engine]) == []


def test_what_one_mode_stored_is_no_hit_for_the_other(make_engine: MakeEngine, mode: str) -> None:
    """While both are registered, only what each of them could load counts."""
    first = make_engine(mode)
    second = make_engine(SERVER_COPIES if mode == ENGINE_COPIES else ENGINE_COPIES, model=first.model)
    tokens = prompt(2 * CHUNK)
    first.worker.fill(first.blocks(2))
    assert first.worker.store(fresh("request"), tokens, first.blocks(2))

    assert second.scheduler.peek(tokens) == 0
    request, target = fresh("request"), second.blocks(2, first=20)
    before = second.worker.fill(target)
    assert not second.worker.retrieve(request, tokens, target)
    assert differing(second.worker.contents(target), before) == []


def test_a_hit_comes_back_once_the_other_mode_has_left(
    server: ServerProcess, make_engine: MakeEngine, mode: str
) -> None:
    first = make_engine(mode)
    second = Engine(server.url, SERVER_COPIES if mode == ENGINE_COPIES else ENGINE_COPIES, model=first.model)
    tokens = prompt(2 * CHUNK)
    stored = first.worker.fill(first.blocks(2))
    assert first.worker.store(fresh("request"), tokens, first.blocks(2))
    assert first.scheduler.peek(tokens) == 0
    second.close()

    assert differing(loaded(first, tokens), stored) == []


def test_two_tensor_layouts_of_one_model_do_not_mix(make_engine: MakeEngine, mode: str) -> None:
    one = make_engine(mode, FUSED_HND)
    other = make_engine(mode, SPLIT_NHD, model=one.model)
    tokens = prompt(2 * CHUNK)
    stored = {}
    for engine in (one, other):
        stored[engine] = engine.worker.fill(engine.blocks(2))
        assert engine.worker.store(fresh("request"), tokens, engine.blocks(2))

    for engine in (one, other):
        assert differing(loaded(engine, tokens), stored[engine]) == []
