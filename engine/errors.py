"""The closed list of refusals an operator's call can meet. `service/errors.py` maps each to an HTTP status."""

from __future__ import annotations


class EngineError(Exception):
    """Base of every refusal below; the message is fit to be shown to an operator."""


class StartError(EngineError):
    """The engine could not be started: port taken, shared memory too small, unknown policy. Names the remedy."""


class EngineStoppedError(EngineError):
    """The engine thread has ended or is ending; the command was not carried out."""


class NoMemoryError(EngineError):
    """L1 cannot be grown: the memory is not there, or the segment not long enough. Names the remedy."""


class QuotaError(EngineError):
    """A quota that cannot be: more is reserved than there is. Names the numbers."""


class PinError(EngineError):
    """A prefix cannot be pinned: it has no complete chunk, or the budget does not suffice. Names the numbers."""


class RecordingError(EngineError):
    """The traffic cannot be recorded: no folder is configured, or it cannot be written. Names the remedy."""


class TierError(EngineError):
    """A tier of L2 cannot do what is asked of it now. Says why."""


class PrefetchError(EngineError):
    """Nothing can be loaded from L2: there is no tier, or no worker whose layout is known. Names the remedy."""


class AmbiguousError(EngineError):
    """A question that fits several things; the message says what to add to it."""


class EngineTimeoutError(EngineError):
    """The engine thread did not answer a command in time; the command may still be carried out."""


class EngineStuckError(EngineError):
    """A thread does not end when it is told to stop. Only the end of the process ends it."""
