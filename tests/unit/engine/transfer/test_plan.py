"""Which layers move together, in how wide items, and which blocks a retrieve may write."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from engine.layouts import read_kv_layout
from engine.transfer.plan import Stack, stacks, writable
from tests.unit.engine.support import cpu_tensor, extensions, group, packed


def stacks_of(
    tensors: Sequence[dict[str, object]], kv_layout: str = "HND", order: Sequence[int] | None = None
) -> tuple[Stack, ...]:
    infos = [group(range(len(tensors)) if order is None else order)]
    layout = read_kv_layout(extensions(tensors), packed({"kv_layout": kv_layout}), packed(infos), 16)
    return stacks(layout.groups[0])


def in_one(offsets: Sequence[int], shape: Sequence[int] = (4, 2, 8, 4), **more: object) -> list[dict[str, object]]:
    """Tensors of 512 bytes at these elements of one segment."""
    return [cpu_tensor(shape, offset=offset, nbytes=1 << 16, **more) for offset in offsets]  # type: ignore[arg-type]


def shape_of(stack: Stack) -> tuple[int, int, int]:
    return stack.planes, stack.offset, stack.plane_stride


def test_layers_at_equal_distances_are_one_stack() -> None:
    assert [shape_of(stack) for stack in stacks_of(in_one([0, 256, 512, 768]))] == [(4, 0, 512)]


def test_a_single_layer_is_a_stack() -> None:
    assert [shape_of(stack) for stack in stacks_of(in_one([8]))] == [(1, 16, 0)]


def test_another_distance_begins_another_stack() -> None:
    found = stacks_of(in_one([0, 256, 512, 1000, 1500]))
    assert [shape_of(stack) for stack in found] == [(3, 0, 512), (2, 2000, 1000)]


def test_layers_in_falling_order_are_not_stacked() -> None:
    assert [shape_of(stack) for stack in stacks_of(in_one([512, 256, 0]))] == [(1, 1024, 0), (1, 512, 0), (1, 0, 0)]


def test_the_groups_order_decides_and_not_the_tensors() -> None:
    assert [shape_of(stack) for stack in stacks_of(in_one([512, 0, 256]), order=[1, 2, 0])] == [(3, 0, 512)]


def test_one_layer_twice_is_not_a_stack() -> None:
    assert len(stacks_of(in_one([256, 256]))) == 2


def test_one_plane_and_two_planes_are_one_stack_only_at_one_distance() -> None:
    one, two = in_one([0]), (2, 4, 2, 8, 4)
    assert [shape_of(stack) for stack in stacks_of([*one, *in_one([256], two)])] == [(3, 0, 512)]
    assert [shape_of(stack) for stack in stacks_of([*one, *in_one([512], two)])] == [(1, 0, 0), (2, 1024, 512)]
    assert [shape_of(stack) for stack in stacks_of([*in_one([0], two), *in_one([512])])] == [(3, 0, 512)]
    assert [shape_of(stack) for stack in stacks_of([*in_one([0], two), *in_one([600])])] == [(2, 0, 512), (1, 1200, 0)]


def test_layers_of_different_segments_are_not_stacked() -> None:
    tensors = [cpu_tensor([4, 2, 8, 4], offset=256 * n, nbytes=1 << 16, shm_name=f"/{n}") for n in range(2)]
    assert [stack.storage for stack in stacks_of(tensors)] == [0, 1]


def test_layers_with_other_blocks_are_not_stacked() -> None:
    tensors = [*in_one([0]), *in_one([256], (4, 4, 8, 4))]
    assert [stack.block_bytes for stack in stacks_of(tensors)] == [128, 256]


def test_packed_layers_are_one_stack_with_a_block_of_all_between_blocks() -> None:
    tensors = [cpu_tensor([4, 2, 8, 4], [192, 32, 4, 1], 64 * layer, nbytes=4096) for layer in range(3)]
    [stack] = stacks_of(tensors, "BLHNC")
    assert (*shape_of(stack), stack.block_stride, stack.block_bytes) == (3, 0, 128, 384, 128)


def test_k_and_v_of_layers_that_follow_each_other_are_one_stack() -> None:
    [stack] = stacks_of(in_one([0, 512, 1024], (2, 4, 2, 8, 4)))
    assert shape_of(stack) == (6, 0, 512)


def test_k_and_v_of_layers_apart_stay_two_planes() -> None:
    found = stacks_of(in_one([0, 1000], (2, 4, 2, 8, 4)))
    assert [shape_of(stack) for stack in found] == [(2, 0, 512), (2, 2000, 512)]


def test_v_of_all_layers_behind_k_of_all_is_not_taken_for_a_stack() -> None:
    """Their order in an object is K0 V0 K1 V1, in memory K0 K1 V0 V1."""
    tensors = [cpu_tensor([2, 4, 2, 8, 4], [512, 64, 32, 4, 1], 256 * n, nbytes=4096) for n in range(2)]
    assert [shape_of(stack) for stack in stacks_of(tensors)] == [(2, 0, 1024), (2, 512, 1024)]


@pytest.mark.parametrize(
    ("places", "width"),
    [
        pytest.param({}, 16, id="all of them even"),
        pytest.param({"offset": 8}, 8, id="offset"),
        pytest.param({"block_bytes": 68}, 4, id="block"),
        pytest.param({"block_stride": 130}, 2, id="block stride"),
        pytest.param({"plane_stride": 1001}, 1, id="plane stride"),
    ],
)
def test_items_are_as_wide_as_all_places_allow(places: dict[str, int], width: int) -> None:
    even = {"offset": 32, "block_bytes": 64, "block_stride": 128, "plane_stride": 1024}
    assert Stack(storage=0, planes=2, num_blocks=4, **even | places).item_bytes(48) == width


@pytest.mark.parametrize(("object_offset", "width"), [(0, 16), (24, 8), (4, 4), (6, 2), (7, 1)])
def test_items_are_no_wider_than_the_place_in_the_object_allows(object_offset: int, width: int) -> None:
    assert Stack(0, 1, 4, 64, 32, 0, 128).item_bytes(object_offset) == width


@pytest.mark.parametrize(
    ("ids", "skip", "positions"),
    [
        pytest.param([4, 5, 6], 0, None, id="all"),
        pytest.param([], 0, None, id="none"),
        pytest.param([4, 5, 6], 1, [1, 2], id="one skipped"),
        pytest.param([4, 5, 6], 9, [], id="all skipped"),
        pytest.param([4, 0, 6], 0, [0, 2], id="a null block"),
        pytest.param([0, 0, 6, 0], 1, [2], id="skipped and null"),
        pytest.param([0, 0], 0, [], id="all null"),
    ],
)
def test_what_is_skipped_or_null_must_not_be_written(ids: list[int], skip: int, positions: list[int] | None) -> None:
    assert writable(ids, skip) == positions
