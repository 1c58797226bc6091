"""The status report as Prometheus metrics. Nothing is counted here: every number comes from the report.

Where a metric means the same as one of LMCache 0.5 it has that one's name, so that dashboards go on working.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import fields
from typing import Final, get_args

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from engine import HistogramReport, L1Report, LookupReport, StatusReport, WorkerState

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

_NO_L1: Final = L1Report(*(0,) * len(fields(L1Report)))
_NO_LOOKUPS: Final = LookupReport(0, 0, 0, 0, HistogramReport((), (0,), 0.0))
_NOTHING: Final = StatusReport(False, (), 0, "", "", (), 0, 0, 0, 0, 0, 0, 0, _NO_LOOKUPS, (), _NO_L1, ())
"""Stands for the report before there is an engine, so that every series exists from the start."""


def exposition(report: StatusReport | None) -> bytes:
    """All metrics in the text format; None stands for an engine that is not there."""
    registry = CollectorRegistry()
    registry.register(_Report(report))
    return generate_latest(registry)


class _Report(Collector):
    def __init__(self, report: StatusReport | None) -> None:
        self._ready = report is not None
        self._report = report or _NOTHING

    def collect(self) -> Iterable[Metric]:
        report = self._report
        yield _gauge("kvkeep_engine_ready", "1 once the engine serves requests.", self._ready)
        yield _gauge("kvkeep_engine_healthy", "1 while the engine has no problem to report.", report.is_healthy)
        yield _workers(report)
        yield _gauge("kvkeep_sessions", "Requests whose lookup is remembered.", report.active_sessions)
        yield _gauge("kvkeep_running_transfers", "Copies that are queued or under way.", report.running_transfers)
        yield _counter("kvkeep_skipped_stores", "Stores of unsupported workers, skipped.", report.skipped_stores)
        yield _counter("kvkeep_failed_requests", "Requests answered with their failure value.", report.failed_requests)
        yield _counter("kvkeep_dropped_messages", "Messages that cannot be answered.", report.dropped_messages)
        yield _counter("kvkeep_dropped_replies", "Replies whose client had vanished.", report.dropped_replies)
        yield from _l1(report.l1, report.chunk_size)


def _l1(l1: L1Report, chunk_size: int) -> Iterator[Metric]:
    asked = (l1.hit_chunks + l1.missed_chunks) * chunk_size
    ratio = l1.memory_used_bytes / l1.memory_total_bytes if l1.memory_total_bytes else 0.0
    yield _counter("lmcache_mp_lookup_requested_tokens", "Tokens of complete chunks that lookups asked for.", asked)
    yield _counter("lmcache_mp_lookup_hit_tokens", "Tokens that lookups found.", l1.hit_chunks * chunk_size)
    yield _gauge("lmcache_mp_l1_memory_usage_bytes", "Bytes occupied in L1.", l1.memory_used_bytes)
    yield _gauge("lmcache_mp_l1_usage_ratio", "Occupied part of L1, 0 to 1.", ratio)
    yield _counter("lmcache_mp_l1_evicted_chunks", "Objects evicted from L1.", l1.evicted_objects)
    yield _gauge("kvkeep_l1_capacity_bytes", "Bytes of L1.", l1.memory_total_bytes)
    yield _objects(l1)
    yield _counter("kvkeep_l1_stored_objects", "Objects stored in L1.", l1.stored_objects)
    yield _counter("kvkeep_l1_evicted_bytes", "Bytes evicted from L1.", l1.evicted_bytes)
    yield _counter("kvkeep_l1_refused_objects", "Objects for which no room could be made.", l1.refused_objects)
    yield _counter("kvkeep_l1_cleared_objects", "Objects that clears made invisible.", l1.cleared_objects)


def _workers(report: StatusReport) -> Metric:
    family = GaugeMetricFamily("kvkeep_workers", "Registered workers by state.", labels=["state"])
    for state in get_args(WorkerState):
        family.add_metric([state], sum(worker.state == state for worker in report.workers))
    return family


def _objects(l1: L1Report) -> Metric:
    family = GaugeMetricFamily(
        "kvkeep_l1_objects", "Objects in L1: to be found, leased, being written.", labels=["state"]
    )
    family.add_metric(["ready"], l1.total_object_count)
    family.add_metric(["leased"], l1.leased_object_count)
    family.add_metric(["reserved"], l1.reserved_object_count)
    return family


def _gauge(name: str, description: str, value: float) -> Metric:
    return GaugeMetricFamily(name, description, value=value)


def _counter(name: str, description: str, value: float) -> Metric:
    return CounterMetricFamily(name, description, value=value)
