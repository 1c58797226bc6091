"""Prints every metric of the LMCache server by its exposed name, with its type, as the package's own exporter has it.

``python -m tests.interop.exported``: in a process of its own, since OpenTelemetry has one meter provider for each.
"""

from __future__ import annotations

import importlib
import inspect
import json
import pkgutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lmcache
import lmcache.v1.mp_observability.subscribers.metrics as subscribers
from lmcache.v1.mp_observability.event_bus import EventSubscriber
from lmcache.v1.mp_observability.otel_init import register_gauge
from opentelemetry import metrics
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import Meter, MeterProvider
from prometheus_client import REGISTRY


def note(instruments: list[Any], create: str) -> None:
    """Have every instrument of one kind noted when it is made."""
    original: Callable[..., Any] = getattr(Meter, create)

    def noting(*arguments: Any, **options: Any) -> Any:
        instruments.append(original(*arguments, **options))
        return instruments[-1]

    setattr(Meter, create, noting)


def subscriber_classes() -> Iterator[type[Any]]:
    for module in pkgutil.iter_modules(subscribers.__path__):
        loaded = importlib.import_module(f"{subscribers.__name__}.{module.name}")
        for member in vars(loaded).values():
            if inspect.isclass(member) and issubclass(member, EventSubscriber) and member.__module__ == loaded.__name__:
                yield member


def gauges() -> set[str]:
    """Names of gauges stand in the source next to what they measure; making each of those would need a whole server."""
    sources = (path.read_text() for path in Path(lmcache.__path__[0], "v1").rglob("*.py"))
    words = [
        source.split('"') for source in sources if "register_gauge(" in source or "partial(register_gauge" in source
    ]
    return {word for source in words for word in source if word.startswith("lmcache_mp.") and word.isprintable()}


def main() -> None:
    instruments: list[Any] = []
    for create in ("create_counter", "create_histogram"):
        note(instruments, create)
    metrics.set_meter_provider(MeterProvider(metric_readers=[PrometheusMetricReader()]))
    for subscriber in subscriber_classes():
        if not inspect.signature(subscriber).parameters or all(
            each.default is not each.empty for each in inspect.signature(subscriber).parameters.values()
        ):
            subscriber()
    # Only what has a value is exported.
    for instrument in instruments:
        (instrument.add if hasattr(instrument, "add") else instrument.record)(1)
    counted = {instrument.name for instrument in instruments}
    for name in gauges() - counted:
        register_gauge("test", name, "", lambda: 1)
    print(json.dumps({family.name: family.type for family in REGISTRY.collect() if family.name.startswith("lmcache")}))


if __name__ == "__main__":
    main()
