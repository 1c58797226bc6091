"""What came of a soak, for people."""

from __future__ import annotations

from collections.abc import Iterator

from tests.soak.bench import Resources
from tests.soak.run import Outcome


def table(outcome: Outcome) -> str:
    return "\n".join(_lines(outcome))


def _lines(outcome: Outcome) -> Iterator[str]:
    yield f"seed {outcome.seed}, {outcome.seconds:g} s"
    requests = {name: count for name, count in outcome.counts.items() if name.startswith("request ")}
    yield from _section("answered", {name.removeprefix("request "): count for name, count in requests.items()})
    yield from _section("seen", {name: count for name, count in outcome.counts.items() if name not in requests})
    yield f"  {'slowest answer':44} {outcome.slowest:12.2f} s"
    yield "lost"
    yield f"  {outcome.counts['stores that failed']} stores that were cleared, or too late, before they were published"
    yield f"  {outcome.counts['retrieves that failed']} retrieves that came after the time of their leases"
    yield from _section("HTTP", outcome.statuses)
    yield "takes of the machine, when nobody is there"
    for name, value in (("fresh", outcome.fresh), ("warm", outcome.before), ("end", outcome.after)):
        if value is not None:
            yield f"  {name:8} {_resources(value)}"
    yield f"  nothing was held any more after {', '.join(f'{each:.1f} s' for each in outcome.calm)}"
    for name, found in outcome.stored.items():
        yield f"  L2 {name}: {found.objects} objects, {len(found.problems)} of them not as they should be"
    yield f"problems: {len(outcome.problems)}"
    yield from outcome.problems
    yield from outcome.events


def _section(title: str, counts: dict[str, int]) -> Iterator[str]:
    yield title
    for name, count in sorted(counts.items()):
        yield f"  {name:44} {count:12,}"


def _resources(found: Resources) -> str:
    return (
        f"{found.anonymous / (1 << 20):7.1f} MiB, {found.descriptors} descriptors, {found.threads} threads, "
        f"{found.mappings} mappings and {found.names} names in /dev/shm"
    )
