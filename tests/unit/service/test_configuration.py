"""Reloading: all that differs or nothing, whoever asks, and what is kept of it."""

from __future__ import annotations

import copy
import threading
from pathlib import Path

import pytest

from engine import GIB, EngineStoppedError
from service import live
from service.access import AccessControl
from service.appliers import Applier, ApplyError, Step, apply_all, disagreements, setter
from service.configuration import (
    BusyError,
    Configuration,
    NoFileError,
    NotReadyError,
    Reloaded,
    RestartNeededError,
)
from service.logs import Logs
from service.problems import ConfigError, Problem
from service.settings import Override
from tests.support.configuration import LARGEST_L1, SCHEMA, TunedEngine, configuration


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "kvkeep.yaml"
    path.write_text("l1: {size: 2GiB}\n")
    return path


def value(config: Configuration, setting: str) -> object:
    [found] = [each for each in config.in_force.settings.listing if ".".join(map(str, each.path)) == setting]
    return found.value


def summary(config: Configuration) -> tuple[str, str]:
    return config.in_force.report.trigger, config.in_force.report.outcome


def test_the_start_counts_as_a_reading(file: Path) -> None:
    config = configuration(file, None)
    assert summary(config) == ("start", "applied")
    assert config.in_force.report.is_success
    assert config.in_force.report.at > 1.7e9


def test_a_change_is_applied_and_shown(file: Path) -> None:
    engine = TunedEngine()
    config = configuration(file, engine)
    file.write_text("# moved\nl1: {size: 3GiB}\n")
    done = config.reload("request")
    assert (done.is_applied, [each.new for each in done.changes]) == (True, ["3GiB"])
    assert engine.calls == [("resize_l1", 3 * GIB)]
    assert config.in_force.settings.engine.l1_size == 3 * GIB
    assert summary(config) == ("request", "applied")
    assert config.in_force.report.message == f"l1.size: 2GiB -> 3GiB ({file}:2)"


def test_a_switch_by_request_holds_until_a_reload_changes_the_setting(file: Path) -> None:
    file.write_text("recording: {folder: traces}\n")
    engine = TunedEngine()
    config = configuration(file, engine)
    file.write_text("recording: {folder: traces}\nlog: {level: debug}\n")
    config.reload("request")
    assert engine.calls == []
    file.write_text("recording: {folder: traces, enabled: true}\nadvisor: {enabled: false}\n")
    config.reload("request")
    assert sorted(engine.calls) == [("record", True), ("set_advisor", False)]


def test_tiers_come_and_go_with_the_file_and_stay_where_they_cannot_be_changed(file: Path) -> None:
    engine = TunedEngine()
    config = configuration(file, engine)
    for text, names in (("l2: [{type: memory}, {type: memory, name: far}]", ["memory", "far"]), ("", [])):
        file.write_text(f"l1: {{size: 2GiB}}\n{text}")
        config.reload("request")
        assert engine.calls.pop() == ("configure_tiers", names)
    engine.refuse("configure_tiers", "the L2 tier 'far' is required and could not be opened")
    file.write_text("l1: {size: 2GiB}\nl2: [{type: memory, name: far, required: true}]")
    with pytest.raises(ApplyError, match="l2 could not be changed: the L2 tier 'far' is required"):
        config.reload("request")
    assert config.in_force.settings.engine.l2 == ()


def test_without_a_difference_nothing_is_applied_but_the_origins_are_new(file: Path) -> None:
    engine = TunedEngine()
    config = configuration(file, engine)
    file.write_text("\n\nl1: {size: 2048MiB}\n")
    assert config.reload("watch") == Reloaded(True, ())
    assert engine.calls == []
    assert summary(config) == ("watch", "unchanged")
    assert config.in_force.report.is_success
    assert {each.origin.label for each in config.in_force.settings.listing} == {"default", f"{file}:3"}


