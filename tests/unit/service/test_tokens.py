"""Tokens come from files; what is wrong with one is told with the place and the remedy, and never with the token."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

import pytest

from service import assets
from service.access import digest
from service.problems import ConfigError
from service.schema import load_schema
from service.settings import Settings, load_settings

SCHEMA = load_schema(assets.schema_path())
TOKEN = "qK3-abc._~+/4fV7zzT="


def settings(folder: Path, text: str, **environ: str) -> Settings:
    (folder / "f.yaml").write_text(text)
    return load_settings(SCHEMA, str(folder / "f.yaml"), (), environ)


def one(folder: Path, content: bytes, mode: int = 0o600) -> Settings:
    """The settings with one token whose file has this content."""
    (folder / "ops.token").write_bytes(content)
    (folder / "ops.token").chmod(mode)
    return settings(folder, "http:\n  tokens:\n    - name: ops\n      role: operator\n      file: ops.token\n")


def refusal(folder: Path, content: bytes) -> str:
    with pytest.raises(ConfigError) as caught:
        one(folder, content)
    [problem] = caught.value.problems
    start = f"{folder}/f.yaml:5: http.tokens[0].file = {folder}/ops.token: "
    assert str(problem).startswith(start)
    return str(problem).removeprefix(start)


@pytest.mark.parametrize("around", ["{}", "{}\n", "{}\r\n", " \n{}\n\n"])
def test_a_token_is_what_the_file_has_without_the_space_around_it(tmp_path: Path, around: str) -> None:
    [token] = one(tmp_path, around.format(TOKEN).encode()).http.tokens
    assert (token.name, token.role, token.digest) == ("ops", "operator", digest(TOKEN))


def test_a_path_may_be_absolute(tmp_path: Path) -> None:
    (tmp_path / "t").write_text(TOKEN)
    found = settings(tmp_path, f"http: {{tokens: [{{name: a, role: reader, file: {tmp_path}/t}}]}}")
    assert [token.role for token in found.http.tokens] == ["reader"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b" \n\t", "is empty"),
        (b"fifteen-letters", "has a token of fewer than 16 characters"),
        (b"two-good-tokens-aaaa two-good-tokens-bbbb", "has whitespace inside the token"),
        (b"two-good-tokens-aaaa\ntwo-good-tokens-bbbb", "has whitespace inside the token"),
        ("sixteen-umlauts-äöü".encode(), "has characters other than letters, digits"),
        (b"sixteen-and-nul-\x00\x00", "has characters other than letters, digits"),
        (b'sixteen-and-"quotes"', "has characters other than letters, digits"),
        (b"x" * 5000, "has more than 4096 bytes"),
    ],
)
def test_a_file_without_a_good_token_is_a_problem_that_does_not_show_it(tmp_path: Path, content, reason: str) -> None:
    told = refusal(tmp_path, content)
    assert told.startswith(reason)
    for word in content.decode(errors="replace").split():
        assert word not in told


def test_the_remedy_makes_a_good_token(tmp_path: Path) -> None:
    told = refusal(tmp_path, b"")
    command = told.partition("make a good one with: ")[2]
    subprocess.run(["sh", "-c", command], check=True, timeout=20)
    file = tmp_path / "ops.token"
    assert len(one(tmp_path, file.read_bytes()).http.tokens) == 1


def test_the_remedy_keeps_the_new_token_to_its_owner(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        settings(tmp_path, "http: {tokens: [{name: a, role: reader, file: 'not there'}]}")
    told = str(caught.value)
    assert "does not exist; make a good one with: " in told
    assert shlex.quote(f"{tmp_path}/not there") in told
    subprocess.run(["sh", "-c", told.partition("make a good one with: ")[2]], check=True, timeout=20)
    assert (tmp_path / "not there").stat().st_mode & 0o777 == 0o600


def test_what_is_no_file_is_a_problem(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name in (".", "pipe", "/dev/null"):
        with pytest.raises(ConfigError, match="is not a regular file"):
            settings(tmp_path, f"http: {{tokens: [{{name: a, role: reader, file: {name}}}]}}")


def test_a_file_in_what_is_no_folder_is_a_problem(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot be read: Not a directory; the user that runs kvkeep"):
        settings(tmp_path, "http: {tokens: [{name: a, role: reader, file: f.yaml/x}]}")


def test_two_equal_tokens_and_two_equal_names_are_problems(tmp_path: Path) -> None:
    (tmp_path / "a").write_text(TOKEN)
    (tmp_path / "b").write_text(TOKEN + "\n")
    text = """\
