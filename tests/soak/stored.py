"""What is left in the storages when the server has ended: every object whole, under its name, with its own bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from engine.keys import NAMESPACE_BYTES, namespace
from engine.l2.base import L2Adapter
from engine.l2.envelope import HEADER_BYTES, EnvelopeError, PayloadHash, check
from engine.l2.filesystem_l2 import Adapter as Filesystem
from engine.l2.objects import object_name
from engine.l2.valkey_l2 import Adapter as Valkey
from tests.soak.bench import PREFIX, Storages
from tests.soak.cast import MODELS, Identity, fresh_pattern, keys

PAGE = 4096


@dataclass
class Found:
    """What a storage has."""

    objects: int = 0
    problems: list[str] = field(default_factory=list)


def check_storages(storages: Storages, seed: int) -> dict[str, Found]:
    """By storage. The adapters' own count of what there is must be right too."""
    known = {object_name(key): (key, *what) for key, what in keys(seed).items()}
    prints = {layout.name: layout.fingerprint() for model in MODELS for layout in model.layouts}
    disk, remote = Filesystem(path=str(storages.folder), keep_free=0), Valkey(url=storages.valkey.url, prefix=PREFIX)
    found = {}
    for name, adapter in {"disk": disk, "remote": remote}.items():
        used = adapter.used() if name == "disk" else None
        adapter.open([])
        found[name] = _walk(adapter, known, prints)
        if used is not None and used.objects != found[name].objects:
            found[name].problems.append(f"{found[name].objects} objects, and {used.objects} are counted")
        adapter.close()
    left = [path for path in storages.folder.rglob("*.tmp") if path.is_file()]
    found["disk"].problems += [f"{path} is left half-written" for path in left]
    return found


def _walk(adapter: L2Adapter, known: Mapping[str, tuple[bytes, Identity, int]], prints: Mapping[str, bytes]) -> Found:
    found = Found()
    for stored in adapter.scan():
        found.objects += 1
        if stored.name not in known:
            found.problems.append(f"{stored.name} is the object of nothing that was ever asked for")
            continue
        key, identity, size = known[stored.name]
        problem = _problem(adapter, key, identity, size, prints)
        if problem:
            found.problems.append(f"{identity}: {problem}")
    return found


def _problem(adapter: L2Adapter, key: bytes, identity: Identity, size: int, prints: Mapping[str, bytes]) -> str | None:
    header, payload = memoryview(bytearray(HEADER_BYTES)), memoryview(bytearray(-(-size // PAGE) * PAGE))
    seen = PayloadHash()
    read = adapter.read_pieces(object_name(key), [header, payload], seen.add)
    if read != len(header) + len(payload):
        return f"it has {read} bytes instead of {len(header) + len(payload)}"
    [world_size] = [model.world_size for model in MODELS if model.name == identity.model]
    space = namespace(identity.model, world_size, identity.shard, prints[identity.layout], identity.salt)
    assert len(space.prefix) == NAMESPACE_BYTES
    try:
        check(key, space, header, seen)
    except EnvelopeError as error:
        return str(error)
    return None if payload[:size] == fresh_pattern(identity, size) else "WRONG BYTES"
