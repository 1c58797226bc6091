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
from engine.traffic import References

_SHARE: Final = 0.02
"""Part of the time that it takes at most: it keeps the interpreter from the engine thread meanwhile."""
_PART_SECONDS: Final = 0.0005
"""Time after which it rests: so long a request may have to wait for it."""
_IDLE_SECONDS: Final = 0.25
_LOADED: Final = 0.5
"""How full the feed may be before a smaller sample is taken."""
_PUBLISH_SECONDS: Final = 1.0


class Advisor:
    """The thread `advisor`. The methods may be called from any thread."""

    def __init__(
        self,
        feed: Feed[References],
        policies: Mapping[str, MakePolicy],
        status: Callable[[], StatusReport],
        clock: Callable[[], float],
    ) -> None:
        """`status` is the engine's newest report, at no cost."""
        self._feed = feed
        self._policies = policies
        self._status = status
        self._clock = clock
        self._enabled = False
        self._study: Study | None = None
        """Of the thread, as all that follows."""
        self._steps: Iterator[None] = iter(())
        """What is left to do for the note at hand."""
        self._began = self._publish_at = clock()
        self._base = status()
        self.thread: Final = Background("advisor", self._work)
        self.report = self._reported(self._base)
        """The newest one. Replaced as a whole."""

    def enable(self, enabled: bool) -> None:
        """Begins to look at the traffic, or ends it. What was learned before is forgotten."""
        self._enabled = enabled
        self._feed.is_open = enabled
        self.thread.wake()

    def _work(self) -> float:
        began = self._clock()
        status = self._status()
        self._begin_anew_if_needed(began, status)
        is_idle = self._read_until(began + _PART_SECONDS)
        if began >= self._publish_at:
            self._publish_at = began + _PUBLISH_SECONDS
            self.report = self._reported(status)
        worked = self._clock() - began
        return max(_IDLE_SECONDS if is_idle else 0.0, worked / _SHARE)

    def _begin_anew_if_needed(self, now: float, status: StatusReport) -> None:
        size = self._study.l1_size if self._study else None
        wanted = status.l1.memory_total_bytes if self._enabled else None
        if size == wanted:
            return
        self._study = Study(self._policies, wanted) if wanted else None
        self._steps = iter(())
        self._began = self._publish_at = now
        self._base = status

    def _read_until(self, end: float) -> bool:
        """Reads notes until a time; returns True if there are no more."""
        study = self._study
        if study is not None and self._feed.load > _LOADED:
            study.save_time()
        while True:
            for _ in self._steps:
                if self._clock() >= end:
                    return False
            note = self._feed.take()
            if note is None:
                return True
            if study is not None:
                self._steps = study.observe(note)

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
            dropped_references=self._feed.dropped,
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
