"""Values and their places in a YAML file."""

from __future__ import annotations

import pytest

from service.problems import ConfigError
from service.yaml_source import Source, read_yaml

ENVIRON = {"PORT": "6000", "HOST": "10.0.0.1", "TEXT": "0123", "EMPTY": ""}


def read(text: str) -> Source:
    return read_yaml(text, "f.yaml", ENVIRON)


def problems(text: str) -> list[str]:
    return [str(problem) for problem in read(text).problems]


def test_values_have_their_yaml_types() -> None:
    text = "a: 1\nb: 1.5\nc: true\nd: text\ne: [1, x]\nf: {}\ng: null\nh: '7'\n"
    assert read(text).values == {
        "a": 1, "b": 1.5, "c": True, "d": "text", "e": [1, "x"], "f": {}, "g": None, "h": "7",
    }  # fmt: skip


@pytest.mark.parametrize("text", ["", "# only a comment\n", "---\n"])
def test_an_empty_file_is_an_empty_mapping(text: str) -> None:
    assert read(text).values in ({}, None)
    assert not read(text).problems


def test_every_value_knows_its_line() -> None:
    source = read("server:\n  port: 1\nl2:\n  - type: a\n  - type: b\n")
    places = {path: origin.place for path, origin in source.origins.items()}
    assert places["server",] == "f.yaml:1"
    assert places["server", "port"] == "f.yaml:2"
    assert places["l2",] == "f.yaml:3"
    assert places["l2", 1, "type"] == "f.yaml:5"


def test_a_key_given_twice_is_an_error_at_the_second() -> None:
    assert problems("a: 1\nb: 2\na: 3\n") == ["f.yaml:3: a: is given twice, first at f.yaml:1"]


def test_an_alias_is_followed() -> None:
    assert read("a: &x {p: 1}\nb: *x\n").values == {"a": {"p": 1}, "b": {"p": 1}}


def test_an_alias_to_what_is_around_it_is_an_error() -> None:
    assert problems("a: &x\n  b: *x\n") == ["f.yaml:1: a.b: contains itself through an alias"]


def test_a_key_that_is_no_text_is_an_error() -> None:
    assert problems("[1, 2]: x\n") == ["f.yaml:1: a key must be plain text"]


def test_a_tag_that_runs_code_is_an_error() -> None:
    assert (
        "could not determine a constructor" in problems("a: !!python/object/apply:builtins.print [x]\nb: !own x\n")[0]
    )


@pytest.mark.parametrize(
    ("text", "line"),
    [("a: [1\n", 2), ("a: 1\n b: 2\n", 2), ("a: *nowhere\n", 1), ("\ta: 1\n", 1), ("a: 1\n---\nb: 2\n", 2)],
)
def test_what_is_not_yaml_names_the_line(text: str, line: int) -> None:
    with pytest.raises(ConfigError, match=rf"^f\.yaml:{line}: is not YAML: "):
        read(text)


def test_bytes_that_are_no_text_are_not_yaml() -> None:
    with pytest.raises(ConfigError, match="is not YAML"):
        read_yaml(b"a: \xff\xfe\x00", "f.yaml", {})


def test_a_variable_is_taken_from_the_environment() -> None:
    source = read("host: ${HOST}\nurl: http://${HOST}:${PORT}/x\n")
    assert source.values == {"host": "10.0.0.1", "url": "http://10.0.0.1:6000/x"}
    assert source.origins["host",].label == "environment HOST (f.yaml:1)"
    assert source.origins["url",].label == "environment HOST, PORT (f.yaml:2)"


def test_an_unquoted_variable_is_read_like_text_in_the_file_and_a_quoted_one_stays_text() -> None:
    assert read("a: ${PORT}\nb: '${PORT}'\nc: \"${TEXT}\"\n").values == {"a": 6000, "b": "6000", "c": "0123"}


def test_the_value_of_a_variable_is_not_looked_into_again() -> None:
    assert read_yaml("a: ${A}\n", "f", {"A": "${B}", "B": "x"}).values == {"a": "${B}"}


def test_a_missing_variable_is_an_error_with_file_line_and_name() -> None:
    assert problems("a: 1\nb: ${NOT_THERE}\nc: [x, '${NEITHER}']\n") == [
        "f.yaml:2: b: the environment variable NOT_THERE is not set",
        "f.yaml:3: c[1]: the environment variable NEITHER is not set",
    ]


def test_what_cannot_name_a_variable_is_an_error() -> None:
    assert problems("a: ${}\n") == ["f.yaml:1: a: ${} does not name an environment variable"]


def test_an_empty_variable_is_an_empty_value() -> None:
    assert read("a: '${EMPTY}'\n").values == {"a": ""}
