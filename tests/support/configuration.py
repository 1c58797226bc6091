"""A configuration over a real file, with an engine that does what live settings ask of it, or refuses."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from engine import EngineError, L2Settings
from service import assets, live
from service.access import AccessControl
from service.appliers import Applier
from service.configuration import ConfigSource, Configuration
from service.file_state import file_state
from service.logs import Logs
from service.schema import Schema, load_schema
from service.settings import Override

LARGEST_L1 = 1 << 40

SCHEMA = load_schema(assets.schema_path())


class TunedEngine:
    """Remembers every call; refuses those that it has a reason for, by the name of the method."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, object]] = []
        self.refusals: dict[str, Exception] = {}

    def resize_l1(self, size: int) -> None:
        """Takes the size."""
        self._call("resize_l1", size)

    def change_policy(self, name: str) -> None:
        """Takes the policy."""
        self._call("change_policy", name)

    def configure_tiers(self, tiers: tuple[L2Settings, ...]) -> None:
        """Takes the tiers."""
        self._call("configure_tiers", [tier.name for tier in tiers])

    def set_advisor(self, enabled: bool) -> None:
        """Takes it."""
        self._call("set_advisor", enabled)

    def record(self, enabled: bool) -> None:
        """Takes it."""
        self._call("record", enabled)

    def refuse(self, method: str, reason: str) -> None:
        """From now on the method fails as the real one would."""
        self.refusals[method] = EngineError(reason)

    def _call(self, method: str, value: object) -> None:
        self.calls.append((method, value))
        if method in self.refusals:
            raise self.refusals[method]


def configuration(
    file: Path | None,
    engine: TunedEngine | None,
    *overrides: Override,
    environ: dict[str, str] | None = None,
    schema: Schema = SCHEMA,
    appliers: Sequence[Applier] | None = None,
) -> Configuration:
    """The configuration of a server started with a file, over an engine that is there or not."""
    if appliers is None:
        appliers = live.appliers(lambda: engine, LARGEST_L1, Logs(), AccessControl())
    source = ConfigSource(schema, None if file is None else str(file), overrides, environ or {})
    seen = file_state(source.file)
    return Configuration(source, source.load(), seen, appliers, lambda: engine is not None)


def reloadable(folder: Path) -> list[Configuration]:
    """Configurations in each state that a reload can find: nothing differs, a restart is needed, the file is wrong, and
    there is no engine."""
    states = {"same": "", "restart": "server: {port: 1}\n", "invalid": "sever: {}\n", "not_ready": ""}
    return [_changed(folder / f"{name}.yaml", text, name) for name, text in states.items()]


def _changed(file: Path, text: str, name: str) -> Configuration:
    file.write_text("")
    found = configuration(file, None if name == "not_ready" else TunedEngine())
    file.write_text(text)
    return found
