"""Reads a YAML file into plain values, and remembers where each of them stands."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from service.problems import ConfigError, Origin, Problem, SettingPath

# PERF: The C loader is about ten times faster; the pure one is there for builds of PyYAML without libyaml.
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

_VARIABLE = re.compile(r"\$\{([^}]*)\}")
_VARIABLE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(slots=True)
class Source:
    """The values of one file with the origin of each, mappings and lists included."""

    values: Any
    origins: dict[SettingPath, Origin] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)


def parse(text: str | bytes) -> Any:
    """The plain values of a document. Raises yaml.YAMLError."""
    return _Loader(text).get_single_data()


def read_yaml(text: str | bytes, file: str, environ: Mapping[str, str]) -> Source:
    """Values and origins of a document; an empty one is an empty mapping. Raises ConfigError if it is not YAML."""
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        raise ConfigError([_syntax_problem(error, file)]) from error
    except yaml.YAMLError as error:
        raise ConfigError([Problem(file, f"is not YAML: {error}")]) from error
    if node is None:
        return Source({})
    reader = _Reader(loader, file, environ)
    reader.source.values = reader.read(node, ())
    return reader.source


def _syntax_problem(error: yaml.MarkedYAMLError, file: str) -> Problem:
    mark = error.problem_mark or error.context_mark
    place = f"{file}:{mark.line + 1}" if mark else file
    return Problem(place, f"is not YAML: {error.problem or error.context}")


class _Reader:
    """Walks the nodes of one document."""

    def __init__(self, loader: Any, file: str, environ: Mapping[str, str]) -> None:
        self.source = Source(None)
        self._loader = loader
        self._file = file
        self._environ = environ
        self._open: set[int] = set()

    def read(self, node: yaml.Node, path: SettingPath) -> Any:
        place = self._place(node)
        self.source.origins[path] = Origin(place, place)
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, path)
        if id(node) in self._open:
            self._problem(node, path, "contains itself through an alias")
            return None
        self._open.add(id(node))
        value = self._mapping(node, path) if isinstance(node, yaml.MappingNode) else self._sequence(node, path)
        self._open.remove(id(node))
        return value

    def _mapping(self, node: yaml.MappingNode, path: SettingPath) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                self._problem(key_node, path, "a key must be plain text")
                continue
            key = key_node.value
            if key in values:
                first = self.source.origins[(*path, key)].place
                self._problem(key_node, (*path, key), f"is given twice, first at {first}")
                continue
            values[key] = self.read(value_node, (*path, key))
            self._move_to_key((*path, key), key_node, value_node)
        return values

    def _move_to_key(self, path: SettingPath, key_node: yaml.Node, value_node: yaml.Node) -> None:
        """A mapping or list begins on the line after its key; people look for the key."""
        if not isinstance(value_node, yaml.ScalarNode):
            place = self._place(key_node)
            self.source.origins[path] = Origin(place, place)

    def _sequence(self, node: yaml.Node, path: SettingPath) -> list[Any]:
        return [self.read(item, (*path, index)) for index, item in enumerate(node.value)]

    def _scalar(self, node: yaml.ScalarNode, path: SettingPath) -> Any:
        names = _VARIABLE.findall(node.value)
        try:
            if not names or node.tag != "tag:yaml.org,2002:str":
                return self._loader.construct_object(node)
            return self._from_environment(node, path, names)
        except (yaml.YAMLError, ValueError) as error:
            problem = error.problem if isinstance(error, yaml.MarkedYAMLError) else error
            self._problem(node, path, f"cannot be read: {problem}")
            return None

    def _from_environment(self, node: yaml.ScalarNode, path: SettingPath, names: list[str]) -> Any:
        missing = [name for name in names if name not in self._environ]
        for name in missing:
            self._problem(node, path, _missing_variable(name))
        if missing:
            return None
        text = _VARIABLE.sub(lambda match: self._environ[match[1]], node.value)
        place = self._place(node)
        self.source.origins[path] = Origin(f"environment {', '.join(names)} ({place})", place, node.value)
        # NOTE: How an unquoted scalar is marked differs: None by the pure loader, "" by the C loader.
        if node.style:
            return text
        # NOTE: Unquoted, so it is read as if the text stood in the file: `port: ${PORT}` gives a number.
        tag = self._loader.resolve(yaml.ScalarNode, text, (True, False))
        try:
            return self._loader.construct_object(yaml.ScalarNode(tag, text))
        # NOTE: Some of these errors quote the text, which may be a secret.
        except (yaml.YAMLError, ValueError):
            self._problem(node, path, f"{node.value} cannot be read as the kind of value that it looks like")
            return None

    def _problem(self, node: yaml.Node, path: SettingPath, message: str) -> None:
        self.source.problems.append(Problem(self._place(node), message, path))

    def _place(self, node: yaml.Node) -> str:
        return f"{self._file}:{node.start_mark.line + 1}"


def _missing_variable(name: str) -> str:
    if not _VARIABLE_NAME.fullmatch(name):
        return f"${{{name}}} does not name an environment variable"
    return f"the environment variable {name} is not set"
