"""How an engine's KV cache lies in memory, read from what its worker registers. Pure: nothing is opened or mapped.

A KV cache is a list of tensors, one per layer, cut into blocks along one dimension; a block id names the same block in
every layer of a group. kvkeep never looks inside a block: a cached object is the blocks of one chunk, layer after
layer, as opaque bytes. That is right for every attention backend, and only valid between workers with the same
geometry, which is why the geometry's fingerprint is part of every object's key.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Final, TypeVar

import msgspec
from blake3 import blake3

from engine.status import KernelGroupReport, LayoutReport

_T = TypeVar("_T")

DESCRIPTOR_EXT: Final = 1
DESCRIPTOR_VERSION: Final = 1
FINGERPRINT_BYTES: Final = 16
MAX_WORLD_SIZE: Final = 4096
CUDA_HANDLE_ITEMS: Final = 8
MAX_TENSORS: Final = 512
MAX_GROUPS: Final = 64
MAX_OBJECT_BYTES: Final = 1 << 40
"""Far beyond any model and any L1; what is larger is a mistake."""
_MOST_DIMENSIONS: Final = 16
_WIDEST_INTEGER: Final = 1 << 62
"""Sizes, strides and places stay below it, so that no sum or product of theirs is too large for 64 bits unnoticed."""
_OBJECT_GROUP: Final = 0
"""A chunk of one shard is one object, with the blocks of all groups in it."""

ITEM_BYTES: Final = {
    "bool": 1,
    "uint8": 1,
    "int8": 1,
    "float8_e4m3fn": 1,
    "float8_e4m3fnuz": 1,
    "float8_e5m2": 1,
    "float8_e5m2fnuz": 1,
    "float8_e8m0fnu": 1,
    "float16": 2,
    "bfloat16": 2,
    "int16": 2,
    "uint16": 2,
    "float32": 4,
    "int32": 4,
    "uint32": 4,
    "float64": 8,
    "int64": 8,
    "uint64": 8,
}
"""Bytes per element of the dtypes a KV cache can have, by their names on the wire."""


class LayoutError(ValueError):
    """A registration that cannot be served; the message says which part and why."""


class TensorMetadata(msgspec.Struct, frozen=True):
    """Shape and strides of one tensor in its storage, in elements, outermost dimension first."""

    dtype: str
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    storage_offset: int = 0
    device_uuid: str = ""


class TensorDescriptor(msgspec.Struct, frozen=True):
    """One tensor of another process: where its storage is (by `type`) and how it lies there."""

    type: str
    version: int
    metadata: TensorMetadata | None = None
    shm_name: str = ""
    nbytes: int = 0
    handle: tuple[int | bytes | bool | None, ...] = ()


class GroupInfo(msgspec.Struct, frozen=True):
    """Layers that share block ids."""

    engine_group_id: int
    layer_indices: tuple[int, ...] = ()
    tokens_per_block: int = 0
    sw_size_tokens: int = -1
    extra_object_group_tag: int = 0
    recurrent_state: bool = False


class LayoutHints(msgspec.Struct, frozen=True):
    """What the engine says about its tensors besides their shapes."""

    kv_layout: str | None = None


class EngineDrivenPayload(msgspec.Struct, frozen=True):
    """What a worker that copies by itself registers: the shape of its chunk objects, not its tensors."""

    instance_id: int
    model_name: str
    world_size: int
    block_size: int
    num_layers: int
    hidden_dim_size: int
    dtype_str: str
    use_mla: bool
    num_physical_slots: int | None = None


@dataclass(frozen=True, slots=True)
class Form:
    """What a shape means: the dimension of the blocks, that of the tokens in a block, and names for people."""

    block_dim: int
    token_dim: int
    name: str
    symbols: str
    axes: tuple[str, ...]
    """The dimensions by their short names: NB blocks, NL layers, BS slots, NH heads, HS head size, CS content size."""
    backend: str
    """The attention backends that arrange their KV like this."""
    holds_all_layers: bool = False


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer's tensor as `planes` runs of `num_blocks` blocks; all sizes and places in bytes."""

    storage: int
    """Index of the first descriptor that has the same storage."""
    dtype: str
    planes: int
    num_blocks: int
    block_bytes: int
    offset: int
    plane_stride: int
    block_stride: int
    shape: tuple[int, ...]
    form: Form

    @property
    def tokens(self) -> int:
        """Tokens per physical block."""
        return self.shape[self.form.token_dim]

    @property
    def block_shape(self) -> tuple[int, ...]:
        return self.shape[self.form.block_dim + 1 :]


