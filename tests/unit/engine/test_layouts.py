"""How registered tensors are understood, and which are refused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.layouts import (
    EngineDrivenPayload,
    KVLayout,
    LayoutError,
    read_kv_layout,
    slot_layout,
)
from tests.unit.engine.support import contiguous, cpu_tensor, cuda_tensor, extensions, group, packed


def read(
    bodies: Sequence[object],
    kv_layout: str | None = "HND",
    groups: Sequence[object] | None = None,
    chunk_size: int = 16,
    code: int = 1,
) -> KVLayout:
    hints = {} if kv_layout is None else {"kv_layout": kv_layout}
    infos = [group(range(len(bodies)))] if groups is None else groups
    return read_kv_layout(extensions(bodies, code), packed(hints), packed(infos), chunk_size)


SHAPES = [
    # kv_layout, shape, planes, blocks, tokens per block, bytes of a block, name
    pytest.param("HND", [9, 2, 8, 12], 1, 9, 8, 384, "NL_X_NB_NH_BS_TWO_HS", id="fused, heads first"),
    pytest.param("BLHNC", [9, 2, 8, 12], 1, 9, 8, 384, "NL_X_NB_NH_BS_TWO_HS", id="fused, packed, heads first"),
    pytest.param("NHD", [9, 8, 2, 12], 1, 9, 8, 384, "NL_X_NB_BS_NH_TWO_HS", id="fused, tokens first"),
    pytest.param("BLNHC", [9, 8, 2, 12], 1, 9, 8, 384, "NL_X_NB_BS_NH_TWO_HS", id="fused, packed, tokens first"),
    pytest.param("NHD", [2, 9, 8, 3, 4], 2, 9, 8, 192, "NL_X_TWO_NB_BS_NH_HS", id="K and V outside, tokens first"),
    pytest.param("HND", [2, 9, 3, 8, 4], 2, 9, 8, 192, "NL_X_TWO_NB_NH_BS_HS", id="K and V outside, heads first"),
    pytest.param("NHD", [9, 2, 8, 3, 4], 1, 9, 8, 384, "NL_X_NB_TWO_BS_NH_HS", id="K and V inside, tokens first"),
    pytest.param("HND", [9, 2, 3, 8, 4], 1, 9, 8, 384, "NL_X_NB_TWO_NH_BS_HS", id="K and V inside, heads first"),
    pytest.param("NHD", [2, 2, 8, 3, 4], 2, 2, 8, 192, "NL_X_TWO_NB_BS_NH_HS", id="two blocks: K and V outside first"),
    pytest.param("HND", [9, 8, 20], 1, 9, 8, 320, "NL_X_NB_BS_HS", id="MLA"),
    pytest.param("HND", [2, 9, 3, 1, 8, 4], 2, 9, 8, 192, "NL_X_TWO_NB_NH_ONE_BS_HS", id="RBLN"),
    pytest.param("NHD", [9, 5, 2, 8, 3, 4], 1, 9, 8, 1920, "NB_NL_TWO_BS_NH_HS", id="all layers in one tensor"),
]


@pytest.mark.parametrize(("kv_layout", "shape", "planes", "blocks", "tokens", "block_bytes", "name"), SHAPES)
def test_blocks_and_tokens_are_found_by_rank_and_shape(
    kv_layout: str, shape: list[int], planes: int, blocks: int, tokens: int, block_bytes: int, name: str
) -> None:
    layout = read([cpu_tensor(shape)], kv_layout, [group([0], tokens_per_block=0)])
    [layer] = layout.groups[0].layers
    assert (layer.planes, layer.num_blocks, layer.tokens, layer.block_bytes) == (planes, blocks, tokens, block_bytes)
    assert layout.groups[0].tokens_per_block == tokens
    assert layout.report.gpu_kv_format == name
    assert layout.object_bytes == planes * block_bytes * (16 // tokens)
    assert layer.block_stride == block_bytes
    assert layer.plane_stride == (blocks * block_bytes if planes == 2 else 0)


@pytest.mark.parametrize(
    ("device", "tensor", "tokens"),
    [("cpu", cpu_tensor([9, 2, 8, 12]), 8), ("cuda", cuda_tensor([9, 8, 2, 12]), 8)],
)
def test_without_a_hint_heads_come_first_on_a_cpu_and_tokens_elsewhere(
    device: str, tensor: dict[str, Any], tokens: int
) -> None:
    layout = read([tensor], None, [group([0], tokens_per_block=0)])
    assert layout.device == device
    assert layout.groups[0].tokens_per_block == tokens


def test_the_layout_of_a_real_vllm_on_a_cpu() -> None:
    shape, elements = [4096, 4, 128, 64], 4096 * 32768
    tensors = [cpu_tensor(shape, offset=layer * elements, nbytes=1 << 30) for layer in range(4)]
    layout = read(tensors, "HND", [group(range(4), 128)], chunk_size=256)
    assert [layer.storage for layer in layout.groups[0].layers] == [0, 0, 0, 0]
    assert [layer.offset for layer in layout.groups[0].layers] == [layer << 28 for layer in range(4)]
    assert layout.object_bytes == 4 * 2 * 65536
    assert layout.groups[0].blocks_per_chunk == 2
    report = layout.report
    assert (report.num_layers, report.block_size, report.num_blocks, report.dtype) == (4, 128, 4096, "bfloat16")
    assert (report.hidden_dim_sizes, report.cache_size_per_token, report.is_mla) == ((256,), 2048, False)
    assert report.gpu_kv_concrete_shape == "4 x [4096, 4, 128, 64]"


@pytest.mark.parametrize(("kv_layout", "shape"), [("BLHNC", [6, 2, 8, 4]), ("BLNHC", [6, 8, 2, 4])])
def test_packed_layers_are_views_with_the_stride_of_all_layers(kv_layout: str, shape: list[int]) -> None:
    stride = [3 * 64, *contiguous(shape)[1:]]
    layout = read([cpu_tensor(shape, stride, layer * 64, nbytes=6 * 3 * 64 * 2) for layer in range(3)], kv_layout)
    assert [layer.block_stride for layer in layout.groups[0].layers] == [384] * 3
    assert [layer.block_bytes for layer in layout.groups[0].layers] == [128] * 3
    assert [layer.offset for layer in layout.groups[0].layers] == [0, 128, 256]


def test_blocks_may_be_padded() -> None:
    [layer] = read([cpu_tensor([6, 2, 8, 4], [80, 32, 4, 1])]).groups[0].layers
    assert (layer.block_bytes, layer.block_stride) == (128, 160)


def test_a_stride_of_a_dimension_of_size_one_means_nothing() -> None:
    [layer] = read([cpu_tensor([6, 1, 8, 4], [32, 999, 4, 1])]).groups[0].layers
    assert layer.block_bytes == 64


def test_layers_of_one_segment_share_its_storage_and_others_do_not() -> None:
    tensors = [
        cpu_tensor([4, 8, 4], shm_name="/a", nbytes=4096),
        cpu_tensor([4, 8, 4], shm_name="/b", nbytes=4096),
        cpu_tensor([4, 8, 4], offset=256, shm_name="/a", nbytes=4096),
    ]
    assert [layer.storage for layer in read(tensors).groups[0].layers] == [0, 1, 0]


def test_cuda_tensors_share_storage_by_their_handle() -> None:
    tensors = [cuda_tensor([4, 8, 4], handle=name * 64) for name in (b"a", b"b", b"a")]
    assert [layer.storage for layer in read(tensors).groups[0].layers] == [0, 1, 0]


def test_a_handle_with_lists_in_lists_is_refused_however_deep_they_are() -> None:
    """Somewhere between what can be decoded and what cannot, a little more of the stack would be too much."""
    body = packed(cuda_tensor([4, 8, 4], handle=b"h"))
    for depth in range(900, 1100):
        nested = body.replace(packed(b"h"), b"\x91" * depth + b"\xc0")
        frame = packed([msgspec.msgpack.Ext(1, nested)])
        with pytest.raises(LayoutError):
            read_kv_layout(frame, packed({}), packed([]), 16)


def test_an_object_holds_group_after_group_and_layer_after_layer() -> None:
    tensors = [cpu_tensor([4, 8, 4]), cpu_tensor([4, 8, 4]), cpu_tensor([9, 16, 4])]
    layout = read(tensors, groups=[group([1, 0]), group([2], 16, group_id=1)])
    first, second = layout.groups
    assert first.layer_indices == (1, 0)
    assert (first.blocks_per_chunk, first.num_blocks, first.chunk_bytes) == (2, 4, 2 * 2 * 64)
    assert (second.blocks_per_chunk, second.num_blocks, second.chunk_bytes) == (1, 9, 128)
    assert layout.object_bytes == 256 + 128


def test_a_group_without_layers_is_all_layers_if_it_is_the_only_one() -> None:
    tensors = [cpu_tensor([4, 8, 4])] * 2
    assert len(read(tensors, groups=[{"engine_group_id": 0}]).groups[0].layers) == 2
    assert len(read(tensors, groups=[]).groups[0].layers) == 2
    with pytest.raises(LayoutError, match=r"group 1 names layers \[\] of 2 tensors"):
        read(tensors, groups=[group([0, 1]), {"engine_group_id": 1}])


@pytest.mark.parametrize(
    ("info", "reason"),
    [
        ({"sw_size_tokens": 128}, "sliding window"),
        ({"sw_size_tokens": 0}, "sliding"),
        ({"recurrent_state": True}, "recurrent"),
    ],
)
def test_a_sliding_window_or_recurrent_state_is_understood_and_not_supported(info: dict[str, Any], reason: str) -> None:
    tensors = [cpu_tensor([4, 8, 4])] * 2
    layout = read(tensors, groups=[group([0]), group([1], group_id=1, **info)])
    assert layout.unsupported is not None
    assert reason in layout.unsupported
    assert "group 1" in layout.unsupported
    assert read(tensors).unsupported is None


def test_unknown_keys_are_left_alone() -> None:
    tensor = cpu_tensor([4, 8, 4]) | {"newer": 1}
    tensor["metadata"] = {**tensor["metadata"], "newer": [1]}
    layout = read_kv_layout(
        extensions([tensor]), packed({"kv_layout": "HND", "newer": {}}), packed([group([0]) | {"newer": None}]), 16
    )
    assert layout.object_bytes == 128


MLA = cpu_tensor([4, 8, 4])

REFUSED = [
    pytest.param({"bodies": []}, "kv_caches is empty", id="no tensor"),
    pytest.param({"bodies": [MLA], "code": 2}, "extension 2", id="another extension"),
    pytest.param({"bodies": [cpu_tensor([4, 8, 4], version=2)]}, "version 2", id="a newer version"),
    pytest.param({"bodies": [MLA | {"type": "npu"}]}, "'npu'", id="an unknown kind of memory"),
    pytest.param({"bodies": [cuda_tensor([4, 8, 4]) | {"type": "cuda_raw"}]}, "'cuda_raw'", id="raw CUDA memory"),
    pytest.param({"bodies": [cuda_tensor([4, 8, 4]) | {"type": "cuda_vmm"}]}, "'cuda_vmm'", id="VMM CUDA memory"),
    pytest.param({"bodies": [MLA, cuda_tensor([4, 8, 4])]}, "mixes", id="two kinds of memory"),
    pytest.param({"bodies": [{"type": "cpu_shm", "version": 1}]}, "no metadata", id="no metadata"),
    pytest.param({"bodies": [{"version": 1}]}, "kv_caches[0] cannot be read", id="no type"),
    pytest.param({"bodies": [7]}, "kv_caches[0] cannot be read", id="no map"),
    pytest.param({"bodies": [MLA | {"metadata": {"dtype": "x"}}]}, "cannot be read", id="no shape"),
    pytest.param({"bodies": [cpu_tensor([8, 4])]}, "shape [8, 4]", id="rank 2"),
    pytest.param({"bodies": [cpu_tensor([1, 1, 1, 1, 1, 8, 4])]}, "no known arrangement", id="rank 7"),
    pytest.param({"bodies": [cpu_tensor([3, 3, 8, 3, 4])]}, "no known arrangement", id="rank 5 without K and V"),
    pytest.param({"bodies": [MLA], "kv_layout": "XYZ"}, "'XYZ'", id="an unknown layout"),
    pytest.param({"bodies": [cpu_tensor([4, 0, 4], nbytes=64)]}, "size below 1", id="an empty dimension"),
    pytest.param(
        {"bodies": [cpu_tensor([4, 8, 4], [32, -4, 1], nbytes=999)]}, "negative stride", id="a negative stride"
    ),
    pytest.param({"bodies": [cpu_tensor([4, 8, 4], offset=-1, nbytes=999)]}, "negative", id="a negative offset"),
    pytest.param(
        {"bodies": [cpu_tensor([4, 8, 4], nbytes=255)]}, "ends at byte 256 of a storage of 255", id="too short"
    ),
    pytest.param({"bodies": [cpu_tensor([4, 8, 4], nbytes=-1)]}, "storage of -1", id="a negative length"),
    pytest.param({"bodies": [cpu_tensor([4, 8, 4], offset=1, nbytes=256)]}, "ends at byte 258", id="shifted too far"),
    pytest.param({"bodies": [cpu_tensor([4, 8, 4], [33, 4, 1], nbytes=256)]}, "ends at byte 262", id="spread too far"),
    pytest.param({"bodies": [cpu_tensor([2**20, 2**20, 2**20], nbytes=256)]}, "ends at byte", id="astronomic"),
    pytest.param({"bodies": [cuda_tensor([4, 8, 4], storage_bytes=255)]}, "storage of 255", id="CUDA, too short"),
    pytest.param({"bodies": [cuda_tensor([4, 8, 4]) | {"handle": [1]}]}, "storage of 0", id="CUDA, no handle"),
    pytest.param({"bodies": [cpu_tensor([4, 8, 4], [64, 4, 2])]}, "gaps inside its blocks", id="every other element"),
    pytest.param({"bodies": [cpu_tensor([4, 8, 4], [64, 5, 1])]}, "gaps inside its blocks", id="padded tokens"),
    pytest.param({"bodies": [cpu_tensor([4, 8, 4], [32, 1, 8])]}, "gaps inside its blocks", id="turned round"),
    pytest.param({"bodies": [cpu_tensor([4, 8, 4], [31, 4, 1])]}, "overlap", id="overlapping blocks"),
    pytest.param({"bodies": [cpu_tensor([4, 8, 4], [0, 4, 1])]}, "overlap", id="one block four times"),
    pytest.param(
        {"bodies": [MLA | {"metadata": {"dtype": "bfloat16", "shape": [4, 8, 4], "stride": [4, 1]}}]},
        "3 sizes and 2 strides",
        id="a stride missing",
    ),
    pytest.param(
        {"bodies": [MLA | {"metadata": {"dtype": "int4", "shape": [4, 8, 4], "stride": [32, 4, 1]}}]},
        "'int4'",
        id="an unknown dtype",
    ),
    pytest.param({"bodies": [MLA], "groups": [group([1])]}, "names layers [1] of 1", id="no such layer"),
    pytest.param({"bodies": [MLA], "groups": [group([-1])]}, "names layers [-1]", id="layer -1"),
    pytest.param({"bodies": [MLA], "groups": [group([0], 3)]}, "no multiple of the 3", id="3 tokens"),
    pytest.param({"bodies": [MLA], "groups": [group([0], 32)]}, "no multiple of the 32", id="32 tokens"),
    pytest.param({"bodies": [MLA], "groups": [group([0], -8)]}, "no multiple of the -8", id="-8 tokens"),
    pytest.param({"bodies": [MLA], "groups": [{}]}, "engine_group_infos cannot", id="a group without id"),
    pytest.param({"bodies": [MLA], "groups": "x"}, "engine_group_infos cannot", id="no groups at all"),
    pytest.param(
        {"bodies": [MLA, cpu_tensor([5, 8, 4])]},
        "differ in their number of blocks",
        id="4 and 5 blocks",
    ),
]


@pytest.mark.parametrize(("arguments", "reason"), REFUSED)
def test_what_cannot_be_copied_safely_is_refused(arguments: dict[str, Any], reason: str) -> None:
    with pytest.raises(LayoutError) as refusal:
        read(**arguments)
    assert reason in str(refusal.value)


@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"\xc1",
        b"\xa1\xff",
        b"\x81\xa9kv_layout\xa1\xff",
        b"\x91" * 100_000 + b"\xc0",
        b"\x81\xa1x" * 50_000 + b"\xc0",
    ],
    ids=["empty", "malformed", "no UTF-8", "no UTF-8 inside", "nested lists", "nested maps"],
)
def test_a_frame_that_cannot_be_decoded_is_refused(frame: bytes, which: int) -> None:
    frames = [extensions([cpu_tensor([4, 8, 4])]), packed({}), packed([group([0])])]
    frames[which] = frame
    with pytest.raises(LayoutError):
        read_kv_layout(*frames, 16)


@given(st.tuples(*[st.binary(max_size=60)] * 3))
@settings(max_examples=200, deadline=None)
def test_random_frames_are_refused_and_nothing_else(frames: tuple[bytes, bytes, bytes]) -> None:
    with pytest.raises(LayoutError):
        read_kv_layout(*frames, 16)


BASE = {"bodies": [cpu_tensor([4, 2, 8, 4])] * 4, "groups": [group([0, 1]), group([2, 3], group_id=1)]}


def test_a_tensor_of_no_group_is_refused() -> None:
    with pytest.raises(LayoutError, match=r"tensors \[1, 3\] belong to no group"):
        read(**{**BASE, "groups": [group([0]), group([2], group_id=1)]})


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"bodies": [cpu_tensor([4, 2, 8, 8])] * 4}, id="larger blocks"),
        pytest.param({"bodies": [cpu_tensor([4, 2, 8, 4], dtype="float16")] * 4}, id="another dtype of the same size"),
        pytest.param({"bodies": [cpu_tensor([4, 4, 8, 2])] * 4}, id="other heads in as many bytes"),
        pytest.param(
            {"bodies": [cpu_tensor([4, 2, 8, 4])] * 5, "groups": [group([0, 1]), group([2, 3, 4], group_id=1)]},
            id="one tensor more",
        ),
        pytest.param({"kv_layout": "BLHNC"}, id="another layout of the same shape"),
        pytest.param({"chunk_size": 32}, id="another chunk size"),
        pytest.param({"groups": [group([0, 1], 4), group([2, 3], 4, 1)]}, id="other tokens per block"),
        pytest.param({"groups": [group([0, 1, 2, 3])]}, id="one group"),
        pytest.param({"groups": [group([0, 2]), group([1, 3], group_id=1)]}, id="other members"),
        pytest.param({"groups": [group([1, 0]), group([2, 3], group_id=1)]}, id="another order"),
    ],
)
def test_whatever_decides_where_a_byte_belongs_changes_the_fingerprint(changes: dict[str, Any]) -> None:
    assert read(**{**BASE, **changes}).fingerprint != read(**BASE).fingerprint


@pytest.mark.parametrize(
    "bodies",
    [
        pytest.param([cpu_tensor([9, 2, 8, 4])] * 4, id="more blocks"),
        pytest.param([cpu_tensor([4, 2, 8, 4], offset=8)] * 4, id="another place"),
        pytest.param([cpu_tensor([4, 2, 8, 4], [99, 32, 4, 1])] * 4, id="padding"),
        pytest.param([cpu_tensor([4, 2, 8, 4], shm_name=f"/{layer}") for layer in range(4)], id="other segments"),
    ],
)
def test_where_the_blocks_lie_and_how_many_does_not(bodies: list[object]) -> None:
    assert read(**{**BASE, "bodies": bodies}).fingerprint == read(**BASE).fingerprint


def payload(**changes: Any) -> EngineDrivenPayload:
    return msgspec.structs.replace(EngineDrivenPayload(1, "m", 1, 8, 2, 12, "bfloat16", True, 16), **changes)


@pytest.mark.parametrize(
    ("changes", "shape", "size"),
    [
        ({}, (2, 16, 12), 768),
        ({"use_mla": False}, (2, 2, 16, 12), 1536),
        ({"num_physical_slots": 8}, (2, 8, 12), 384),
        ({"num_physical_slots": None}, (2, 16, 12), 768),
        ({"dtype_str": "uint8"}, (2, 16, 12), 384),
    ],
)
def test_an_engine_driven_object_is_one_or_two_planes(
    changes: dict[str, Any], shape: tuple[int, ...], size: int
) -> None:
    layout = slot_layout(payload(**changes), 16)
    assert (layout.shape, layout.object_bytes) == (shape, size)
    assert layout.report.cache_size_per_token == size // 16


@pytest.mark.parametrize(
    "changes", [{"dtype_str": "int4"}, {"num_layers": 0}, {"hidden_dim_size": -1}, {"num_physical_slots": 0}]
)
def test_an_engine_driven_object_without_bytes_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(LayoutError):
        slot_layout(payload(**changes), 16)


@pytest.mark.parametrize(
    "changes",
    [
        {"dtype_str": "float16"},
        {"num_layers": 4, "num_physical_slots": 8},
        {"hidden_dim_size": 24, "num_physical_slots": 8},
        {"use_mla": False, "num_layers": 1},
    ],
)
def test_engine_driven_objects_of_as_many_bytes_can_still_differ(changes: dict[str, Any]) -> None:
    one, other = slot_layout(payload(), 16), slot_layout(payload(**changes), 16)
    assert one.object_bytes == other.object_bytes
    assert one.fingerprint != other.fingerprint


GROUPED = [
    # kv_layout, shape, name, symbols, numbers
    pytest.param("HND", [9, 2, 8, 12], "NL_X_NB_NH_BS_CS", "NL x [NB, NH, BS, CS]", "2 x [9, 2, 8, 12]", id="fused"),
    pytest.param("NHD", [9, 8, 2, 12], "NL_X_NB_BS_NH_CS", "NL x [NB, BS, NH, CS]", "2 x [9, 8, 2, 12]", id="NHD"),
    pytest.param(
        "NHD", [2, 9, 8, 3, 4], "NL_X_TWO_NB_BS_NH_HS", "NL x [2, NB, BS, NH, HS]", "2 x [2, 9, 8, 3, 4]", id="outside"
    ),
    pytest.param(
        "HND", [9, 2, 3, 8, 4], "NL_X_NB_TWO_NH_BS_HS", "NL x [NB, 2, NH, BS, HS]", "2 x [9, 2, 3, 8, 4]", id="inside"
    ),
    pytest.param("HND", [9, 8, 20], "NL_X_NB_BS_HS", "NL x [NB, BS, HS]", "2 x [9, 8, 20]", id="MLA"),
    pytest.param(
        "HND",
        [2, 9, 3, 1, 8, 4],
        "NL_X_TWO_NB_NH_ONE_BS_HS",
        "NL x [2, NB, NH, 1, BS, HS]",
        "2 x [2, 9, 3, 1, 8, 4]",
        id="RBLN",
    ),
]


@pytest.mark.parametrize(("kv_layout", "shape", "name", "symbols", "numbers"), GROUPED)
def test_a_group_is_reported_with_the_shape_of_its_tensors(
    kv_layout: str, shape: list[int], name: str, symbols: str, numbers: str
) -> None:
    [found] = read([cpu_tensor(shape)] * 2, kv_layout, [group([0, 1], tokens_per_block=16)]).report.kernel_groups
    assert (found.engine_kv_format, found.engine_kv_shape, found.engine_kv_concrete_shape) == (name, symbols, numbers)
    assert (found.num_layers, found.tokens_per_block, found.slots_per_block) == (2, 16, 8)
    assert found.is_mla is (len(shape) == 3)
    assert found.attention_backend


def test_one_tensor_with_all_layers_is_reported_with_their_number() -> None:
    [found] = read([cpu_tensor([9, 5, 2, 8, 3, 4])], "NHD", [group([0])]).report.kernel_groups
    assert (found.num_layers, found.layer_indices) == (5, (0,))
    assert (found.engine_kv_format, found.engine_kv_shape, found.engine_kv_concrete_shape) == (
        "NB_NL_TWO_BS_NH_HS",
        "[NB, NL, 2, BS, NH, HS]",
        "[9, 5, 2, 8, 3, 4]",
    )


def test_each_group_is_reported_by_itself() -> None:
    tensors = [cpu_tensor([4, 8, 4]), cpu_tensor([4, 8, 4]), cpu_tensor([9, 2, 16, 4], dtype="float16")]
    first, second = read(tensors, groups=[group([0, 1]), group([2], 16, group_id=7)]).report.kernel_groups
    assert (first.kernel_group_idx, first.engine_group_idx, first.layer_indices) == (0, 0, (0, 1))
    assert (second.kernel_group_idx, second.engine_group_idx, second.layer_indices) == (1, 7, (2,))
    assert (first.is_mla, first.dtype, first.tokens_per_block) == (True, "bfloat16", 8)
    assert (second.is_mla, second.dtype, second.tokens_per_block) == (False, "float16", 16)


def test_the_group_of_an_engine_driven_worker_shows_its_chunk_objects() -> None:
    [one] = slot_layout(payload(), 16).report.kernel_groups
    assert (one.num_layers, one.tokens_per_block, one.slots_per_block, one.is_mla) == (2, 8, 8, True)
    assert (one.engine_kv_shape, one.engine_kv_concrete_shape) == ("[NL, CHUNK, HS]", "[2, 16, 12]")
    [two] = slot_layout(payload(use_mla=False, num_physical_slots=8), 16).report.kernel_groups
    assert (two.engine_kv_format, two.engine_kv_concrete_shape) == ("TWO_NL_CHUNK_HS", "[2, 2, 8, 12]")
    assert (two.slots_per_block, two.is_mla) == (4, False)


def test_a_report_does_not_grow_with_what_an_engine_driven_worker_claims() -> None:
    [found] = slot_layout(payload(num_layers=1 << 60), 16).report.kernel_groups
    assert (found.num_layers, found.layer_indices) == (1 << 60, ())


def test_the_two_modes_never_share_a_fingerprint() -> None:
    assert read([cpu_tensor([4, 8, 12])] * 2).fingerprint != slot_layout(payload(), 16).fingerprint
