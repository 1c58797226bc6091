"""Which references are looked at closely, and what these stand for. Pure; belongs to one thread.

Spatial sampling by hash, as SHARDS has it (Waldspurger, Park, Garthwaite, Ahmad: Efficient MRC construction with
SHARDS, FAST 2015): a chunk is in the sample or not, always, so that each of the sample's chunks is used again exactly
as often and as soon as it really is. The rate only falls; what is above a lowered threshold leaves the sample.

A sample is off where it has, or has not, one of the few chunks that are in nearly every request. SHARDS corrects that
by the number of references that the sample should have had (SHARDS-adj). Here the references are told apart by how
often their chunk was seen before, which is known of all of them and not of the sampled ones only. Of each such stratum
the sample says what part hits, and the known number of its references what that part weighs (post-stratification). A
top stratum of which the sample has nothing is very often used, and counted as hits, as in SHARDS-adj.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from engine.hashing import HASH_BYTES
from engine.keys import NAMESPACE_BYTES, namespace
from engine.traffic import References

STRATA: Final = 17
"""Never seen before, once, two or three times, four to seven times, ..."""
_LEAST: Final = 64
"""Sampled references of a stratum without which it is taken together with the next one."""
_COUNTERS: Final = 1 << 19
"""How often chunks were seen: 2 MiB. Two chunks may share a counter: a stratum is only a guess that all share."""
_MOST: Final = (1 << 16) - 1
_STRATUM: Final = np.searchsorted(2 ** np.arange(STRATA - 1), np.arange(_MOST + 1), side="right")
"""By how often a chunk was seen."""
_FULL: Final = 1 << 64
_WORDS: Final = (NAMESPACE_BYTES + HASH_BYTES) // 8
_WORD: Final = NAMESPACE_BYTES // 8
"""The first word of the hash in an object's key."""

Words = npt.NDArray[np.uint64]
Integers = npt.NDArray[np.intp]


class Sampled(NamedTuple):
    """A chunk in the sample."""

    id: int
    size: int
    """Bytes that it occupies with all its shards and layouts."""
    stratum: int
    """-1 for one that counts as no reference."""
    is_followed: bool
    """The next chunk of its prompt is used or stored now."""


class Piece(NamedTuple):
    """The sampled chunks of one note, in the order of the prompt."""

    before: list[Sampled]
    now: list[Sampled]

    @property
    def chunks(self) -> int:
        return len(self.before) + len(self.now)

    def thin(self, threshold: int) -> None:
        """The sample has only ids below this from now on."""
        for part in self:
            part[:] = [sampled for sampled in part if sampled.id < threshold]