http:
  tokens:
    - {name: x, role: reader, file: a}
    - {name: x, role: operator, file: b}
    - {name: anonymous, role: operator, file: c}
"""
    with pytest.raises(ConfigError) as caught:
        settings(tmp_path, text)
    told = [str(problem).replace(f"{tmp_path}/", "") for problem in caught.value.problems]
    assert told[0].startswith("f.yaml:4: http.tokens[1].name: is also the name of http.tokens[0]")
    assert told[1].startswith(
        "f.yaml:4: http.tokens[1].file = b: has the same token as http.tokens[0]; make a good one"
    )
    assert told[2].startswith("f.yaml:5: http.tokens[2].name: is what the audit log calls callers without a token")
    assert told[3].startswith("f.yaml:5: http.tokens[2].file = c: does not exist")
    assert TOKEN not in str(caught.value)


@pytest.mark.parametrize(
    ("item", "problem"),
    [
        ("{name: 'a b', role: reader, file: t}", "name = a b: must be written like alice, grafana, nightly-job"),
        ('{name: "a\\nb", role: reader, file: t}', "name = a\nb: must be written like"),
        ("{name: a, role: admin, file: t}", "role = admin: is not one of reader, operator"),
        ("{name: a, role: reader}", " = ***: needs the key file"),
        ("{name: a, role: reader, file: ''}", 'file = "": must not be empty'),
        ("{name: a, role: reader, file: t, token: geheim}", "token = ***: unknown key"),
        ("geheim", " = ***: must be a mapping of keys"),
    ],
)
def test_the_schema_says_what_an_item_is_and_a_token_in_the_wrong_place_is_not_shown(tmp_path, item, problem) -> None:
    (tmp_path / "t").write_text(TOKEN)
    with pytest.raises(ConfigError) as caught:
        settings(tmp_path, f"http: {{tokens: [{item}]}}")
    assert f"http.tokens[0]{'' if problem[0] == ' ' else '.'}{problem}" in str(caught.value)
    assert "geheim" not in str(caught.value)


@pytest.mark.parametrize(("mode", "warned"), [(0o600, False), (0o640, False), (0o644, True), (0o604, True)])
def test_a_file_that_everybody_can_read_is_warned_of(tmp_path: Path, mode: int, warned: bool) -> None:
    warnings = one(tmp_path, TOKEN.encode(), mode).warnings
    assert len(warnings) == warned
    if warned:
        place = f"{tmp_path}/f.yaml:5: http.tokens[0].file: every user of this machine can read {tmp_path}/ops.token"
        assert warnings[0] == f"{place}; do: chmod o= {tmp_path}/ops.token"


def test_a_path_from_the_environment_is_named_by_its_variable(tmp_path: Path) -> None:
    text = "http: {tokens: [{name: a, role: reader, file: '${WHERE}'}]}"
    with pytest.raises(ConfigError) as caught:
        settings(tmp_path, text, WHERE="/secret/place")
    assert "http.tokens[0].file = ${WHERE}: does not exist" in str(caught.value)
    assert '> "${WHERE}")' in str(caught.value)
    assert "/secret" not in str(caught.value)


def test_a_setting_that_tokens_make_idle_is_warned_of(tmp_path: Path) -> None:
    (tmp_path / "t").write_text(TOKEN)
    (tmp_path / "t").chmod(0o600)
    found = settings(tmp_path, "http: {allow_unauthenticated: true, tokens: [{name: a, role: reader, file: t}]}")
    assert [warning.partition(" has no effect")[0] for warning in found.warnings] == ["http.allow_unauthenticated"]


def test_settings_that_are_printed_show_no_token(tmp_path: Path) -> None:
    shown = repr(one(tmp_path, TOKEN.encode()))
    assert "ops" in shown
    for secret in (TOKEN, digest(TOKEN).hex(), repr(digest(TOKEN))):
        assert secret not in shown
