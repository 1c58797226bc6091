"""The sample and the simulations together: notes in, estimates out. Pure; belongs to one thread."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from engine.advisor.miniature import Miniature
from engine.advisor.report import FACTORS, Estimate
from engine.advisor.sample import Piece, Sample
from engine.l1.partitions import MakePolicy
from engine.traffic import References

MOST_OBJECTS: Final = 24_000
"""Objects that all simulations hold together at most. With what the policies remember of evicted ones, about 7 MB."""
_MOST_WAITING: Final = 24_000
"""Sampled chunks that may wait to be simulated, about 4 MB: as many as come in a burst."""
_LATE: Final = 0.5
"""Part of them from which on the sample is made smaller, to save time."""
_LOWER: Final = 0.8
_HURRY: Final = 0.5
"""What the rate is lowered to when the objects are too many, and when the time is too short."""
_FEWEST_CHUNKS: Final = 16
"""Chunks that fit into the smallest simulation, below which the rate is not lowered to save time."""
_REQUESTS: Final = 1024
"""Requests of which it is remembered whether they have missed something."""


class _Waiting(NamedTuple):
    """Something to be simulated."""

    request_id: str
    is_first: bool
    """Nothing of the request was simulated before."""
    piece: Piece
    clears: int


class Study:
    """Of one size of L1. To simulate a sampled reference costs about 0.3 ms, to read another one 0.2 µs."""

    def __init__(self, policies: Mapping[str, MakePolicy], l1_size: int) -> None:
        """`policies`: by name, those to be compared."""
        self.sample: Final = Sample()
        self.l1_size: Final = l1_size
        self.dropped = 0
        """References, about, for whose simulation there was no time."""
        self._chunk_size = 0.0
        """Mean bytes of the chunks of late; 0 before the first note."""
        self._waiting: deque[_Waiting] = deque()
        self._waiting_chunks = 0
        self._serving = Piece([], [])
        """Simulated now."""
        self._clears = 0
        self._missed: OrderedDict[str, int] = OrderedDict()
        """By request: in which of the simulations it has missed something, a bit for each."""
        self._miniatures: Final = {
            (name, factor): Miniature(make(self._capacity(factor)))
            for name, make in policies.items()
            for factor in FACTORS
        }

    def read(self, notes: Sequence[References]) -> None:
        """Counts what notes refer to; what of it is in the sample waits for `simulate`."""
        if not self._chunk_size:
            self._begin(notes[0].size)
        for note, piece in zip(notes, self.sample.read(notes), strict=True):
            if piece.now:
                self._chunk_size += (note.size - self._chunk_size) / 64
                self._waiting.append(_Waiting(note.request_id, note.first == 0, piece, note.clears))
                self._waiting_chunks += piece.chunks
        self._limit()
        while self._waiting_chunks > _MOST_WAITING:
            dropped = self._waiting.pop().piece
            self._waiting_chunks -= dropped.chunks
            self.dropped += round(len(dropped.now) / self.sample.rate)

    def simulate(self) -> Iterator[None]:
        """Simulates what waits, in steps between which the caller may rest."""
        while self._waiting:
            waiting = self._waiting.popleft()
            self._waiting_chunks -= waiting.piece.chunks
            if waiting.clears != self._clears:
                self._clear(waiting.clears)
            yield from self._serve(waiting)
            self._limit()

    def _serve(self, waiting: _Waiting) -> Iterator[None]:
        self._serving = waiting.piece
        has_missed = 0 if waiting.is_first else self._missed.pop(waiting.request_id, 0)
        for place, miniature in enumerate(self._miniatures.values()):
            if miniature.serve(self._serving, has_missed=bool(has_missed >> place & 1)):
                has_missed |= 1 << place
            yield
        self.sample.know(self._serving)
        self._missed[waiting.request_id] = has_missed
        if len(self._missed) > _REQUESTS:
            self._missed.popitem(last=False)

    @property
    def sampled_chunks(self) -> int:
        """Different ones that the largest simulation holds."""
        return max(map(len, self._miniatures.values()), default=0)

    def estimates(self) -> tuple[Estimate, ...]:
        """By policy, and for each by size."""
        return tuple(
            Estimate(
                name,
                factor,
                int(factor * self.l1_size),
                self.sample.hit_ratio(miniature.hits),
                miniature.has_been_full,
            )
            for (name, factor), miniature in self._miniatures.items()
        )

    @property
    def _objects(self) -> int:
        return sum(map(len, self._miniatures.values()))

    def _capacity(self, factor: float) -> int:
        return max(1, int(factor * self.l1_size * self.sample.rate))

    def _begin(self, chunk_size: int) -> None:
        """With the rate at which full simulations hold as much as they may."""
        self._chunk_size = chunk_size
        chunks = sum(self.l1_size * factor / chunk_size for _, factor in self._miniatures)
        self._lower_rate(min(1.0, MOST_OBJECTS / chunks))

    def _limit(self) -> None:
        """Keeps memory within its bound, and time as far as the estimates allow."""
        smallest = FACTORS[0] * self.l1_size * self.sample.rate / self._chunk_size
        if self._objects > MOST_OBJECTS:
            self._lower_rate(_LOWER)
        elif self._waiting_chunks > _LATE * _MOST_WAITING and smallest * _HURRY > _FEWEST_CHUNKS:
            self._lower_rate(_HURRY)

    def _lower_rate(self, to: float) -> None:
        threshold = self.sample.lower(to)
        for (_, factor), miniature in self._miniatures.items():
            miniature.shrink(self._capacity(factor), threshold, to)
        self._serving.thin(threshold)
        for waiting in self._waiting:
            waiting.piece.thin(threshold)
        self._waiting = deque(waiting for waiting in self._waiting if waiting.piece.now)
        self._waiting_chunks = sum(each.piece.chunks for each in self._waiting)

    def _clear(self, clears: int) -> None:
        """L1 was emptied."""
        self._clears = clears
        for miniature in self._miniatures.values():
            miniature.clear()