class Sample:
    """Reads notes. `counts` is scaled to the present rate: as if that had held from the start."""

    def __init__(self) -> None:
        self.asked = 0
        """Chunks that lookups asked for."""
        self.counts = [0.0] * STRATA
        """Sampled references by stratum, as far as it is known which of them hit."""
        self._threshold = _FULL
        self._totals = np.zeros(STRATA, dtype=np.int64)
        self._seen = np.zeros(_COUNTERS, dtype=np.uint32)
        self._used_counters = 0

    @property
    def rate(self) -> float:
        """Part of all chunks that is in the sample."""
        return self._threshold / _FULL

    @property
    def references(self) -> int:
        return round(sum(self.counts))

    def lower(self, factor: float) -> int:
        """Lowers the rate; chunks whose id is not below the returned threshold are not in the sample any more."""
        self._threshold = max(1, int(self._threshold * factor))
        self.counts = [factor * count for count in self.counts]
        return self._threshold

    def know(self, piece: Piece) -> None:
        """It is known what of a piece hits."""
        for sampled in piece.now:
            if sampled.stratum >= 0:
                self.counts[sampled.stratum] += 1

    def read(self, notes: Sequence[References]) -> list[Piece]:
        """Counts what notes refer to; returns of each what is in the sample.

        PERF: All of them at once: what is done for a note alone costs more than what is done for its chunks.
        """
        self.asked += sum(note.asked for note in notes)
        pieces = [Piece([], []) for _ in notes]
        batch = _Batch(notes)
        strata = self._count(batch)
        chosen = np.flatnonzero(batch.ids < self._threshold) if self._threshold < _FULL else np.arange(len(batch.ids))
        columns = (batch.ids, batch.notes, batch.places, strata)
        for id_, number, place, stratum in zip(*(column[chosen].tolist() for column in columns), strict=True):
            note = notes[number]
            is_followed = note.first - 1 <= place < batch.lengths[number] - 1
            sampled = Sampled(id_, note.size, stratum, is_followed)
            (pieces[number].before if place < note.first else pieces[number].now).append(sampled)
        return pieces

    def hit_ratio(self, hits: Sequence[float]) -> float:
        """The part of all chunks asked for that hits, where so many of the sample do, by stratum.

        What was asked for and never stored is a miss.
        """
        return min(1.0, self._hits(hits) / self.asked) if self.asked else 0.0

    def _hits(self, hits: Sequence[float]) -> float:
        estimate = found = looked = weight = 0.0
        nothing_above = True
        for stratum in range(STRATA - 1, -1, -1):
            found, looked = found + hits[stratum], looked + self.counts[stratum]
            weight += int(self._totals[stratum])
            if nothing_above and not looked:
                estimate, weight = estimate + weight, 0.0
                continue
            nothing_above = False
            # What was never seen before is like nothing else: it misses.
            if looked >= _LEAST or stratum <= 1:
                estimate += weight * found / looked if looked else 0.0
                found = looked = weight = 0.0
        return estimate

    def _count(self, batch: _Batch) -> Integers:
        """The strata of the chunks, which are seen once more now; -1 for those that are no references."""
        counters = batch.ids[batch.are_now] & np.uint64(_COUNTERS - 1)
        seen = self._seen[counters]
        strata = np.full(len(batch.ids), -1, dtype=np.intp)
        strata[batch.are_now] = _STRATUM[np.minimum(seen, _MOST)]
        strata[~batch.are_references] = -1
        self._totals += np.bincount(strata[batch.are_references], minlength=STRATA)
        np.add.at(self._seen, counters, 1)
        self._used_counters += len(seen) - int(np.count_nonzero(seen))
        if 2 * self._used_counters > _COUNTERS:
            self._seen >>= 1
            self._used_counters = int(np.count_nonzero(self._seen))
        return strata


class _Batch:
    """The chunks of several notes, one after the other; each note's in the order of the prompt."""

    def __init__(self, notes: Sequence[References]) -> None:
        keys = [note.keys[:: note.step] for note in notes]
        self.lengths = [len(each) for each in keys]
        self.notes = np.repeat(np.arange(len(notes)), self.lengths)
        """The place of a chunk's note among the notes."""
        self.places = np.arange(len(self.notes)) - np.repeat(np.cumsum([0, *self.lengths[:-1]]), self.lengths)
        """The place of a chunk in its prompt."""
        self.are_now = self.places >= np.array([note.first for note in notes])[self.notes]
        self.are_references = self.are_now & (self.places < np.array([note.counted for note in notes])[self.notes])
        masks = np.array([_mask(*note.identity) for note in notes], dtype=np.uint64)
        self.ids = _words(b"".join(chain.from_iterable(keys))) ^ masks[self.notes]
        """64 bits that no other chunk, and no other salt, has."""


def _words(keys: bytes) -> Words:
    """The first word of the hash in each of these objects' keys."""
    return np.frombuffer(keys, dtype="<u8").reshape(-1, _WORDS)[:, _WORD]


def _mask(model_name: str, world_size: int, cache_salt: str) -> int:
    """One word for all shards and layouts. Without it a chunk would be in the sample for all salts or for none."""
    return int.from_bytes(namespace(model_name, world_size, 0, b"", cache_salt).prefix[:8], "little")