@dataclass(frozen=True, slots=True)
class Group:
    """Layers whose blocks are named by one list of block ids."""

    engine_group_id: int
    layers: tuple[Layer, ...]
    layer_indices: tuple[int, ...]
    """Which of the registered tensors these layers are, in the same order."""
    tokens_per_block: int
    blocks_per_chunk: int
    num_blocks: int

    @property
    def chunk_bytes(self) -> int:
        return self.blocks_per_chunk * sum(layer.planes * layer.block_bytes for layer in self.layers)


@dataclass(frozen=True, slots=True)
class KVLayout:
    """The whole KV cache of one worker whose blocks the server copies."""

    descriptors: tuple[TensorDescriptor, ...]
    groups: tuple[Group, ...]
    fingerprint: bytes
    unsupported: str | None
    """Why this model's chunks cannot be cached yet, though its tensors are understood."""
    device: str
    report: LayoutReport

    @property
    def object_bytes(self) -> int:
        """Bytes of one cached object: the blocks of one chunk, group after group, layer after layer."""
        return sum(group.chunk_bytes for group in self.groups)


@dataclass(frozen=True, slots=True)
class SlotLayout:
    """The chunk objects of a worker that copies by itself."""

    shape: tuple[int, ...]
    dtype: str
    object_bytes: int
    fingerprint: bytes
    report: LayoutReport


def read_kv_layout(kv_caches: bytes, layout_hints: bytes, group_infos: bytes, chunk_size: int) -> KVLayout:
    """Understands the msgpack frames of a `register_kv_cache`. Raises LayoutError."""
    descriptors = _read_descriptors(kv_caches)
    hints = _read(layout_hints, LayoutHints, "layout_hints")
    infos = _read(group_infos, tuple[GroupInfo, ...], "engine_group_infos")
    infos = infos or (GroupInfo(0, tuple(range(len(descriptors)))),)
    if len(infos) > MAX_GROUPS:
        raise LayoutError(f"{len(infos)} groups are registered; {MAX_GROUPS} are possible")
    device = "cpu" if descriptors[0].type == "cpu_shm" else descriptors[0].type.partition("_")[0]
    kv_layout = hints.kv_layout or ("HND" if device == "cpu" else "NHD")
    layers = _read_layers(descriptors, kv_layout)
    groups = tuple(_group(info, layers, chunk_size, len(infos)) for info in infos)
    _check_coverage(groups, len(layers))
    return KVLayout(
        descriptors=descriptors,
        groups=groups,
        fingerprint=_kv_fingerprint(groups, descriptors, kv_layout, chunk_size),
        unsupported=_unsupported(infos),
        device=device,
        report=_kv_report(groups, layers),
    )


def slot_layout(payload: EngineDrivenPayload, chunk_size: int) -> SlotLayout:
    """The objects that an engine-driven registration describes. Raises LayoutError."""
    item_bytes = _item_bytes(payload.dtype_str)
    if payload.block_size < 1:
        raise LayoutError(f"block_size is {payload.block_size}")
    slots = chunk_size if payload.num_physical_slots is None else payload.num_physical_slots
    planes = () if payload.use_mla else (2,)
    shape = (*planes, payload.num_layers, slots, payload.hidden_dim_size)
    if min(shape) < 1:
        raise LayoutError(f"the chunk shape {list(shape)} has an empty dimension")
    parts = ("engine_driven", chunk_size, payload.dtype_str, shape, payload.use_mla)
    return SlotLayout(
        shape=shape,
        dtype=payload.dtype_str,
        object_bytes=prod(shape) * item_bytes,
        fingerprint=_digest(parts),
        report=LayoutReport(
            num_layers=payload.num_layers,
            block_size=payload.block_size,
            hidden_dim_sizes=(payload.hidden_dim_size,),
            dtype=payload.dtype_str,
            is_mla=payload.use_mla,
            num_blocks=None,
            gpu_kv_format=None,
            gpu_kv_shape=None,
            gpu_kv_concrete_shape=None,
            attention_backend=None,
            cache_size_per_token=prod(shape) * item_bytes // chunk_size,
            kernel_groups=(_slot_group_report(payload, shape, chunk_size),),
        ),
    )


