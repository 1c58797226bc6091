"""Processes that a test forks: to lose rights, to be limited, and to be killed at a moment of the test's choice.

They are forks since they start in milliseconds, which killing them at every moment needs.
"""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import signal
import warnings
from collections.abc import Callable, Sequence
from itertools import count
from multiprocessing.process import BaseProcess
from typing import Any

SYSTEM_CALLS = [
    (os, "close"),
    (os, "fsync"),
    (os, "ftruncate"),
    (os, "mkdir"),
    (os, "open"),
    (os, "pread"),
    (os, "pwrite"),
    (os, "pwritev"),
    (os, "rename"),
    (os, "unlink"),
    (fcntl, "flock"),
]
"""All by which an adapter changes a folder or what others know of it."""
KILLED = -signal.SIGKILL


def start(function: Callable[..., object], *arguments: Any) -> BaseProcess:
    """A child that runs the function. Its exit code is 1 if the function raises."""
    child = multiprocessing.get_context("fork").Process(target=function, args=arguments)
    with warnings.catch_warnings():
        # NOTE: Newer Pythons warn of forks of processes with threads; the children use none of what threads may hold.
        warnings.simplefilter("ignore", DeprecationWarning)
        child.start()
    return child


def run(function: Callable[..., object], *arguments: Any) -> int:
    """The exit code of a child that runs the function."""
    return ended(start(function, *arguments))


def ended(child: BaseProcess) -> int:
    child.join(60)
    if child.exitcode is None:
        child.kill()
        child.join()
        raise AssertionError("the child did not end")
    return child.exitcode


def run_and_die(call: int, function: Callable[..., object], *arguments: Any) -> bool:
    """Runs the function in a child that is killed instead of its system call number `call`, counted from 0; whether it
    came to that. Of a write of several buffers the first is still written."""

    def child() -> None:
        _die_at(call)
        function(*arguments)

    code = run(child)
    assert code in (0, KILLED)
    return code == KILLED


def _die_at(call: int) -> None:
    """In this process, for good."""
    numbers = count()
    for module, name in SYSTEM_CALLS:
        setattr(module, name, _dying(getattr(module, name), numbers, call))


def _dying(function: Callable[..., Any], numbers: count[int], call: int) -> Callable[..., Any]:
    def replacement(*arguments: Any, **keywords: Any) -> Any:
        if next(numbers) == call:
            if function.__name__ == "pwritev":
                _write_a_part(function, *arguments)
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **keywords)

    return replacement


def _write_a_part(function: Callable[..., Any], descriptor: int, buffers: Sequence[memoryview], offset: int) -> None:
    function(descriptor, buffers[:1], offset)