def test_a_dry_run_says_what_differs_and_does_nothing(file: Path) -> None:
    engine = TunedEngine()
    config = configuration(file, engine)
    before = config.in_force
    file.write_text("l1: {size: 3GiB}\nserver: {port: 1}\n")
    done = config.reload("request", dry_run=True)
    assert (done.is_applied, [each.is_live for each in done.changes]) == (False, [False, True])
    assert engine.calls == []
    assert config.in_force is before


def test_one_change_that_needs_a_restart_holds_back_all_and_each_is_named(file: Path) -> None:
    engine = TunedEngine()
    config = configuration(file, engine)
    file.write_text("l1: {size: 3GiB}\nserver: {port: 1, chunk_size: 16}\n")
    with pytest.raises(RestartNeededError, match=r"server\.port is .*; server\.chunk_size is ") as caught:
        config.reload("signal")
    assert "l1.size" not in str(caught.value)
    assert len(caught.value.changes) == 3
    assert engine.calls == []
    assert (value(config, "l1.size"), value(config, "server.port")) == ("2GiB", 5555)
    assert config.in_force.pending == caught.value.changes
    assert (summary(config), config.in_force.report.is_success) == (("signal", "restart_needed"), False)


def test_what_was_pending_is_forgotten_with_the_next_reload(file: Path) -> None:
    config = configuration(file, TunedEngine())
    file.write_text("server: {port: 1}\n")
    with pytest.raises(RestartNeededError):
        config.reload("watch")
    file.write_text("l1: {size: 2GiB}\n")
    config.reload("watch")
    assert config.in_force.pending == ()


def test_what_a_change_leaves_open_is_warned_of_as_at_the_start(file: Path, caplog) -> None:
    file.write_text("http: {host: 0.0.0.0}\n")
    config = configuration(file, TunedEngine())
    file.write_text("http: {host: 0.0.0.0, allow_unauthenticated: true}\n")
    config.reload("watch")
    assert (
        "the HTTP API listens on 0.0.0.0 without tokens: who reaches it can read everything and change" in caplog.text
    )
    caplog.clear()
    config.reload("watch")
    assert "without tokens" not in caplog.text


def test_more_than_l1_can_grow_to_needs_a_restart(file: Path) -> None:
    engine = TunedEngine()
    config = configuration(file, engine, appliers=live.appliers(lambda: engine, 3 * GIB, Logs(), AccessControl()))
    file.write_text("l1: {size: 3073MiB}\n")
    with pytest.raises(RestartNeededError, match=f"l1.size is more than the {3 * GIB} bytes that L1 can grow to"):
        config.reload("request")
    assert engine.calls == []
    file.write_text("l1: {size: 3GiB}\n")
    assert config.reload("request").is_applied


def test_an_invalid_file_changes_nothing_and_every_problem_is_told(file: Path, caplog) -> None:
    engine = TunedEngine()
    config = configuration(file, engine)
    file.write_text("l1: {size: 3GiB}\nserver:\n  port: x\n  prot: 2\n")
    with pytest.raises(ConfigError) as caught:
        config.reload("watch")
    assert len(caught.value.problems) == 2
    assert engine.calls == []
    assert (value(config, "l1.size"), summary(config)) == ("2GiB", ("watch", "invalid"))
    assert f"{file}:3: server.port: must be a whole number" in caplog.text
    assert f"{file}:4: server.prot: unknown key" in caplog.text
    assert len(caplog.records) == 1


def test_a_file_that_is_gone_changes_nothing(file: Path) -> None:
    config = configuration(file, TunedEngine())
    file.unlink()
    with pytest.raises(ConfigError, match="cannot be read"):
        config.reload("watch")
    assert value(config, "l1.size") == "2GiB"


def test_a_wrong_value_of_the_environment_is_told_without_it(file: Path, caplog) -> None:
    config = configuration(file, TunedEngine(), environ={"SECRET": "hunter2"})
    file.write_text("server: {port: '${SECRET}'}\n")
    with pytest.raises(ConfigError):
        config.reload("watch")
    assert "server.port: must be a whole number" in caplog.text
    assert "hunter2" not in caplog.text + config.in_force.report.message


