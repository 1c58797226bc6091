"""Workers in processes of their own, as tensor-parallel ranks are: own sockets, own tensors, own heartbeat."""

from __future__ import annotations

import itertools
import multiprocessing
import traceback
from multiprocessing.connection import Connection
from typing import Any

from tests.support.shm import remove_segments_of

START_TIMEOUT = 60.0
CALL_TIMEOUT = 60.0
STOP_TIMEOUT = 20.0


class WorkerHost:
    """A process that holds any number of workers and runs their methods on request."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, other = context.Pipe()
        self._numbers = itertools.count()
        self.process = context.Process(target=_serve, args=(other,))
        self.process.start()
        other.close()

    def worker(self, *arguments: Any, **options: Any) -> RemoteWorker:
        """A new ``client.Worker`` made in that process."""
        number = next(self._numbers)
        self.begin(number, "__init__", arguments, options)
        self.finish(START_TIMEOUT)
        return RemoteWorker(self, number)

    def begin(self, number: int, method: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        self._connection.send((number, method, arguments, options))

    def finish(self, timeout: float = CALL_TIMEOUT) -> Any:
        """The result of the oldest call begun and not finished yet; its failure is raised here."""
        assert self._connection.poll(timeout), f"no result from worker process {self.process.pid}"
        result, failure = self._connection.recv()
        assert failure is None, f"in worker process {self.process.pid}:\n{failure}"
        return result

    def kill(self) -> None:
        """End the process with no chance to unregister anything."""
        self.process.kill()
        self._gone()

    def close(self) -> None:
        """Let every worker unregister, then end the process."""
        if self.process.is_alive():
            self._connection.send(None)
        self.process.join(STOP_TIMEOUT)
        if self.process.is_alive():
            self.process.kill()
        self._gone()

    def _gone(self) -> None:
        self.process.join()
        self._connection.close()
        assert self.process.pid is not None
        remove_segments_of(self.process.pid)


class RemoteWorker:
    """The methods of one ``client.Worker`` that lives in another process."""

    def __init__(self, host: WorkerHost, number: int) -> None:
        self.host = host
        self._number = number

    def fill(self, blocks: list[int]) -> list[bytes]:
        return self._call("fill", blocks)

    def contents(self, blocks: list[int]) -> list[bytes]:
        return self._call("contents", blocks)

    def store(self, *arguments: Any, **options: Any) -> bool:
        return self._call("store", *arguments, **options)

    def retrieve(self, *arguments: Any, **options: Any) -> bool:
        return self._call("retrieve", *arguments, **options)

    def close(self) -> None:
        self._call("close")

    def begin(self, method: str, *arguments: Any, **options: Any) -> None:
        """Start a method and return at once, so that ranks work at the same time; ``host.finish`` gives the result."""
        self.host.begin(self._number, method, arguments, options)

    def _call(self, method: str, *arguments: Any, **options: Any) -> Any:
        self.begin(method, *arguments, **options)
        return self.host.finish()


def together(workers: list[RemoteWorker], method: str, *arguments: Any, **options: Any) -> list[Any]:
    """Run the same method in several processes at once, and return the results in the order of ``workers``."""
    for worker in workers:
        worker.begin(method, *arguments, **options)
    return [worker.host.finish() for worker in workers]


def _serve(connection: Connection) -> None:
    """The loop of a worker process: one call at a time, until told to end."""
    from tests.interop.client import Worker, use_one_thread

    use_one_thread()
    workers: dict[int, Worker] = {}
    while (call := connection.recv()) is not None:
        number, method, arguments, options = call
        try:
            if method == "__init__":
                workers[number] = Worker(*arguments, **options)
                result = None
            else:
                result = getattr(workers[number], method)(*arguments, **options)
                if method == "close":
                    del workers[number]
            connection.send((result, None))
        except Exception:
            connection.send((None, traceback.format_exc()))
    for worker in workers.values():
        worker.close()
