"""Whatever a worker registers: it is refused, or every byte that a copy of it touches lies in the worker's memory.

What a tensor's bytes are is found by going through all of its indices, which nothing in the engine does.
"""

from __future__ import annotations

from itertools import product
from math import prod
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from engine.layouts import ITEM_BYTES, KVLayout, Layer, LayoutError, read_kv_layout
from engine.transfer.plan import Stack, stacks
from tests.unit.engine.support import contiguous, cpu_tensor, extensions, group, packed

CHUNK = 16
KV_LAYOUTS = ("HND", "NHD", "BLHNC", "BLNHC")

small = st.integers(1, 4)
shapes = st.one_of(
    st.tuples(small, small, small),
    st.tuples(small, small, small, small),
    st.tuples(st.just(2), small, small, small, small),
    st.tuples(small, st.just(2), small, small, small),
    st.tuples(st.just(2), small, small, st.just(1), small, small),
)
numbers = st.one_of(st.integers(-2, 70), st.sampled_from([2**31, 2**32, 2**61, 2**62, 2**63 - 1, 2**63, 2**64 - 1]))


@st.composite
def tensors(draw: st.DrawFn) -> dict[str, Any]:
    """Mostly what an engine could have, with something changed anywhere."""
    shape = list(draw(shapes))
    stride = contiguous(shape)
    if draw(st.booleans()):
        stride[0] += draw(st.integers(0, 9))
    if draw(st.booleans()):
        order = draw(st.permutations(range(min(2, len(shape)))))
        stride[: len(order)] = [stride[place] for place in order]
    for _ in range(draw(st.integers(0, 2))):
        which = draw(st.sampled_from([shape, stride]))
        which[draw(st.integers(0, len(which) - 1))] = draw(numbers)
    body = cpu_tensor(shape, stride, dtype=draw(st.sampled_from(["uint8", "bfloat16", "float32"])))
    metadata = body["metadata"]
    metadata["storage_offset"] = draw(st.one_of(st.integers(0, 9), numbers))
    ends = ITEM_BYTES[metadata["dtype"]] * metadata["storage_offset"] + body["nbytes"]
    body["nbytes"] = max(0, min(2**64 - 1, draw(st.one_of(st.just(ends), st.just(ends - 1), numbers))))
    return body


groups = st.one_of(
    st.just([]),
    st.just([group([0, 1], 4)]),
    st.lists(
        st.builds(group, st.lists(st.integers(-1, 3), max_size=4), st.one_of(st.sampled_from([0, 1, 4, 16]), numbers)),
        max_size=3,
    ),
)


def addresses(body: dict[str, Any]) -> list[int]:
    """Every byte of a tensor, element by element."""
    metadata = body["metadata"]
    item = ITEM_BYTES[metadata["dtype"]]
    found = []
    for index in product(*map(range, metadata["shape"])):
        steps = sum(at * step for at, step in zip(index, metadata["stride"], strict=True))
        first = (metadata["storage_offset"] + steps) * item
        found += range(first, first + item)
    return found


def touched(part: Layer | Stack) -> list[int]:
    """Every byte of all blocks, as a copy finds them."""
    return [
        part.offset + plane * part.plane_stride + block * part.block_stride + byte
        for plane in range(part.planes)
        for block in range(part.num_blocks)
        for byte in range(part.block_bytes)
    ]


def read(bodies: list[dict[str, Any]], infos: list[dict[str, object]], kv_layout: str) -> KVLayout | None:
    try:
        return read_kv_layout(extensions(bodies), packed({"kv_layout": kv_layout}), packed(infos), CHUNK)
    except LayoutError:
        return None


@given(bodies=st.lists(tensors(), min_size=1, max_size=3), infos=groups, kv_layout=st.sampled_from(KV_LAYOUTS))
@example(bodies=[cpu_tensor([2, 4, 1, 4, 2], [0, 8, 8, 2, 1])], infos=[], kv_layout="HND")
@example(bodies=[cpu_tensor([2, 4, 1, 4, 2], [8, 16, 8, 2, 1])], infos=[], kv_layout="HND")
@example(bodies=[cpu_tensor([1, 4, 1, 4], [2**62, 4, 4, 1])], infos=[], kv_layout="NHD")
@settings(deadline=None, max_examples=200)
def test_a_copy_touches_the_tensors_bytes_and_no_others(
    bodies: list[dict[str, Any]], infos: list[dict[str, object]], kv_layout: str
) -> None:
    layout = read(bodies, infos, kv_layout)
    if layout is None or any(prod(body["metadata"]["shape"]) > 600 for body in bodies):
        return  # an enormous segment may hold an enormous tensor; there is no going through it
    size = 0
    for part in layout.groups:
        planned = [byte for stack in stacks(part) for byte in touched(stack)]
        assert sorted(planned) == sorted(byte for layer in part.layers for byte in touched(layer))
        for layer, index in zip(part.layers, part.layer_indices, strict=True):
            mine = addresses(bodies[index])
            assert min(mine) >= 0
            assert max(mine) < bodies[layer.storage]["nbytes"]
            assert len(set(mine)) == len(mine), "two blocks share a byte"
            assert max(layer.block_stride, layer.plane_stride) <= bodies[layer.storage]["nbytes"]
            assert sorted(touched(layer)) == sorted(mine)
        size += part.chunk_bytes
    assert size == layout.object_bytes
    assert size == sum(
        stack.planes * part.blocks_per_chunk * stack.block_bytes for part in layout.groups for stack in stacks(part)
    )


@pytest.mark.parametrize(
    ("bodies", "infos", "reason"),
    [
        ([cpu_tensor([4, 8, 4])] * 513, [], "513 tensors are registered; 512 are possible"),
        ([cpu_tensor([4, 8, 4])], [group([0])] * 65, "65 groups are registered; 64 are possible"),
        ([cpu_tensor([4, 8, 4])], [group([0, 0])], "names layers [0, 0]"),
        ([cpu_tensor([2, 4, 1, 8, 4], [0, 32, 32, 4, 1])], [], "blocks that overlap"),
        ([cpu_tensor([2, 4, 1, 8, 4], [64, 32, 32, 4, 1])], [], "blocks that overlap"),
        ([cpu_tensor([1] * 17)], [], "17 sizes"),
        ([cpu_tensor([4, 8, 4], [2**63, 4, 1], nbytes=2**64 - 1)], [], "above"),
    ],
)
def test_what_is_too_much_or_overlaps_is_refused(
    bodies: list[dict[str, Any]], infos: list[dict[str, object]], reason: str
) -> None:
    with pytest.raises(LayoutError) as refusal:
        read_kv_layout(extensions(bodies), packed({}), packed(infos), CHUNK)
    assert reason in str(refusal.value)


def test_k_and_v_may_lie_block_by_block_beside_each_other() -> None:
    body = cpu_tensor([2, 4, 1, 8, 4], [32, 64, 32, 4, 1])
    assert read([body], [group([0])], "HND") is not None
