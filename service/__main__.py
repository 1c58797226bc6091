"""The composition root: arguments, settings, contract, HTTP, engine, signals, and the order of stopping."""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from queue import Empty, SimpleQueue
from types import FrameType
from typing import NoReturn

from engine import EngineSettings, Runtime, StartError, Supervisor, l2_types, policy_names
from service import assets, cli, commands, descriptors, live, probes, stopping
from service.access import AccessControl, exposures
from service.allocation import StartProgress, StoppedError
from service.app import App, create_app
from service.appliers import disagreements
from service.config_watch import ConfigWatch
from service.configuration import ConfigSource, Configuration
from service.context import Context
from service.contract import ContractError
from service.document import Document, DocumentError
from service.file_state import file_state
from service.http_server import HttpServer, ListenError
from service.lifecycle import Lifecycle
from service.logs import Logs
from service.problems import ConfigError
from service.schema import Schema, compare_modules, load_schema
from service.settings import Settings
from service.simulate.options import Simulation
from service.systemd import Notifier

STOPPED, FAILED, REFUSED = 0, 1, 2
INTERRUPTED = 128 + signal.SIGINT

# The engine thread competes for the interpreter with waitress's threads, and waits for up to one interval each time
# that one of them runs Python code. At the default of 5 ms this shows in the p99 of lookups.
SWITCH_INTERVAL = 0.001

Stops = SimpleQueue[int | BaseException]
"""Why to stop: a signal's number, or what the engine died of. A SimpleQueue, since signal handlers put into it."""

log = logging.getLogger("kvkeep")


def main(argv: Sequence[str], *, validate_responses: bool = False) -> int:
    """Runs one command and returns its exit code."""
    arguments = cli.parse(argv)
    if arguments.simulation is not None:
        return _simulate(arguments.simulation)
    # PERF: What a start makes stays, so looking through it again and again for garbage takes a tenth of the start; and
    # once it is frozen, no later search pauses the engine thread for it.
    gc.disable()
    try:
        return _run(arguments, validate_responses=validate_responses)
    finally:
        gc.enable()


def _run(arguments: cli.Arguments, *, validate_responses: bool) -> int:
    schema = load_schema(assets.schema_path())
    if arguments.command == "check-config":
        return _check_config(schema, arguments.file or "")
    try:
        _refuse_unknown_modules(schema)
        source = ConfigSource(schema, arguments.file, arguments.overrides, os.environ)
        if arguments.command == "show-config":
            print("\n".join(commands.show_config(schema, source.load())))
            return STOPPED
        settings = source.load()
        lifecycle, logs, access = Lifecycle(), Logs(settings.log.level), AccessControl(settings.http.policy)
        config = _configuration(source, settings, lifecycle, logs, access)
        supervisor = Supervisor()
        watch = ConfigWatch(config, supervisor=supervisor)
        _catch_hangup(watch)
        document = Document.load(assets.openapi_path())
        context = Context(lifecycle.engine, document, lifecycle, access, logs, config)
        app = create_app(context, validate_responses=validate_responses)
    except (ConfigError, ContractError, DocumentError) as error:
        print(f"kvkeep does not start.\n{error}", file=sys.stderr)
        return REFUSED
    gc.freeze()
    gc.enable()
    with logs.written(sys.stderr, settings.log.format):
        return _serve(settings, app, lifecycle, watch, supervisor)


def run() -> None:
    """The console script."""
    leave(main(sys.argv[1:]))


def leave(code: int) -> NoReturn:
    """Ends the process, also where a thread does not end: the interpreter would wait for it for ever."""
    stuck = [each.name for each in threading.enumerate() if not each.daemon and each is not threading.main_thread()]
    if not stuck:
        sys.exit(code)
    log.critical("leaving threads behind that do not end: %s", ", ".join(stuck))
    logging.shutdown()
    sys.stdout.flush()
    os._exit(FAILED)


def _check_config(schema: Schema, file: str) -> int:
    checked = commands.check_config(schema, file, os.environ)
    print("\n".join(checked.problems) or f"{file}: ok")
    for warning in checked.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    return REFUSED if checked.problems else STOPPED


def _simulate(asked: Simulation) -> int:
    # PERF: Imported here, since a server has no use for it.
    from service.simulate.command import SimulationError, run

    try:
        run(asked, sys.stdout, sys.stderr)
    except SimulationError as error:
        print(f"kvkeep simulate: {error}", file=sys.stderr)
        return REFUSED
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # Who read the output has enough. The interpreter must not try to write the rest when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return STOPPED


