"""Null blocks, several groups of blocks, ids that do not exist: what the server sees when it does the copying."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.interop.client import SERVER_COPIES, Engine, EngineGroupInfo, answer, fresh, prompt
from tests.interop.kv import BLOCK_SIZE, CHUNK, FUSED_HND, contents, differing

MakeEngine = Callable[..., Engine]

NULL = 0


@pytest.fixture
def engine(make_engine: MakeEngine) -> Engine:
    return make_engine(SERVER_COPIES)


def test_a_chunk_of_null_blocks_is_not_stored(engine: Engine) -> None:
    tokens, blocks = prompt(2 * CHUNK), engine.blocks(2)
    engine.worker.fill([NULL, *blocks])
    assert engine.worker.store(fresh("request"), tokens, [NULL, NULL, *blocks[2:]])
    assert engine.scheduler.peek(tokens) == 0

    assert engine.worker.store(fresh("request"), tokens, blocks)
    assert engine.scheduler.peek(tokens) == 2 * CHUNK


def test_a_load_never_writes_the_null_block(engine: Engine) -> None:
    tokens, blocks, target = prompt(2 * CHUNK), engine.blocks(2), [NULL, NULL, 30, 27]
    stored, null = engine.worker.fill(blocks), engine.worker.fill([NULL])
    assert engine.worker.store(fresh("request"), tokens, blocks)

    request = fresh("request")
    assert engine.scheduler.lookup(request, tokens) == 2 * CHUNK
    assert engine.worker.retrieve(request, tokens, target)

    assert differing(engine.worker.contents([NULL]), null) == []
    assert differing(engine.worker.contents(target[2:]), stored[2:]) == []


@pytest.mark.parametrize(
    "lists",
    [
        [[1, 2, 3]],
        [[1, 2, 3, 4, 5]],
        [[1, 2, 3, FUSED_HND.num_blocks]],
        [[1, 2, 3, -1]],
        [[]],
        [],
        [[1, 2, 3, 4], [1, 2, 3, 4]],
    ],
    ids=["too few", "too many", "past the end", "negative", "empty", "no list", "two groups"],
)
def test_wrong_block_ids_are_refused_and_nothing_is_stored(engine: Engine, lists: list[list[int]]) -> None:
    tokens, worker = prompt(2 * CHUNK), engine.worker
    worker.fill([1, 2, 3, 4, 5])
    assert answer(worker.client.store(worker.key(tokens), worker.instance_id, lists, b"")) == (b"", False)

    assert engine.scheduler.peek(tokens) == 0


def test_wrong_block_ids_are_not_written(engine: Engine) -> None:
    tokens, blocks = prompt(2 * CHUNK), engine.blocks(2)
    engine.worker.fill(blocks)
    assert engine.worker.store(fresh("request"), tokens, blocks)
    everything = list(range(engine.worker.layout.num_blocks))
    before, request = engine.worker.contents(everything), fresh("request")

    assert engine.scheduler.lookup(request, tokens) == 2 * CHUNK
    assert not engine.worker.retrieve(request, tokens, [30, 31, 32, engine.worker.layout.num_blocks])
    assert differing(engine.worker.contents(everything), before) == []


def test_groups_have_block_ids_of_their_own(make_engine: MakeEngine) -> None:
    engine = make_engine(SERVER_COPIES, groups=two_groups())
    tokens, one, other = prompt(2 * CHUNK), engine.blocks(2), engine.blocks(2, first=2)
    engine.worker.fill([*one, *other])
    stored = _by_group(engine, one, other)
    assert engine.worker.store(fresh("request"), tokens, [one, other])

    request, one, other = fresh("request"), engine.blocks(2, first=20), engine.blocks(2, first=31)
    assert engine.scheduler.lookup(request, tokens) == 2 * CHUNK
    assert engine.worker.retrieve(request, tokens, [one, other])
    assert _by_group(engine, one, other) == stored


def test_a_chunk_that_is_null_in_one_group_is_not_stored(make_engine: MakeEngine) -> None:
    engine = make_engine(SERVER_COPIES, groups=two_groups())
    tokens, blocks = prompt(2 * CHUNK), engine.blocks(2)
    engine.worker.fill(blocks)
    assert engine.worker.store(fresh("request"), tokens, [blocks, [*blocks[:2], NULL, NULL]])

    assert engine.scheduler.peek(tokens) == CHUNK


@pytest.mark.parametrize("special", [{"sw_size_tokens": 64}, {"recurrent_state": True}], ids=["window", "recurrent"])
def test_groups_that_are_not_supported_yet_are_never_a_hit(
    make_engine: MakeEngine, special: dict[str, int | bool]
) -> None:
    full, other = two_groups()
    engine = make_engine(SERVER_COPIES, groups=[full, EngineGroupInfo(1, other.layer_indices, BLOCK_SIZE, **special)])
    tokens, blocks = prompt(2 * CHUNK), engine.blocks(2)
    engine.worker.fill(blocks)

    assert engine.worker.store(fresh("request"), tokens, [blocks, blocks])
    assert engine.scheduler.peek(tokens) == 0


def two_groups() -> list[EngineGroupInfo]:
    """The layers of ``FUSED_HND`` in two groups with full attention."""
    return [EngineGroupInfo(0, (0, 2), BLOCK_SIZE), EngineGroupInfo(1, (1,), BLOCK_SIZE)]


def _by_group(engine: Engine, one: list[int], other: list[int]) -> list[list[bytes]]:
    """What each layer holds in the blocks of its group."""
    first, second, third = engine.worker.tensors.values()
    return [contents([tensor], 0, ids) for tensor, ids in ((first, one), (second, other), (third, one))]
