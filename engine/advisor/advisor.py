"""The advisor: reads what the engine thread has noted, a little at a time, and publishes what follows from it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Final

from engine.advisor.advice import advise
from engine.advisor.report import FACTORS, AdvisorReport, Estimate
from engine.advisor.study import Study
from engine.background import Background
from engine.feed import Feed
from engine.l1.partitions import MakePolicy
from engine.status import StatusReport
from engine.supervision import Supervisor
from engine.traffic import References

_READ_SHARE: Final = 0.05
_SHARE: Final = 0.02
"""Parts of the time that reading notes and simulating take at most while there are requests: meanwhile the engine
thread does not get the interpreter."""
_IDLE_SHARE: Final = 0.2
"""The same while there are none."""
_IDLE_SECONDS: Final = 0.25
"""Time without a note after which there are none."""
_PART_SECONDS: Final = 0.0005
"""Time after which it rests: so long a request may have to wait for it."""
_BATCH_KEYS: Final = 4096
"""Object keys that are read at once."""
_PAUSE_SECONDS: Final = 0.02
"""Between two looks for notes."""
_PUBLISH_SECONDS: Final = 1.0
_PATIENCE_SECONDS: Final = 30.0
"""A part that takes so long never ends, and takes the interpreter from the engine thread all the while."""


class Advisor:
    """The thread `advisor`. The methods may be called from any thread."""

    def __init__(
        self,
        feed: Feed[References],
        policies: Mapping[str, MakePolicy],
        status: Callable[[], StatusReport],
        clock: Callable[[], float],
        cpu: Callable[[], float],
        supervisor: Supervisor | None = None,
    ) -> None:
        """`status` is the engine's newest report, at no cost; `cpu` the seconds that the calling thread has run for."""
        self._feed = feed
        self._policies = policies
        self._status = status
        self._clock = clock
        self._cpu = cpu
        self._enabled = False
        self._study: Study | None = None
        """Of the thread, as all that follows."""
        self._steps: Iterator[None] = iter(())
        """Of the study's simulations."""
        self._has_more = False
        self._simulate_at = 0.0
        self._read_at = clock()
        """When the newest note was read."""
        self._dropped_before = 0
        """What the feed had dropped when the study began."""
        self._began = self._publish_at = clock()
        self._base = status()
        self.thread: Final = Background("advisor", self._work, supervisor=supervisor, patience=_PATIENCE_SECONDS)
        self.report = self._reported(self._base)
        """The newest one. Replaced as a whole."""

    def enable(self, enabled: bool) -> None:
        """Begins to look at the traffic, or ends it. What was learned before is forgotten."""
        self._enabled = enabled
        self._feed.is_open = enabled
        self.thread.wake()

    def _work(self) -> float:
        try:
            return self._do_a_part()
        except BaseException:
            # NOTE: Another study is begun: who knows what this one was in the middle of.
            self._study = None
            raise

    def _do_a_part(self) -> float:
        """Returns the seconds to rest."""
        began, worked = self._clock(), self._cpu()
        status = self._status()
        self._begin_anew_if_needed(began, status)
        self._read()
        rest = max((self._cpu() - worked) / _READ_SHARE, _PAUSE_SECONDS)
        if self._clock() >= self._simulate_at:
            self._simulate()
        if began >= self._publish_at:
            self._publish_at = began + _PUBLISH_SECONDS
            self.report = self._reported(status)
        now = self._clock()
        if not self._is_idle(now):
            return rest
        return max(0.0, self._simulate_at - now) if self._has_more else _IDLE_SECONDS

    def _is_idle(self, now: float) -> bool:
        return now - self._read_at > _IDLE_SECONDS

    def _begin_anew_if_needed(self, now: float, status: StatusReport) -> None:
        size = self._study.l1_size if self._study else None
        wanted = status.l1.memory_total_bytes if self._enabled else None
        if size == wanted:
            return
        self._study = Study(self._policies, wanted) if wanted else None
        self._steps = self._study.simulate() if self._study else iter(())
        self._dropped_before = self._feed.dropped
        self._began = self._publish_at = now
        self._base = status

    def _read(self) -> None:
        """What has been noted, as much as takes a part of the time."""
        notes: list[References] = []
        keys = 0
        while keys < _BATCH_KEYS and (note := self._feed.take()) is not None:
            notes.append(note)
            keys += len(note.keys) + 1
        if notes and self._study:
            self._study.read(notes)
            self._read_at = self._clock()

    def _simulate(self) -> None:
        """For a part of the time."""
        began = self._cpu()
        self._has_more = any(self._cpu() - began >= _PART_SECONDS for _ in self._steps)
        if not self._has_more and self._study:
            self._steps = self._study.simulate()
        now, worked = self._clock(), self._cpu() - began
        self._simulate_at = now + worked / (_IDLE_SHARE if self._is_idle(now) else _SHARE)

    def _reported(self, status: StatusReport) -> AdvisorReport:
        study, old, new = self._study, self._base.l1, status.l1
        hits, misses = new.hit_chunks - old.hit_chunks, new.missed_chunks - old.missed_chunks
        sample = study.sample if study else None
        report = AdvisorReport(
            is_enabled=self._enabled,
            age=self._clock() - self._began,
            policy=status.eviction_policy,
            l1_size=new.memory_total_bytes,
            references=sample.asked if sample else 0,
            dropped_references=self._feed.dropped - self._dropped_before + (study.dropped if study else 0),
            sampled_references=sample.references if sample else 0,
            sampled_chunks=study.sampled_chunks if study else 0,
            sample_rate=sample.rate if sample else 1.0,
            measured_hit_ratio=hits / (hits + misses) if hits + misses else 0.0,
            estimates=study.estimates() if study else no_estimates(self._policies, new.memory_total_bytes),
        )
        return replace(report, advice=advise(report))


def no_estimates(policies: Mapping[str, MakePolicy], l1_size: int) -> tuple[Estimate, ...]:
    """Those of a traffic of which nothing is known."""
    return tuple(Estimate(name, factor, int(factor * l1_size), 0.0, False) for name in policies for factor in FACTORS)