def _read(frame: bytes, kind: type[_T], name: str) -> _T:
    try:
        return msgspec.msgpack.decode(frame, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise LayoutError(f"{name} cannot be read: {error}") from None


def _read_descriptors(kv_caches: bytes) -> tuple[TensorDescriptor, ...]:
    extensions = _read(kv_caches, tuple[msgspec.msgpack.Ext, ...], "kv_caches")
    if not extensions:
        raise LayoutError("kv_caches is empty: a worker registers at least one tensor")
    if len(extensions) > MAX_TENSORS:
        raise LayoutError(f"{len(extensions)} tensors are registered; {MAX_TENSORS} are possible")
    descriptors = []
    for index, extension in enumerate(extensions):
        if extension.code != DESCRIPTOR_EXT:
            raise LayoutError(f"kv_caches[{index}] is extension {extension.code}, not {DESCRIPTOR_EXT}")
        descriptors.append(_read(bytes(extension.data), TensorDescriptor, f"kv_caches[{index}]"))
    for index, descriptor in enumerate(descriptors):
        _check_descriptor(descriptor, index)
    if len({descriptor.type for descriptor in descriptors}) > 1:
        raise LayoutError("kv_caches mixes kinds of memory")
    return tuple(descriptors)


def _check_descriptor(descriptor: TensorDescriptor, index: int) -> None:
    where = f"kv_caches[{index}]"
    if descriptor.version != DESCRIPTOR_VERSION:
        raise LayoutError(f"{where} has version {descriptor.version}, only {DESCRIPTOR_VERSION} is known")
    if descriptor.type not in ("cpu_shm", "cuda"):
        raise LayoutError(f"{where} is memory of type {descriptor.type!r}; cpu_shm and cuda are supported")
    metadata = descriptor.metadata
    if metadata is None:
        raise LayoutError(f"{where} has no metadata")
    if len(metadata.shape) != len(metadata.stride) or not 0 < len(metadata.shape) <= _MOST_DIMENSIONS:
        raise LayoutError(f"{where} has {len(metadata.shape)} sizes and {len(metadata.stride)} strides")
    if min(metadata.shape) < 1 or min(metadata.stride) < 0 or metadata.storage_offset < 0:
        raise LayoutError(f"{where} has a size below 1, or a negative stride or offset")
    if max(*metadata.shape, *metadata.stride, metadata.storage_offset, _storage_bytes(descriptor)) > _WIDEST_INTEGER:
        raise LayoutError(f"{where} has a size, a stride or a place above {_WIDEST_INTEGER}")
    last = sum((size - 1) * stride for size, stride in zip(metadata.shape, metadata.stride, strict=True))
    end = _item_bytes(metadata.dtype) * (metadata.storage_offset + last + 1)
    if end > _storage_bytes(descriptor):
        raise LayoutError(f"{where} ends at byte {end} of a storage of {_storage_bytes(descriptor)}")


def _storage_bytes(descriptor: TensorDescriptor) -> int:
    """The size of the memory a descriptor names; the third item of a CUDA handle is the storage's."""
    if descriptor.type == "cpu_shm":
        return descriptor.nbytes
    size = descriptor.handle[2] if len(descriptor.handle) == CUDA_HANDLE_ITEMS else 0
    return size if type(size) is int else 0


def _item_bytes(dtype: str) -> int:
    try:
        return ITEM_BYTES[dtype]
    except KeyError:
        raise LayoutError(f"dtype {dtype!r} is unknown; known are {', '.join(ITEM_BYTES)}") from None


_HEAD_MAJOR: Final = ("HND", "BLHNC")
_TOKEN_MAJOR: Final = ("NHD", "BLNHC")


def _form(shape: tuple[int, ...], kv_layout: str) -> Form:
    """Tells blocks from tokens by rank and shape. Raises LayoutError."""
    if kv_layout not in _HEAD_MAJOR and kv_layout not in _TOKEN_MAJOR:
        raise LayoutError(f"kv_layout {kv_layout!r} is unknown; known are {', '.join((*_HEAD_MAJOR, *_TOKEN_MAJOR))}")
    heads_first = kv_layout in _HEAD_MAJOR
    inner = "num_heads, block_size" if heads_first else "block_size, num_heads"
    short, pair = ("NH_BS", ("NH", "BS")) if heads_first else ("BS_NH", ("BS", "NH"))
    order = "HND" if heads_first else "NHD"
    match len(shape):
        case 3:
            name, symbols = "NL_X_NB_BS_HS", "[num_blocks, block_size, hidden_size]"
            return Form(0, 1, name, symbols, ("NB", "BS", "HS"), "MLA")
        case 4:
            name, symbols = f"NL_X_NB_{short}_TWO_HS", f"[num_blocks, {inner}, 2 * head_size]"
            backend = f"K and V fused, blocks first, {order}"
            return Form(0, 2 if heads_first else 1, name, symbols, ("NB", *pair, "CS"), backend)
        case 5 if shape[0] == 2:
            name, symbols = f"NL_X_TWO_NB_{short}_HS", f"[2, num_blocks, {inner}, head_size]"
            backend = f"FlashAttention, {order}"
            return Form(1, 3 if heads_first else 2, name, symbols, ("2", "NB", *pair, "HS"), backend)
        case 5 if shape[1] == 2:
            name, symbols = f"NL_X_NB_TWO_{short}_HS", f"[num_blocks, 2, {inner}, head_size]"
            backend = f"FlashInfer, {order}"
            return Form(0, 3 if heads_first else 2, name, symbols, ("NB", "2", *pair, "HS"), backend)
        case 6 if shape[0] == 2:
            name, symbols = "NL_X_TWO_NB_NH_ONE_BS_HS", "[2, num_blocks, num_heads, 1, block_size, head_size]"
            return Form(1, 4, name, symbols, ("2", "NB", "NH", "1", "BS", "HS"), "RBLN")
        case 6:
            name, symbols = "NB_NL_TWO_BS_NH_HS", "[num_blocks, num_layers, 2, block_size, num_heads, head_size]"
            axes = ("NB", "NL", "2", "BS", "NH", "HS")
            return Form(0, 3, name, symbols, axes, "all layers in one tensor", True)
        case _:
            raise LayoutError(f"a tensor of shape {list(shape)} is no known arrangement of KV blocks")


def _read_layers(descriptors: Sequence[TensorDescriptor], kv_layout: str) -> tuple[Layer, ...]:
    storages: dict[object, int] = {}
    layers = []
    for index, descriptor in enumerate(descriptors):
        storage = storages.setdefault(_storage_identity(descriptor), index)
        layers.append(_layer(descriptor, storage, kv_layout, f"kv_caches[{index}]"))
    return tuple(layers)


def _storage_identity(descriptor: TensorDescriptor) -> object:
    """Tensors that are views of one storage share the segment, or all parts of the handle that name the memory."""
    return (descriptor.shm_name, descriptor.nbytes) if descriptor.shm_name else repr(descriptor.handle[:4])


def _layer(descriptor: TensorDescriptor, storage: int, kv_layout: str, where: str) -> Layer:
    metadata = descriptor.metadata
    assert metadata is not None  # _check_descriptor refused it
    shape, stride, item = metadata.shape, metadata.stride, _item_bytes(metadata.dtype)
    form = _form(shape, kv_layout)
    block_elements = prod(shape[form.block_dim + 1 :])
    if not _is_dense(shape[form.block_dim + 1 :], stride[form.block_dim + 1 :]):
        raise LayoutError(f"{where} has gaps inside its blocks (shape {list(shape)}, stride {list(stride)})")
    num_blocks, block_stride = shape[form.block_dim], stride[form.block_dim]
    if num_blocks == 1:
        # The stride of a dimension of size 1 means nothing, and could be anything.
        block_stride = block_elements
    if block_stride < block_elements or (
        form.block_dim and _planes_meet(stride[0], num_blocks, block_stride, block_elements)
    ):
        raise LayoutError(f"{where} has blocks that overlap (shape {list(shape)}, stride {list(stride)})")
    return Layer(
        storage=storage,
        dtype=metadata.dtype,
        planes=prod(shape[: form.block_dim]),
        num_blocks=num_blocks,
        block_bytes=block_elements * item,
        offset=metadata.storage_offset * item,
        plane_stride=stride[0] * item if form.block_dim else 0,
        block_stride=block_stride * item,
        shape=shape,
        form=form,
    )


def _planes_meet(plane_stride: int, num_blocks: int, block_stride: int, block_elements: int) -> bool:
    """Whether a block of the second of two planes shares an element with one of the first.

    The blocks of a plane lie `block_stride` apart, so only those next to where the second plane begins can meet it.
    """
    before, beyond = divmod(plane_stride, block_stride)
    near = [beyond] if before < num_blocks else []
    if before + 1 < num_blocks:
        near.append(block_stride - beyond)
    return any(distance < block_elements for distance in near)


def _is_dense(shape: Sequence[int], stride: Sequence[int]) -> bool:
    """True if the elements fill one run without gaps; the stride of a dimension of size 1 means nothing."""
    expected = 1
    for size, step in zip(reversed(shape), reversed(stride), strict=True):
        if size != 1 and step != expected:
            return False
        expected *= size
    return True


def _group(info: GroupInfo, layers: tuple[Layer, ...], chunk_size: int, infos: int) -> Group:
    where = f"group {info.engine_group_id}"
    indices = info.layer_indices or (tuple(range(len(layers))) if infos == 1 else ())
    if not indices or max(indices) >= len(layers) or min(indices) < 0 or len(set(indices)) < len(indices):
        raise LayoutError(f"{where} names layers {list(indices)} of {len(layers)} tensors")
    members = tuple(layers[index] for index in indices)
    tokens = info.tokens_per_block or members[0].tokens
    if tokens < 1 or chunk_size % tokens:
        raise LayoutError(f"the chunk size {chunk_size} is no multiple of the {tokens} tokens per block of {where}")
    if len({layer.num_blocks for layer in members}) > 1:
        raise LayoutError(f"the layers of {where} differ in their number of blocks")
    group = Group(info.engine_group_id, members, indices, tokens, chunk_size // tokens, members[0].num_blocks)
    if group.chunk_bytes > MAX_OBJECT_BYTES:
        raise LayoutError(f"a chunk of {where} has {group.chunk_bytes} bytes; {MAX_OBJECT_BYTES} are possible")
    return group


def _check_coverage(groups: Sequence[Group], tensors: int) -> None:
    """A tensor outside of all groups would be left as it is by a retrieve that says it restored everything."""
    missing = set(range(tensors)).difference(*(group.layer_indices for group in groups))
    if missing:
        raise LayoutError(f"tensors {sorted(missing)} belong to no group")


def _unsupported(infos: Sequence[GroupInfo]) -> str | None:
    for info in infos:
        if info.recurrent_state:
            return f"group {info.engine_group_id} holds recurrent state, which is not supported yet"
        if info.sw_size_tokens >= 0:
            return f"group {info.engine_group_id} has a sliding window, which is not supported yet"
    return None


def _kv_fingerprint(
    groups: Sequence[Group], descriptors: Sequence[TensorDescriptor], kv_layout: str, chunk_size: int
) -> bytes:
    """Covers all that decides where a byte of an object belongs; not how many blocks there are, nor where they lie."""
    parts = [
        (
            group.tokens_per_block,
            group.layer_indices,
            [(x.dtype, x.planes, x.block_bytes, x.form.name, x.block_shape) for x in group.layers],
        )
        for group in groups
    ]
    return _digest(("lmcache_driven", chunk_size, kv_layout, len(descriptors), parts))


def _digest(parts: object) -> bytes:
    return blake3(msgspec.msgpack.encode(parts)).digest(FINGERPRINT_BYTES)


def _kv_report(groups: Sequence[Group], layers: Sequence[Layer]) -> LayoutReport:
    first, form = layers[0], layers[0].form
    members = [(layer, group.tokens_per_block) for group in groups for layer in group.layers]
    hidden = {x.planes * x.block_bytes // (tokens * ITEM_BYTES[x.dtype]) for x, tokens in members}
    per_layer = "" if form.holds_all_layers else f"{len(layers)} x "
    return LayoutReport(
        num_layers=first.shape[1] if form.holds_all_layers else len(layers),
        block_size=groups[0].tokens_per_block,
        hidden_dim_sizes=tuple(sorted(hidden)),
        dtype=first.dtype,
        is_mla=len(first.shape) == 3,
        num_blocks=min(group.num_blocks for group in groups),
        gpu_kv_format=form.name,
        gpu_kv_shape=form.symbols if form.holds_all_layers else f"num_layers x {form.symbols}",
        gpu_kv_concrete_shape=f"{per_layer}{list(first.shape)}",
        attention_backend=None,
        cache_size_per_token=sum(x.planes * x.block_bytes // tokens for x, tokens in members),
        kernel_groups=tuple(_group_report(index, group) for index, group in enumerate(groups)),
    )


def _group_report(index: int, group: Group) -> KernelGroupReport:
    first, form = group.layers[0], group.layers[0].form
    num_layers = first.shape[1] if form.holds_all_layers else len(group.layers)
    return KernelGroupReport(
        kernel_group_idx=index,
        engine_group_idx=group.engine_group_id,
        object_group_idx=_OBJECT_GROUP,
        num_layers=num_layers,
        layer_indices=group.layer_indices,
        tokens_per_block=group.tokens_per_block,
        slots_per_block=first.tokens,
        dtype=first.dtype,
        is_mla=len(first.shape) == 3,
        attention_backend=form.backend,
        engine_kv_format=_format_name(form.axes),
        engine_kv_shape=_of_layers("NL", form.axes),
        engine_kv_concrete_shape=_of_layers("" if form.holds_all_layers else str(num_layers), first.shape),
    )


def _slot_group_report(payload: EngineDrivenPayload, shape: tuple[int, ...], chunk_size: int) -> KernelGroupReport:
    """An engine that copies by itself tells the arrangement of its chunk objects only, so that is what is shown."""
    axes = ("NL", "CHUNK", "HS") if payload.use_mla else ("2", "NL", "CHUNK", "HS")
    return KernelGroupReport(
        kernel_group_idx=0,
        engine_group_idx=0,
        object_group_idx=_OBJECT_GROUP,
        num_layers=payload.num_layers,
        layer_indices=(),
        tokens_per_block=payload.block_size,
        slots_per_block=shape[-2] * payload.block_size // chunk_size,
        dtype=payload.dtype_str,
        is_mla=payload.use_mla,
        attention_backend=None,
        engine_kv_format=_format_name(axes),
        engine_kv_shape=_bracketed(axes),
        engine_kv_concrete_shape=_bracketed(shape),
    )


def _format_name(axes: Sequence[str]) -> str:
    words = "_".join({"1": "ONE", "2": "TWO"}.get(axis, axis) for axis in axes)
    return words if "NL" in axes else f"NL_X_{words}"


def _of_layers(layers: str, axes: Sequence[object]) -> str:
    return _bracketed(axes) if not layers or layers in axes else f"{layers} x {_bracketed(axes)}"


def _bracketed(axes: Sequence[object]) -> str:
    return f"[{', '.join(map(str, axes))}]"
