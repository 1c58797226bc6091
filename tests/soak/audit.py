"""Everything that must hold inside of a running engine, looked at between two of its events.

`problems` walks over all of L1 and over everybody who may hold something of it: what the tables say has to agree with
each other, with the allocator, and with the holders, one by one. `held` is what has to be nothing when nobody is there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from engine.core import Engine
from engine.l1.cache import ALIGNMENT, L1Cache
from engine.l1.entry import Entry


def check_cache(cache: L1Cache) -> list[str]:
    """What is wrong with L1 by itself; nothing if it is whole."""
    return [*_check_tables(cache), *_check_places(cache), *_check_free_space(cache), *_check_ranking(cache)]


def check_engine(engine: Engine) -> list[str]:
    """The same, and whether every use of an object has its user, and every user an object."""
    return [*check_cache(engine._cache), *_check_users(engine)]


def held(engine: Engine) -> dict[str, int]:
    """How much of each thing that ends with its owner there is."""
    cache, copies, prefetches = engine._cache, engine._copies, engine._prefetches
    leased, reserved = cache.objects_in_use
    workers = list(engine._workers)
    return {
        "sessions": len(engine._sessions),
        "sessions by request": len(engine._sessions._by_request),
        "workers": len(workers),
        "leased objects": leased,
        "reserved objects": reserved,
        "borrowed objects": cache._borrowed,
        "doomed objects": sum(not entry.visible for entry in cache._in_use),
        "pins": len(engine._pins._pins),
        "pinned objects": len(engine._pins._held),
        "copies": len(copies._jobs),
        "questions to tiers": len(prefetches._searches),
        "loads": len(prefetches._loads) + len(prefetches._by_key),
        "saves": len(engine._saves._running) + len(engine._saves._saving) + len(engine._saves._leaving),
        "waiting lookups": len(engine._lookups._waiting),
        "registrations under way": len(engine._registration._mapping_replies),
        "mappings let go of": len(engine._registration._unmapping) + len(engine._registration._unmapping_replies),
        "running jobs": len(engine._jobs._running),
        "changes under way": cache._moves,
    }


def _check_tables(cache: L1Cache) -> Iterator[str]:
    visible = list(cache._entries.values())
    for key, entry in cache._entries.items():
        if entry.key != key or not entry.visible:
            yield f"the table has {_name(entry)} under {key.hex()[:12]}"
    for entry in visible:
        if not entry.ready and (entry.leases or entry.borrowers):
            yield f"{_name(entry)} is used before it is ready"
        if _is_used(entry) != (entry in cache._in_use):
            yield f"{_name(entry)} is used: {_is_used(entry)}, in use: {entry in cache._in_use}"
    for entry in cache._in_use:
        if not _is_used(entry):
            yield f"{_name(entry)} is in use and nobody uses it"
        if entry.visible and cache._entries.get(entry.key) is not entry:
            yield f"{_name(entry)} is in use, visible, and not in the table"
    ready = [entry for entry in visible if entry.ready]
    writing = [entry for entry in cache._in_use if not entry.ready]
    leased = [entry for entry in cache._in_use if entry.leases]
    borrowed = [entry for entry in cache._in_use if entry.borrowers and not entry.leases]
    yield from _compare(
        {
            "ready objects": (cache._ready, len(ready)),
            "ready bytes": (cache._ready_bytes, _size(ready)),
            "reserved bytes": (cache._reserved_bytes, _size(writing)),
            "leased objects": (cache._leased, len(leased)),
            "borrowed objects": (cache._borrowed, len(borrowed)),
            "bytes in use": (cache._in_use_bytes, _size(cache._in_use)),
            "bytes used": (cache.used, _size(_everything(cache))),
        }
    )
    counters = cache.counters
    balance = counters.stored_objects - counters.evicted_objects - counters.cleared_objects
    # NOTE: What expires while it is written was never counted as stored.
    if balance != len(ready):
        yield f"stored less evicted less cleared is {balance}, and {len(ready)} are ready"


def _check_places(cache: L1Cache) -> Iterator[str]:
    placed, expected = set(cache._places.walk(0)), _everything(cache)
    for entry in placed ^ expected:
        yield f"{_name(entry)} has {'a' if entry in placed else 'no'} place"
    end = 0
    for entry in sorted(expected, key=lambda entry: entry.offset):
        if entry.offset < end or entry.offset % ALIGNMENT or entry.size % ALIGNMENT:
            yield f"{_name(entry)} overlaps another or is not aligned: [{entry.offset}, {entry.end})"
        end = entry.end
    if end > cache.end:
        yield f"an object ends at {end}, behind the end of L1 at {cache.end}"


def _check_free_space(cache: L1Cache) -> Iterator[str]:
    """Free ranges and objects together are all of L1, and neighbouring free ranges are one."""
    allocator = cache._allocator
    taken = {entry.offset: entry.size for entry in _everything(cache)}
    position, was_free = 0, False
    while position < cache.end:
        free = allocator._size_at.get(position)
        size = taken.get(position) if free is None else free
        if size is None or (free is not None and position in taken):
            yield f"byte {position} of L1 is neither free nor used, or both"
            return
        if free is not None and was_free:
            yield f"two free ranges meet at {position}"
        position, was_free = position + size, free is not None
    if position != cache.end:
        yield f"the ranges end at {position}, not at {cache.end}"
    below = sorted(
        (min(start + size, cache.capacity) - start, start)
        for start, size in allocator._size_at.items()
        if start < cache.capacity
    )
    if below != allocator._by_size:
        yield "the free ranges by size are not those by place"


def _check_ranking(cache: L1Cache) -> Iterator[str]:
    """Every visible object is ranked by one policy of one partition, and named by that exactly if it is not held."""
    partitions, usage = cache._partitions, Counter[str]()
    for entry in _everything(cache):
        usage[entry.namespace.cache_salt] += entry.size
    yield from _compare({f"usage of {salt!r}": (partitions.usage.get(salt, 0), usage[salt]) for salt in usage})
    named = Counter[Any]()
    for partition in partitions:
        for policy in (*partition.former, partition.policy):
            named.update(policy.members())
    for entry in cache._entries.values():
        if named.pop(entry, 0) != (not entry.held):
            yield f"{_name(entry)} is held: {entry.held}, and ranked otherwise"
        if entry.held != bool(entry.leases or not entry.ready):
            yield f"{_name(entry)} is held: {entry.held}, with {entry.leases} leases, ready: {entry.ready}"
    if named:
        yield f"{len(named)} objects are ranked that are not there"
    used = sum(partition.used for partition in partitions)
    if used != cache.used:
        yield f"the partitions count {used} bytes, L1 {cache.used}"


def _check_users(engine: Engine) -> Iterator[str]:
    everything = _everything(engine._cache)
    for what, users, count in (
        ("leases", _leases(engine), lambda entry: entry.leases),
        ("writers", Counter(_written(engine)), lambda entry: int(not entry.ready)),
        ("borrowers", Counter(save.entry for save in engine._saves._running.values()), lambda entry: entry.borrowers),
    ):
        for entry in everything | set(users):
            if users[entry] != count(entry):
                yield f"{_name(entry)} has {count(entry)} {what}, and {users[entry]} are known"
        for entry in set(users) - everything:
            yield f"{_name(entry)} is used and has no slot"
    sessions = list(engine._sessions)
    for session in sessions:
        leased = _size(entry for entry, _ in session.leases.values())
        if session.leased_bytes != leased:
            yield f"session {session.request_id} counts {session.leased_bytes} leased bytes of {leased}"


def _leases(engine: Engine) -> Counter[Entry]:
    found = Counter[Entry]()
    for session in engine._sessions:
        for entry, readers in session.leases.values():
            found[entry] += readers
    for prefetch in _prefetches(engine):
        for entry in prefetch.arrived.values():
            found[entry] += prefetch.readers
    for job in engine._copies._jobs.values():
        if not job.is_store:
            found.update(job.entries)
    for worker in engine._workers:
        found.update(entry for pins in worker.pins.values() for pin in pins for entry in pin.entries)
    for pin in engine._pins._pins.values():
        found.update(pin.entries.values())
    return found


def _written(engine: Engine) -> Iterator[Entry]:
    for job in engine._copies._jobs.values():
        if job.is_store:
            yield from job.entries
    for worker in engine._workers:
        for reservation in worker.reservations.values():
            yield from reservation.entries
    for load in engine._prefetches._loads.values():
        yield load.entry


def _prefetches(engine: Engine) -> set[Any]:
    """All that may hold something: those of sessions, and those of operators, which wait for a load or an answer."""
    found = {session.prefetch for session in engine._sessions if session.prefetch is not None}
    found.update(search.prefetch for search in engine._prefetches._searches.values())
    for load in engine._prefetches._loads.values():
        found.update(load.waiting)
    return found


def _everything(cache: L1Cache) -> set[Entry]:
    """All that has a slot."""
    return {*cache._entries.values(), *cache._in_use}


def _is_used(entry: Entry) -> bool:
    return bool(entry.leases or entry.borrowers or not entry.ready)


def _size(entries: Iterable[Entry]) -> int:
    return sum(entry.size for entry in entries)


def _compare(pairs: Mapping[str, tuple[int, int]]) -> Iterator[str]:
    for name, (said, counted) in pairs.items():
        if said != counted:
            yield f"{name}: {said} by L1's count, {counted} by a walk"


def _name(entry: Entry) -> str:
    state = "ready" if entry.ready else "reserved"
    return f"the {state if entry.visible else 'doomed ' + state} object {entry.key.hex()[:40]} at {entry.offset}"
