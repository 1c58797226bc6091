"""Who may have how much of L1: what the configuration says, and what operators have set over it. Pure."""

from __future__ import annotations

from typing import Any, Final

from engine.answers import QuotaOrigin, QuotaReport, QuotaReports
from engine.commands import Command, ConfigureQuotas, DropQuota, ListQuotas, LookAtQuota, SetQuota
from engine.errors import QuotaError
from engine.events import CommandAsked, CommandDone, Effect
from engine.jobs import Job, Jobs, Step
from engine.l1.cache import L1Cache
from engine.l1.partitions import Quota
from engine.operators import CommandHandler
from engine.settings import QuotaSettings, TenantQuota

_PART: Final = 512
"""Objects that a job moves or evicts before requests have their turn."""


class Quotas:
    """Belongs to the engine thread.

    A change counts at once for what is stored from then on. A job then brings the objects that are here to where they
    are ranked from now on, and evicts what a tenant has over its limit.
    """

    def __init__(self, cache: L1Cache, jobs: Jobs, settings: QuotaSettings) -> None:
        """`cache` is empty."""
        self._cache = cache
        self._jobs = jobs
        self._configured: dict[str, Quota] = {}
        self._set: dict[str, Quota] = {}
        for _ in self._changes(settings):
            cache.end_move()

    def handlers(self) -> dict[type[Command[Any]], CommandHandler]:
        """By command, what carries it out; raises QuotaError."""
        return {
            ConfigureQuotas: self._configure,
            SetQuota: self._put,
            DropQuota: self._drop,
            LookAtQuota: lambda event, command: [CommandDone(event.ticket, self._report(command.cache_salt))],
            ListQuotas: lambda event, _: [CommandDone(event.ticket, self._reports())],
        }

    def _configure(self, event: CommandAsked, command: ConfigureQuotas) -> list[Effect]:
        moves = self._changes(command.quotas)
        return [*self._settle(event, moves), CommandDone(event.ticket, None)]

    def _put(self, event: CommandAsked, command: SetQuota) -> list[Effect]:
        quota = command.quota
        self._check_reserved(self._configured | self._set | {quota.cache_salt: _quota(quota)})
        self._set[quota.cache_salt] = _quota(quota)
        return self._changed(event, quota.cache_salt)

    def _drop(self, event: CommandAsked, command: DropQuota) -> list[Effect]:
        if command.cache_salt not in self._set:
            return [CommandDone(event.ticket, None)]
        left = {salt: quota for salt, quota in self._set.items() if salt != command.cache_salt}
        self._check_reserved(self._configured | left)
        self._set = left
        return self._changed(event, command.cache_salt)

    def _changed(self, event: CommandAsked, salt: str) -> list[Effect]:
        moves = self._apply([salt])
        return [*self._settle(event, moves), CommandDone(event.ticket, self._report(salt))]

    def _changes(self, settings: QuotaSettings) -> range:
        """Puts the configuration's quotas in force; returns one for each change of the cache."""
        # NOTE: Not compared with the capacity: that may be changed by the same reload, and by another command.
        configured = {tenant.cache_salt: _quota(tenant) for tenant in settings.tenants}
        before, self._configured = self._configured, configured
        moves = self._apply([*before, *configured])
        default = Quota(settings.default_limit)
        if default != self._cache.default_quota:
            self._cache.set_default_quota(default)
            moves = range(len(moves) + 1)
        return moves

    def _apply(self, salts: list[str]) -> range:
        """Puts the quotas of these tenants in force, where they differ; returns one for each change of the cache."""
        effective = self._configured | self._set
        changed = [salt for salt in dict.fromkeys(salts) if effective.get(salt) != self._cache.quotas.get(salt)]
        for salt in changed:
            self._cache.set_quota(salt, effective.get(salt))
        return range(len(changed))

    def _settle(self, event: CommandAsked, moves: range) -> list[Effect]:
        if not moves:
            return []
        self._jobs.start("set_quota", event.now, self._cache.end, _Settling(self._cache, len(moves)).part)
        return self._jobs.proceed(event.now)

    def _check_reserved(self, quotas: dict[str, Quota]) -> None:
        """Raises QuotaError if more is reserved than there is, or a tenant can never have what is reserved for it."""
        for salt, quota in quotas.items():
            if quota.limit is not None and quota.reservation > quota.limit:
                raise QuotaError(f"{salt!r} has {quota.reservation} bytes reserved and a limit of {quota.limit}")
        reserved, capacity = sum(quota.reservation for quota in quotas.values()), self._cache.capacity
        if reserved > capacity:
            raise QuotaError(f"{reserved} bytes would be reserved, and L1 has {capacity}")

    def _report(self, salt: str) -> QuotaReport:
        quota = self._cache.quotas.get(salt, self._cache.default_quota)
        origin: QuotaOrigin = "api" if salt in self._set else "config" if salt in self._configured else "default"
        return QuotaReport(salt, quota.limit, quota.reservation, self._cache.usage.get(salt, 0), origin)

    def _reports(self) -> QuotaReports:
        cache = self._cache
        own = tuple(self._report(salt) for salt in sorted(cache.quotas))
        others = len(cache.usage) - sum(salt in cache.usage for salt in cache.quotas)
        used = cache.used - sum(report.used for report in own)
        return QuotaReports(cache.default_quota.limit, own, others, used)


class _Settling:
    """Brings every object to where it is ranked from now on, and every tenant under its limit."""

    def __init__(self, cache: L1Cache, moves: int) -> None:
        self._cache = cache
        self._moves = moves
        self._is_home = False

    def part(self, job: Job) -> Step:
        if job.done < job.total:
            following = self._cache.bring_home(job.done, _PART)
            job.done = job.total if following is None else min(following, job.total)
            return "more"
        self._is_home = self._is_home or self._cache.hand_over(_PART)
        if not self._is_home:
            return "more"
        evicted = self._cache.evict_over_limits(_PART)
        for entry in evicted:
            job.count(entry.size)
        if len(evicted) == _PART:
            return "more"
        for _ in range(self._moves):
            self._cache.end_move()
        return "ended"


def _quota(tenant: TenantQuota) -> Quota:
    return Quota(tenant.limit, tenant.reservation)
