"""The command line."""

from __future__ import annotations

import pytest

from engine import GIB
from service import __version__
from service.cli import parse
from service.settings import Override


@pytest.mark.parametrize("argv", [[], ["serve"]])
def test_without_a_command_kvkeep_serves(argv: list[str]) -> None:
    arguments = parse(argv)
    assert (arguments.command, arguments.file, arguments.overrides) == ("serve", None, ())


@pytest.mark.parametrize("command", [[], ["serve"], ["show-config"]])
def test_every_flag_overrides_its_setting(command: list[str]) -> None:
    engine = "--l1-size-gb 0.5 --eviction-policy LRU --host h --port 1 --chunk-size 2"
    arguments = parse([*command, "--config", "f.yaml", *engine.split(), "--http-host", "i", "--http-port", "3"])
    assert arguments.file == "f.yaml"
    assert set(arguments.overrides) == {
        Override("--l1-size-gb", "l1", "size", GIB // 2),
        Override("--eviction-policy", "l1", "eviction_policy", "LRU"),
        Override("--host", "server", "host", "h"),
        Override("--port", "server", "port", 1),
        Override("--chunk-size", "server", "chunk_size", 2),
        Override("--http-host", "http", "host", "i"),
        Override("--http-port", "http", "port", 3),
    }


def test_zero_is_a_value() -> None:
    assert parse(["--port", "0"]).overrides == (Override("--port", "server", "port", 0),)


def test_check_config_takes_a_file() -> None:
    arguments = parse(["check-config", "f.yaml"])
    assert (arguments.command, arguments.file) == ("check-config", "f.yaml")


@pytest.mark.parametrize(
    "argv",
    [
        ["--l1-size-gb", "0"],
        ["--l1-size-gb", "-1"],
        ["--l1-size-gb", "nan"],
        ["--l1-size-gb", "inf"],
        ["--l1-size-gb", "4GiB"],
        ["--port", "x"],
        ["--unknown"],
        ["--conf", "f.yaml"],
        ["unknown"],
        ["check-config"],
        ["serve", "stray"],
        ["simulate"],
        ["simulate", "f.jsonl", "--config", "f.yaml"],
    ],
)
def test_what_cannot_be_parsed_exits_with_2(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(argv)
    assert caught.value.code == 2
    assert "usage: kvkeep" in capsys.readouterr().err


def test_the_help_of_serve_tells_of_sighup(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["serve", "--help"])
    assert "SIGHUP" in capsys.readouterr().out


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"kvkeep {__version__}\n"


@pytest.mark.parametrize("command", [[], ["serve"], ["check-config"], ["show-config"], ["simulate"]])
def test_every_help_text_ends_with_examples(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse([*command, "--help"])
    assert "\nexample" in capsys.readouterr().out
