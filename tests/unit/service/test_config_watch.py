"""The watch on the file, and SIGHUP: when they reload, and when they leave it."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine import GIB
from service.config_watch import ConfigWatch
from service.configuration import ConfigSource, Configuration
from service.file_state import FileState, Settling, file_state
from service.settings import Settings
from tests.support.configuration import SCHEMA, TunedEngine, configuration
from tests.support.polling import until

INTERVAL = 0.01

A, B, C = (FileState("/f", inode, 10, 5) for inode in (1, 2, 3))


@pytest.mark.parametrize(
    ("looks", "known", "settled"),
    [
        ([A, A, A], A, [False, False, False]),
        ([A, B, B], A, [False, False, True]),
        ([B, C, B, C, C], A, [False, False, False, False, True]),
        ([B, A, B, A, A], A, [False, False, False, False, False]),
        ([None, None], A, [False, True]),
        ([None, B, B], A, [False, False, True]),
        ([None, None], None, [False, False]),
    ],
)
def test_a_change_is_settled_when_two_looks_agree(looks, known, settled) -> None:
    settling = Settling(known)
    assert [settling.look(state, known) for state in looks] == settled


def test_what_was_read_by_somebody_else_meanwhile_is_no_change() -> None:
    settling = Settling(A)
    assert not settling.look(B, A)
    assert not settling.look(B, B)


def test_every_way_to_change_a_file_changes_its_state(tmp_path: Path) -> None:
    first, other, link = tmp_path / "a", tmp_path / "b", tmp_path / "link"
    first.write_text("one")
    other.write_text("one")
    link.symlink_to(first)
    states = [file_state(str(link))]

    def changed(what: str) -> None:
        state = file_state(str(link))
        assert state not in states, what
        states.append(state)

    first.write_text("three")
    changed("its length")
    os.utime(first, ns=(0, 5))
    changed("its time")
    replacement = tmp_path / "new"
    replacement.write_text("three")
    os.utime(replacement, ns=(0, 5))
    replacement.rename(first)
    changed("its inode")
    other.unlink()
    other.hardlink_to(first)
    link.unlink()
    link.symlink_to(other)
    changed("where it leads, even to the same file by another name")
    other.unlink()
    changed("that it is gone")


def test_links_in_a_circle_are_no_file(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    assert file_state(str(tmp_path / "a")) is None
    assert file_state(None) is None


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "kvkeep.yaml"
    path.write_text("l1: {size: 2GiB}\n")
    return path


@pytest.fixture
def watch() -> Iterator[object]:
    """Starts a watch over a configuration, and ends it with the test."""
    started: list[ConfigWatch] = []

    def start(config: Configuration, interval: float = INTERVAL) -> ConfigWatch:
        started.append(ConfigWatch(config, interval))
        started[-1].start()
        return started[-1]

    yield start
    for each in started:
        each.stop()
        assert not each._thread.is_alive()


def outcome(config: Configuration) -> tuple[str, str]:
    return config.in_force.report.trigger, config.in_force.report.outcome


def test_a_changed_file_is_reloaded(file: Path, watch) -> None:
    engine = TunedEngine()
    config = configuration(file, engine)
    watch(config)
    file.write_text("l1: {size: 3GiB}\n")
    until(lambda: outcome(config) == ("watch", "applied"), "the reload")
    assert engine.calls == [("resize_l1", 3 * GIB)]


def test_the_watch_runs_on_a_thread_of_its_own(file: Path, watch) -> None:
    assert watch(configuration(file, None))._thread.is_alive()
    assert "config-watch" in {thread.name for thread in threading.enumerate()}


class Source:
    """Counts how often it is read, and fails when it is told to."""

    def __init__(self, file: Path) -> None:
        self.schema, self.file, self.loads = SCHEMA, str(file), 0
        self.defect: Exception | None = None

    def load(self) -> Settings:
        self.loads += 1
        if self.defect is not None:
            raise self.defect
        return ConfigSource(SCHEMA, self.file, (), {}).load()


def counted(file: Path, ready: list[bool]) -> tuple[Configuration, Source]:
    source = Source(file)
    return Configuration(source, source.load(), file_state(source.file), (), lambda: bool(ready)), source


def test_a_file_that_stays_wrong_is_read_and_logged_once(file: Path, watch, caplog) -> None:
    config, source = counted(file, [True])
    watch(config)
    file.write_text("l1: {sise: 3GiB}\n")
    until(lambda: outcome(config) == ("watch", "invalid"), "the refusal")
    looked_on(config, watch)
    assert (source.loads, len(caplog.records)) == (2, 1)


def looked_on(config: Configuration, watch) -> None:
    """Returns after a few more looks: a second watch has seen a second file in the meantime."""
    other = Path(config.file or "").with_name("other.yaml")
    other.write_text("l1: {size: 2GiB}\n")
    beside = configuration(other, TunedEngine())
    watch(beside)
    for size in ("3GiB", "4GiB"):
        other.write_text(f"l1: {{size: {size}}}\n")
        until(lambda size=size: beside.in_force.report.message.find(f"-> {size}") > 0, "the other file's reload")


def test_what_a_request_has_reloaded_is_not_read_again(file: Path, watch) -> None:
    config, source = counted(file, [True])
    watch(config)
    file.write_text("# a comment\n" + file.read_text())
    config.reload("request", wait=True)
    looked_on(config, watch)
    assert source.loads in (2, 3), "the watch may have been first"
    assert outcome(config)[1] == "unchanged"


def test_sighup_reloads_at_once_and_every_time(file: Path, watch) -> None:
    config, source = counted(file, [True])
    running = watch(config, interval=600.0)
    running.hang_up()
    until(lambda: outcome(config) == ("signal", "unchanged"), "the reload")
    running.hang_up()
    until(lambda: source.loads == 3, "the next")


def test_before_the_engine_is_ready_sighup_waits_for_it(file: Path, watch) -> None:
    ready: list[bool] = []
    config, source = counted(file, ready)
    watch(config).hang_up()
    looked_on(config, watch)
    assert source.loads == 1
    ready.append(True)
    until(lambda: outcome(config) == ("signal", "unchanged"), "the reload")
    looked_on(config, watch)
    assert source.loads == 2


def test_a_file_that_changes_before_the_engine_is_ready_is_reloaded_then(file: Path, watch) -> None:
    ready: list[bool] = []
    config, _ = counted(file, ready)
    watch(config)
    file.write_text("# moved\nl1: {size: 2GiB}\n")
    looked_on(config, watch)
    ready.append(True)
    until(lambda: outcome(config) == ("watch", "unchanged"), "the reload")


def test_without_a_file_sighup_is_told_in_the_log_and_the_watch_lives_on(watch, caplog) -> None:
    running = watch(configuration(None, TunedEngine()))
    running.hang_up()
    until(lambda: "SIGHUP has no effect: the server was started without --config" in caplog.text, "the line")
    assert running._thread.state == "running"


def test_a_defect_does_not_end_the_watch(file: Path, watch, caplog) -> None:
    config, source = counted(file, [True])
    source.defect = RecursionError("a defect")
    running = watch(config)
    running.hang_up()
    until(lambda: "a defect" in caplog.text, "the log")
    running.hang_up()
    until(lambda: caplog.text.count("RecursionError: a defect") == 2, "the second")
    assert running._thread.is_alive()
