"""The sample and the simulations together: notes in, estimates out. Pure; belongs to one thread."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Final

from engine.advisor.miniature import Miniature
from engine.advisor.report import FACTORS, Estimate
from engine.advisor.sample import Sample
from engine.l1.partitions import MakePolicy
from engine.traffic import References

MOST_OBJECTS: Final = 24_000
"""Objects that all simulations hold together at most. With what the policies remember of evicted ones, about 7 MB."""
_AHEAD: Final = 2.0
"""So much more than what fills them is taken at first: there may be fewer chunks than the largest have room for."""
_LOWER: Final = 0.8
"""What the rate is lowered to when they are more."""
_REQUESTS: Final = 1024
"""Requests of which it is remembered whether they have missed something."""
_FEWEST_CHUNKS: Final = 16
"""Chunks that fit into the smallest simulation, below which the rate is not lowered to save time."""


class Study:
    """Of one size of L1. Costs about 0.2 ms a sampled reference; of the others, 50 ns."""

    def __init__(self, policies: Mapping[str, MakePolicy], l1_size: int) -> None:
        """`policies`: by name, those to be compared."""
        self.sample: Final = Sample()
        self.l1_size: Final = l1_size
        self._clears = 0
        self._has_begun = False
        self._missed: OrderedDict[str, int] = OrderedDict()
        """By request: in which of the simulations it has missed something, a bit for each."""
        self._mean_size = 0.0
        """Bytes of a chunk, over the sampled ones of late."""
        self._miniatures: Final = {
            (name, factor): Miniature(make(self._capacity(factor)))
            for name, make in policies.items()
            for factor in FACTORS
        }

    def observe(self, note: References) -> Iterator[None]:
        """Takes a note into account, in steps between which the caller may rest."""
        if note.clears != self._clears or not self._has_begun:
            self._begin(note)
        piece = self.sample.read(note)
        yield
        if not piece.now:
            return
        self._mean_size += (note.size - self._mean_size) / 64
        has_missed = self._missed.pop(note.request_id, 0) if note.first else 0
        for place, miniature in enumerate(self._miniatures.values()):
            if miniature.serve(piece, has_missed=bool(has_missed >> place & 1)):
                has_missed |= 1 << place
            yield
        self._remember(note.request_id, has_missed)
        if self._objects > MOST_OBJECTS:
            self._lower_rate(_LOWER)

    def save_time(self) -> None:
        """The traffic is more than there is time for: takes a smaller sample, if that can still tell anything."""
        if FACTORS[0] * self.l1_size * self.sample.rate * _LOWER > _FEWEST_CHUNKS * self._mean_size:
            self._lower_rate(_LOWER)

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

    def _remember(self, request_id: str, has_missed: int) -> None:
        self._missed[request_id] = has_missed
        if len(self._missed) > _REQUESTS:
            self._missed.popitem(last=False)

    def _lower_rate(self, to: float) -> None:
        threshold = self.sample.lower(to)
        for (_, factor), miniature in self._miniatures.items():
            miniature.shrink(self._capacity(factor), threshold, to)

    def _begin(self, note: References) -> None:
        """With nothing in any L1."""
        if not self._has_begun:
            self._has_begun = True
            self._mean_size = note.size
            chunks = sum(self.l1_size * factor / note.size for _, factor in self._miniatures)
            self._lower_rate(min(1.0, _AHEAD * MOST_OBJECTS / chunks))
        self._clears = note.clears
        for miniature in self._miniatures.values():
            miniature.clear()
