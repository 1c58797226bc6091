"""Where HTTP finds the engine, from the moment it is ready to the moment it is being stopped."""

from __future__ import annotations

from engine import Runtime


class EngineSlot:
    """Holds the running engine or nothing.

    The main thread fills and empties it, any thread looks into it: one reference is read or written at once.
    """

    def __init__(self) -> None:
        self._engine: Runtime | None = None

    def get(self) -> Runtime | None:
        """The engine, if HTTP may use it now."""
        return self._engine

    def fill(self, engine: Runtime) -> None:
        """From now on HTTP uses the engine."""
        self._engine = engine

    def empty(self) -> None:
        """From now on HTTP answers that there is none."""
        self._engine = None