def test_flags_win_over_the_file_as_at_the_start(file: Path) -> None:
    engine = TunedEngine()
    config = configuration(file, engine, Override("--l1-size-gb", "l1", "size", GIB))
    file.write_text("l1: {size: 5GiB, eviction_policy: hit_density}\n")
    assert config.reload("signal").changes == ()
    assert config.in_force.settings.engine.l1_size == GIB


def test_a_refusal_of_the_engine_changes_nothing_and_says_why(file: Path) -> None:
    engine = TunedEngine()
    engine.refuse("resize_l1", "/dev/shm is full")
    config = configuration(file, engine)
    file.write_text("l1: {size: 3GiB}\n")
    with pytest.raises(ApplyError, match=r"^l1\.size could not be changed: /dev/shm is full$"):
        config.reload("request")
    assert (value(config, "l1.size"), summary(config)) == ("2GiB", ("request", "failed"))


def test_after_a_failure_the_same_file_can_be_reloaded(file: Path) -> None:
    engine = TunedEngine()
    engine.refuse("resize_l1", "no room")
    config = configuration(file, engine)
    file.write_text("l1: {size: 3GiB}\n")
    with pytest.raises(ApplyError):
        config.reload("request")
    engine.refusals.clear()
    assert config.reload("request").is_applied
    assert config.in_force.settings.engine.l1_size == 3 * GIB


def test_what_was_applied_before_a_failure_is_taken_back(file: Path) -> None:
    engine = TunedEngine()
    engine.refuse("resize_l1", "no room")
    config = configuration(file, engine)
    file.write_text("l1: {size: 3GiB, eviction_policy: fifo}\n")
    with pytest.raises(ApplyError, match=r"^l1\.size could not be changed: no room$"):
        config.reload("request")
    assert engine.calls == [("change_policy", "fifo"), ("resize_l1", 3 * GIB), ("change_policy", "hit_density")]
    assert (value(config, "l1.size"), value(config, "l1.eviction_policy")) == ("2GiB", "hit_density")


class Stubborn(TunedEngine):
    """Can be changed once, and then neither on nor back."""

    def change_policy(self, name: str) -> None:
        super().change_policy(name)
        self.refuse("change_policy", "no way back")


def test_what_cannot_be_taken_back_is_shown_as_it_is(file: Path, caplog) -> None:
    engine = Stubborn()
    engine.refuse("resize_l1", "no room")
    config = configuration(file, engine)
    file.write_text("l1: {size: 3GiB, eviction_policy: fifo}\n")
    with pytest.raises(ApplyError, match=r"l1\.eviction_policy could not be changed back and keeps the new value$"):
        config.reload("request")
    assert (value(config, "l1.size"), value(config, "l1.eviction_policy")) == ("2GiB", "fifo")
    assert "l1.eviction_policy could not be changed back" in caplog.text


def test_a_defect_while_applying_is_logged_and_told_without_its_text(file: Path, caplog) -> None:
    engine = TunedEngine()
    engine.refusals["resize_l1"] = RuntimeError("something inside")
    config = configuration(file, engine)
    file.write_text("l1: {size: 3GiB}\n")
    with pytest.raises(ApplyError, match="an unexpected error; the server's log has it"):
        config.reload("request")
    assert "something inside" in caplog.text
    assert summary(config) == ("request", "failed")


def test_without_an_engine_there_is_nothing_to_change(file: Path) -> None:
    config = configuration(file, None)
    with pytest.raises(NotReadyError):
        config.reload("request")
    assert summary(config) == ("start", "applied")


def test_an_engine_that_is_being_stopped_is_told_as_such(file: Path) -> None:
    config = configuration(
        file, TunedEngine(), appliers=live.appliers(lambda: None, LARGEST_L1, Logs(), AccessControl())
    )
    file.write_text("l1: {size: 3GiB}\n")
    with pytest.raises(ApplyError) as caught:
        config.reload("request")
    assert isinstance(caught.value.__cause__, EngineStoppedError)


