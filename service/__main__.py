"""The composition root: arguments, settings, contract, HTTP, engine, signals, and the order of stopping."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Sequence
from queue import SimpleQueue
from types import FrameType

from engine import GIB, Runtime, l2_types, policy_names
from service import assets, cli, commands, live
from service.app import App, create_app
from service.appliers import disagreements
from service.config_watch import ConfigWatch
from service.configuration import ConfigSource, Configuration
from service.context import Context
from service.contract import ContractError
from service.document import Document, DocumentError
from service.engine_slot import EngineSlot
from service.file_state import file_state
from service.http_server import HttpServer, ListenError
from service.problems import ConfigError
from service.schema import Schema, compare_modules, load_schema
from service.settings import Settings

STOPPED, FAILED, REFUSED = 0, 1, 2

# The engine thread competes for the interpreter with waitress's threads, and waits for up to one interval each time
# that one of them runs Python code. At the default of 5 ms this shows in the p99 of lookups.
SWITCH_INTERVAL = 0.001

Stops = SimpleQueue[int | BaseException]
"""Why to stop: a signal's number, or what the engine died of. A SimpleQueue, since signal handlers put into it."""

log = logging.getLogger("kvkeep")


def main(argv: Sequence[str], *, validate_responses: bool = False) -> int:
    """Runs one command and returns its exit code."""
    arguments = cli.parse(argv)
    schema = load_schema(assets.schema_path())
    if arguments.command == "check-config":
        return _check_config(schema, arguments.file or "")
    try:
        _refuse_unknown_modules(schema)
        source = ConfigSource(schema, arguments.file, arguments.overrides, os.environ)
        if arguments.command == "show-config":
            print("\n".join(commands.show_config(schema, source.load())))
            return STOPPED
        slot = EngineSlot()
        config = _configuration(source, slot)
        watch = ConfigWatch(config)
        _catch_hangup(watch)
        document = Document.load(assets.openapi_path())
        app = create_app(Context(slot.get, document, config=config), validate_responses=validate_responses)
    except (ConfigError, ContractError, DocumentError) as error:
        print(f"kvkeep does not start.\n{error}", file=sys.stderr)
        return REFUSED
    return _serve(config.in_force.settings, app, slot, watch)


def run() -> None:
    """The console script."""
    sys.exit(main(sys.argv[1:]))


def _check_config(schema: Schema, file: str) -> int:
    problems = commands.check_config(schema, file, os.environ)
    print("\n".join(problems) or f"{file}: ok")
    return REFUSED if problems else STOPPED


def _refuse_unknown_modules(schema: Schema) -> None:
    differences = compare_modules(schema, policy_names(), l2_types())
    if differences:
        raise ContractError(differences)


def _configuration(source: ConfigSource, slot: EngineSlot) -> Configuration:
    seen, settings = file_state(source.file), source.load()
    appliers = live.appliers(slot.get, settings.engine.l1_size)  # type: ignore[arg-type]
    wrong = disagreements(source.schema, appliers)
    if wrong:
        raise ContractError(wrong)
    return Configuration(source, settings, seen, appliers, lambda: slot.get() is not None)


def _serve(settings: Settings, app: App, slot: EngineSlot, watch: ConfigWatch) -> int:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    sys.setswitchinterval(SWITCH_INTERVAL)
    stops: Stops = SimpleQueue()
    _catch_signals(stops)
    try:
        http = HttpServer(app, settings.http.host, settings.http.port, settings.http.threads, stops.put)
    except ListenError as error:
        print(f"kvkeep does not start.\n{error}", file=sys.stderr)
        return FAILED
    http.start()
    watch.start()
    try:
        return _serve_engine(settings, http, slot, stops)
    finally:
        watch.stop()
        http.stop()


def _serve_engine(settings: Settings, http: HttpServer, slot: EngineSlot, stops: Stops) -> int:
    try:
        engine = Runtime(settings.engine, stops.put, StartProgress(settings.engine.l1_size, stops))
    except StoppedError:
        return _exit_code(stops.get())
    # NOTE: Whatever it is, it must be seen by probes and in the log rather than end the process; HTTP stays up, so
    # that probes tell of the failure until somebody decides.
    except Exception:
        log.exception("the engine could not be initialised; HTTP goes on answering that it is not there")
        stops.get()
        return FAILED
    slot.fill(engine)
    try:
        print(f"kvkeep ready {engine.endpoint} {http.url}", flush=True)
        return _exit_code(stops.get())
    finally:
        slot.empty()
        engine.stop()


class StoppedError(Exception):
    """The start was given up, since somebody asked to stop."""


class StartProgress:
    """Logs how far the allocation of L1 is, a tenth at a time, and gives the start up when a stop is asked for."""

    def __init__(self, size: int, stops: Stops) -> None:
        self._size = size
        self._stops = stops
        self._tenths = 0

    def __call__(self, done: int) -> None:
        """Raises StoppedError."""
        if not self._stops.empty():
            raise StoppedError
        tenths = 10 * done // self._size
        if tenths > self._tenths:
            self._tenths = tenths
            log.info("L1: %.1f of %.1f GiB allocated", done / GIB, self._size / GIB)


def _exit_code(reason: int | BaseException) -> int:
    if isinstance(reason, BaseException):
        log.critical("stopping, since a thread ended by itself", exc_info=reason)
        return FAILED
    log.info("stopping on %s", signal.Signals(reason).name)
    return STOPPED


def _catch_hangup(watch: ConfigWatch) -> None:
    def handle(number: int, frame: FrameType | None) -> None:
        watch.hang_up()

    # NOTE: As early as can be: what is not caught ends the process.
    signal.signal(signal.SIGHUP, handle)


def _catch_signals(stops: Stops) -> None:
    def handle(number: int, frame: FrameType | None) -> None:
        stops.put(number)

    signal.signal(signal.SIGTERM, handle)
    signal.signal(signal.SIGINT, handle)


if __name__ == "__main__":
    run()
