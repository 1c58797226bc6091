"""One engine: a scheduler and its workers, with lives that end in several ways."""

from __future__ import annotations

import os
import random
import threading
import time
from itertools import count

import zmq

from engine.wire import messages as m
from engine.wire.messages import NIL
from tests.soak.cast import CHUNK, MODELS, SALTS, Model, ServerCopies, Tokens, prompts
from tests.soak.wire import LIMIT, Connection, Diary, Tally, WrongError
from tests.soak.workers import WORKER_TIMEOUT, CopiedWorker, LentWorker, Request, Setting, StalledError

THINK_SECONDS = 0.15
LIFE_SECONDS = (3.0, 20.0)
LEASE_TTL = 6.0
"""The server's: so long a hit is a promise."""
_instances = count()
_requests = count()


class Client:
    """Lives until it is told to stop, one life after the other."""

    def __init__(
        self,
        number: int,
        seed: int,
        url: str,
        context: zmq.Context[zmq.Socket[bytes]],
        tally: Tally,
        stop: threading.Event,
    ) -> None:
        self.diary = Diary()
        self.model: Model = MODELS[number % len(MODELS)]
        self._dice = random.Random(f"{seed} {number} {os.getpid()}")
        self._prompts = prompts(seed)
        self._tally = tally
        self._stop = stop
        self._setting = Setting(context, url, self.model, self._dice, tally, self.diary, seed, self._beat, stop)
        self._workers: list[CopiedWorker | LentWorker] = []
        self._beating = False

    def run(self) -> None:
        """Raises WrongError."""
        while not self._stop.is_set():
            self._live()

    def _live(self) -> None:
        setting = self._setting
        scheduler = Connection(setting.context, setting.url, self._tally, self.diary, self._beat)
        self._workers = self._make_workers()
        for worker in self._workers:
            worker.register()
        end = time.monotonic() + self._dice.uniform(*LIFE_SECONDS)
        while not self._stop.is_set() and time.monotonic() < end:
            try:
                self._turn(scheduler)
            except StalledError:
                self._tally.add("turns given up, since this machine stood still")
            self._between()
        self._end(scheduler)

    def _make_workers(self) -> list[CopiedWorker | LentWorker]:
        made: list[CopiedWorker | LentWorker] = []
        for layout in self.model.layouts:
            for shard in range(self.model.world_size):
                instance_id = os.getpid() * 100_000 + next(_instances)
                if isinstance(layout, ServerCopies):
                    made.append(CopiedWorker(self._setting, instance_id, shard, layout))
                else:
                    made.append(LentWorker(self._setting, instance_id, shard, layout))
        return made

    def _end(self, scheduler: Connection) -> None:
        way = "leave" if self._dice.random() < 0.6 else "vanish"
        self.diary.note(way)
        self._tally.add(f"lives that ended with: {way}")
        workers, self._workers = self._workers, []
        for worker in workers:
            worker.leave() if way == "leave" else worker.vanish()
        scheduler.finish() if way == "leave" else scheduler.close()

    def _between(self) -> None:
        """What an engine does beside its requests."""
        chance = self._dice.random()
        if chance < 0.01:
            self._dice.choice(self._workers).move()
        for worker in self._workers:
            if worker.must_register:
                worker.register()
        if chance > 0.5:
            for worker in self._workers:
                worker.finish_stores()
        end = time.monotonic() + self._dice.expovariate(1 / THINK_SECONDS)
        self._beat()
        self._stop.wait(min(1.0, max(0.0, end - time.monotonic())))

    def _beat(self) -> None:
        # NOTE: Looking for the answer to a ping calls this again.
        if not self._beating:
            self._beating = True
            try:
                for worker in self._workers:
                    worker.beat()
            finally:
                self._beating = False

    def _turn(self, scheduler: Connection) -> None:
        request = self._request()
        began = time.monotonic()
        hits = self._lookup(scheduler, request)
        chance = self._dice.random()
        if hits and chance < 0.85:
            self._load(scheduler, request, hits, began)
        elif hits and chance < 0.93:
            self._free(scheduler, request, 0, hits)
        else:
            self.diary.note(f"{request.id} does not use its {hits} hits")
        if self._dice.random() < 0.85:
            self._store(request, hits)
        if self._dice.random() < 0.9:
            scheduler.ask(m.EndSession(request.id))
        else:
            self._tally.add("sessions that were never ended")
        self._tally.add("turns")

    def _request(self) -> Request:
        place = int(len(self._prompts) * self._dice.random() ** 2)
        tokens: Tokens = self._prompts[place]
        request_id = f"{os.getpid()}-{next(_requests)}"
        return Request(request_id, tokens + (7,) * self._dice.randrange(CHUNK), self._dice.choice(SALTS))

    def _lookup(self, scheduler: Connection, request: Request) -> int:
        """The number of leading chunks that are there."""
        keyed = request.key(self.model, 0, request.chunks, None)
        if scheduler.ask(m.Lookup(keyed, NIL)) is not None:
            raise WrongError("a lookup is answered with a value")
        deadline = time.monotonic() + LIMIT
        waits = self._dice.random() < 0.3
        found = None
        while found is None:
            if time.monotonic() > deadline:
                raise WrongError(f"a lookup had no result within {LIMIT:g} s")
            asked = m.WaitPrefetchStatus(request.id, 1.0) if waits else m.QueryPrefetchStatus(request.id)
            found = scheduler.ask(asked)
            if found is None and not waits:
                time.sleep(0.01)
        if type(found) is not int or not 0 <= found <= request.chunks:
            raise WrongError(f"{found!r} of {request.chunks} chunks are hits")
        self._tally.add("chunks looked up", request.chunks)
        self._tally.add("chunks that were hits", found)
        self.diary.note(f"{request.id} {request.salt!r} {request.tokens[:2]} hits {found} of {request.chunks}")
        return found

    def _load(self, scheduler: Connection, request: Request, hits: int, began: float) -> None:
        """Gives the first chunks back at times, as an engine that has them itself, and retrieves the others."""
        start = self._dice.randrange(hits) if self._dice.random() < 0.2 else 0
        if start:
            self._free(scheduler, request, 0, start)
        skip = int(self._dice.random() < 0.1)
        waiting = [(worker, worker.retrieve(request, start, hits, skip)) for worker in self._workers]
        for worker, finish in waiting:
            done = finish()
            self.diary.note(f"{request.id} retrieves [{start}, {hits}) as {worker.instance_id}: {done}")
            self._tally.add("retrieves done" if done else "retrieves that failed")
            if not done:
                self._excuse(began, worker)

    def _excuse(self, began: float, worker: CopiedWorker | LentWorker) -> None:
        """A hit may fail only after its time, or where the server had reason to think the worker dead."""
        now = time.monotonic()
        if now - began < LEASE_TTL and now - worker.heard < WORKER_TIMEOUT:
            raise WrongError(f"a hit was no hit, {now - began:.2f} s after its lookup")

    def _free(self, scheduler: Connection, request: Request, start: int, end: int) -> None:
        scheduler.ask(m.FreeLookupLocks(request.key(self.model, start, end, None), NIL))

    def _store(self, request: Request, hits: int) -> None:
        """What was not there; now and then all of it, or not all."""
        start = 0 if self._dice.random() < 0.05 else hits
        end = request.chunks if self._dice.random() < 0.9 else self._dice.randint(start, request.chunks)
        if start < end:
            self.diary.note(f"{request.id} stores [{start}, {end})")
            for worker in self._workers:
                worker.start_store(request, start, end)
            for worker in self._workers:
                worker.finish_store()