def test_without_a_file_there_is_nothing_to_read() -> None:
    with pytest.raises(NoFileError, match="started without --config"):
        configuration(None, TunedEngine()).reload("request")


class Slow(TunedEngine):
    """Takes as long as it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.entered, self.released = threading.Event(), threading.Event()

    def resize_l1(self, size: int) -> None:
        self.entered.set()
        assert self.released.wait(20)
        super().resize_l1(size)


def test_one_reload_runs_at_a_time(file: Path) -> None:
    engine = Slow()
    config = configuration(file, engine)
    file.write_text("l1: {size: 3GiB}\n")
    first = threading.Thread(target=config.reload, args=("request",))
    second = threading.Thread(target=config.reload, args=("signal",), kwargs={"wait": True})
    first.start()
    assert engine.entered.wait(20)
    second.start()
    with pytest.raises(BusyError):
        config.reload("request")
    assert value(config, "l1.size") == "2GiB"
    engine.released.set()
    first.join()
    second.join()
    assert engine.calls == [("resize_l1", 3 * GIB)]
    assert summary(config) == ("signal", "unchanged")


def recording(calls: list[str], name: str, stage_error: Exception | None = None) -> Applier:
    def stage(old: object, new: object) -> Step:
        calls.append(f"stage {name}")
        if stage_error is not None:
            raise stage_error
        return Step(lambda: calls.append(f"apply {name}"), lambda: calls.append(f"undo {name}"))

    return Applier((name,), stage)


def test_everything_is_staged_before_anything_is_applied(file: Path) -> None:
    calls: list[str] = []
    settings = configuration(file, None).in_force.settings
    apply_all([recording(calls, "a"), recording(calls, "b")], settings, settings)
    assert calls == ["stage a", "stage b", "apply a", "apply b"]


@pytest.mark.parametrize(
    ("error", "raised"), [(ConfigError([Problem("t", "cannot be read")]), ConfigError), (OSError("x"), ApplyError)]
)
def test_what_cannot_be_staged_applies_nothing(file: Path, error: Exception, raised: type[Exception]) -> None:
    calls: list[str] = []
    settings = configuration(file, None).in_force.settings
    with pytest.raises(raised):
        apply_all([recording(calls, "a"), recording(calls, "b", error)], settings, settings)
    assert calls == ["stage a", "stage b"]


def test_every_live_setting_is_applied_by_something_and_the_other_way_round() -> None:
    appliers = live.appliers(lambda: None, LARGEST_L1, Logs(), AccessControl())
    assert disagreements(SCHEMA, appliers) == []
    schema = copy.deepcopy(SCHEMA)
    schema["properties"]["server"]["properties"]["port"]["x-live"] = True
    del schema["properties"]["l1"]["properties"]["size"]["x-live"]
    assert disagreements(schema, appliers) == [
        "config/schema.json: server.port is x-live, but nothing applies it while the process runs",
        "config/schema.json: l1.size can be applied live, but nothing there is x-live",
    ]


def test_what_stands_behind_a_setting_can_change_too(file: Path) -> None:
    """As a token file does that is replaced: no value differs, and still something must be applied."""
    put: list[object] = []
    tokens = setter(("http",), lambda settings: "old" if settings is first else "new", put.append)
    config = configuration(file, TunedEngine(), appliers=[tokens])
    first = config.in_force.settings
    done = config.reload("signal")
    assert [str(each) for each in done.changes] == ["http: *** -> *** (what it names)"]
    assert (put, summary(config)) == (["new"], ("signal", "applied"))


def test_an_applier_of_a_section_covers_every_live_setting_in_it() -> None:
    http = setter(("http",), lambda new: new.http, lambda http: None)
    schema = copy.deepcopy(SCHEMA)
    schema["properties"]["http"]["properties"]["threads"]["x-live"] = True
    assert disagreements(schema, [*live.appliers(lambda: None, LARGEST_L1, Logs(), AccessControl()), http]) == []
