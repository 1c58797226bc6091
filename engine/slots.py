"""Slots for a range of chunks: to be written, and to be read. Pure; shared by both transfer modes."""

from __future__ import annotations

from collections.abc import Collection

from engine.l1.cache import L1Cache, NoSpaceError
from engine.l1.entry import Entry
from engine.prompts import Chunks, RefusedError
from engine.sessions import Sessions


def reserve_missing(
    cache: L1Cache, chunks: Chunks, object_bytes: int, now: float, skip: Collection[int] = ()
) -> list[tuple[int, Entry]]:
    """Reserves a slot for each chunk of the range that is neither there nor being written: (index in the range, slot).

    When L1 is full the tail of the range goes without: a chunk whose prefix is missing would be worth nothing. For the
    same reason the prompt's own chunks are kept from being evicted to make room for later ones.
    """
    own = [cache.find(key) for key in chunks.keys]
    held = [present for present in reversed(own) if present is not None]
    for present in held:
        cache.lease(present)
    # What is there already was stored for another request of this prompt.
    cache.use([present for present in reversed(own[chunks.first :]) if present is not None], now)
    parent = own[chunks.first - 1] if chunks.first else None
    reserved: list[tuple[int, Entry]] = []
    wanted = chunks.wanted
    for index, key in enumerate(wanted):
        entry = cache.entry(key)
        if entry is None and index not in skip:
            try:
                entry = cache.reserve(key, object_bytes, chunks.namespace, now, parent)
            except NoSpaceError as error:
                left = enumerate(wanted[index:], index)
                cache.refuse([key for index, key in left if index not in skip and not cache.holds(key)], error.reason)
                break
            reserved.append((index, entry))
        parent = entry
    for present in held:
        cache.release(present)
    return reserved


def take_readable(cache: L1Cache, sessions: Sessions, request_id: str, chunks: Chunks) -> list[Entry]:
    """One lease on each object of the range, in order: the request's own from its lookup, or a new one.

    Raises RefusedError if an object is missing; the request's leases on the range have been used up all the same.
    """
    taken, missing, unready = [], 0, 0
    for key in chunks.wanted:
        entry = sessions.take(request_id, key)
        if entry is None:
            entry = sessions.held(request_id, key) or cache.find(key)
            if entry is not None:
                cache.lease(entry)
        if entry is None:
            missing += 1
            unready += cache.holds(key)
        else:
            taken.append(entry)
    if missing:
        for entry in reversed(taken):
            cache.release(entry)
        cache.touch(chunks.suffix_first)
        cache.counters.absent_reads += missing - unready
        cache.counters.unready_reads += unready
        raise RefusedError(f"{missing} of {chunks.count} chunks to retrieve are not there")
    return taken
