"""Every input in the tree, through its target, without the fuzzer: what it has found once stays found."""

from __future__ import annotations

import ast
import random

import pytest

from engine.wire import codec
from tests.fuzz.barrage import literal, unfit
from tests.fuzz.corpus import CORPUS, inputs
from tests.fuzz.hostile import spoil
from tests.fuzz.targets import TARGETS, joined, parted
from tests.fuzz.wellformed import recorded


@pytest.mark.parametrize("name", TARGETS)
def test_no_input_of_the_corpus_breaks_a_promise(name: str) -> None:
    for path in inputs(name):
        try:
            TARGETS[name](path.read_bytes())
        except Exception as broken:
            raise AssertionError(f"by {path.relative_to(CORPUS)}") from broken


@pytest.mark.parametrize("name", TARGETS)
def test_every_target_has_inputs_and_they_are_small(name: str) -> None:
    sizes = [path.stat().st_size for path in inputs(name)]
    assert len(sizes) > 2
    assert sum(sizes) < 100_000
    assert len(sizes) < 150


@pytest.mark.parametrize("seed", range(20))
def test_spoiled_requests_break_no_promise_either(seed: int) -> None:
    rng, requests = random.Random(seed), recorded("/segment")
    for _ in range(50):
        frames = spoil(rng, rng.choice(requests), requests)
        TARGETS["codec"](joined(frames))
        TARGETS["kv_layout"](joined([*frames[2:3], *frames[6:8]]))


def test_frames_are_kept_in_an_input() -> None:
    for frames in recorded("/segment"):
        assert parted(joined(frames)) == [frame for frame in frames if len(frame) < 1 << 16]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lookup", [b"\xc0"]),
        ("store", [b"\x92\xc4\x00\x01"]),
        ("store", [b"\xc3"]),
        ("store", []),
        ("ping", [b"\xc0"]),
        ("get_chunk_size", []),
        ("prepare_retrieve", [b"\x80"]),
    ],
)
def test_a_reply_that_no_client_can_take_is_noticed(name: str, value: list[bytes]) -> None:
    operation = next(each for each in codec.OPERATIONS if each.name == name)
    assert unfit(operation, [b"\x01", b"\x06", *value])


@pytest.mark.parametrize("operation", [each for each in codec.OPERATIONS if each.answers], ids=lambda each: each.name)
def test_a_failure_value_is_a_reply_that_a_client_can_take(operation: codec.Operation) -> None:
    value = [] if operation.failure is None else [codec.encode_value(operation.failure)]
    if operation.name != "get_chunk_size":  # it has no argument that could be wrong
        assert unfit(operation, [b"\x01", b"\x06", *value]) is None


def test_a_message_is_shown_as_it_would_be_written() -> None:
    frames = [b"\x06", b"\x01" * 5000, bytes(range(256)) * 3]
    assert eval_literal(literal(frames)) == frames


def eval_literal(text: str) -> list[bytes]:
    """What a list of bytes, sums and products of them stands for."""

    def value(node: ast.expr) -> bytes:
        match node:
            case ast.Constant(bytes() as data):
                return data
            case ast.BinOp(left, ast.Add(), right):
                return value(left) + value(right)
            case ast.BinOp(left, ast.Mult(), ast.Constant(int() as times)):
                return value(left) * times
        raise AssertionError(ast.dump(node))

    listed = ast.parse(text, mode="eval").body
    assert isinstance(listed, ast.List)
    return [value(each) for each in listed.elts]