def _refuse_unknown_modules(schema: Schema) -> None:
    differences = compare_modules(schema, policy_names(), l2_types())
    if differences:
        raise ContractError(differences)


def _configuration(
    source: ConfigSource, settings: Settings, lifecycle: Lifecycle, logs: Logs, access: AccessControl
) -> Configuration:
    largest = settings.engine.l1_max_size or settings.engine.l1_size
    appliers = live.appliers(lifecycle.engine, largest, logs, access)
    wrong = disagreements(source.schema, appliers)
    if wrong:
        raise ContractError(wrong)
    return Configuration(source, settings, file_state(source.file), appliers, lambda: lifecycle.engine() is not None)


def _serve(settings: Settings, app: App, lifecycle: Lifecycle, watch: ConfigWatch, supervisor: Supervisor) -> int:
    sys.setswitchinterval(SWITCH_INTERVAL)
    few = descriptors.raise_limit()
    stops: Stops = SimpleQueue()
    _catch_signals(stops)
    try:
        http = HttpServer(app, settings.http.host, settings.http.port, settings.http.threads, stops.put, supervisor)
    except ListenError as error:
        print(f"kvkeep does not start.\n{error}", file=sys.stderr)
        return FAILED
    for warning in (
        *([few] if few else []),
        *settings.warnings,
        *exposures(settings.http.policy, http.host, settings.engine.host),
    ):
        log.warning("%s", warning)
    http.start()
    watch.start()
    try:
        return _serve_engine(settings, http, lifecycle, supervisor, stops)
    finally:
        watch.stop()
        http.stop()


def _serve_engine(
    settings: Settings, http: HttpServer, lifecycle: Lifecycle, supervisor: Supervisor, stops: Stops
) -> int:
    notifier = Notifier(os.environ)
    try:
        engine = _start(settings.engine, lifecycle, supervisor, notifier, stops)
    except StoppedError:
        _begin_to_stop(lifecycle, notifier)
        return _exit_code(stops.get())
    if engine is None:
        stops.get()
        _begin_to_stop(lifecycle, notifier)
        return FAILED
    lifecycle.run(engine)
    try:
        print(f"kvkeep ready {engine.endpoint} {http.url}", flush=True)
        notifier.ready(f"serving {engine.endpoint} {http.url}")
        reason = _next_stop(stops, notifier, lifecycle)
        if isinstance(reason, BaseException):
            lifecycle.fail(reason)
        else:
            _begin_to_stop(lifecycle, notifier)
            stopping.drain(engine, settings.engine.drain_timeout, lambda: not stops.empty())
    finally:
        stopped = stopping.stop(engine)
    return _exit_code(reason) if stopped else FAILED


def _start(
    settings: EngineSettings, lifecycle: Lifecycle, supervisor: Supervisor, notifier: Notifier, stops: Stops
) -> Runtime | None:
    """The started engine, or None if that failed. Raises StoppedError."""
    progress = StartProgress(
        settings.l1_size,
        lambda: not stops.empty(),
        lifecycle.allocated,
        lambda line: notifier.status(f"starting: {line}"),
        time.monotonic,
    )
    try:
        return Runtime(settings, stops.put, progress, supervisor)
    except StoppedError:
        raise
    # NOTE: Whatever it is, it must be seen by probes and in the log rather than end the process; HTTP stays up, so
    # that probes tell of the failure until somebody decides.
    except Exception as error:
        log.error(
            "the engine could not be initialised; HTTP goes on answering that it is not there: %s",
            str(error),
            exc_info=not isinstance(error, StartError),
        )
        lifecycle.fail(error)
        notifier.status(f"failed: {lifecycle.state.failure}")
        return None


def _next_stop(stops: Stops, notifier: Notifier, lifecycle: Lifecycle) -> int | BaseException:
    """Waits for a reason to stop, and meanwhile tells the watchdog that all is well, as long as it is."""
    while True:
        state = lifecycle.state
        if notifier.watchdog_interval is not None and not probes.live(state, state.report()):
            notifier.alive()
        try:
            return stops.get(timeout=notifier.watchdog_interval)
        except Empty:
            continue


def _begin_to_stop(lifecycle: Lifecycle, notifier: Notifier) -> None:
    lifecycle.stop()
    notifier.stopping("stopping")


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
