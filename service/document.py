"""The OpenAPI document: loading it, and looking things up in it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from service.yaml_source import parse

METHODS = ("get", "put", "post", "delete", "patch")
"""The methods an operation can have; HEAD and OPTIONS are derived."""

Json = dict[str, Any]


class DocumentError(Exception):
    """The document cannot be read as one."""


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation of the document."""

    template: str
    method: str
    """In capitals."""
    spec: Json
    pointer: str
    """Where it stands in the document, as a JSON pointer."""

    def __str__(self) -> str:
        return f"{self.method} {self.template}"


class Document:
    """The parsed document."""

    def __init__(self, content: Json) -> None:
        self.content = content

    @classmethod
    def load(cls, path: Path) -> Document:
        """Parses a file. Raises DocumentError if it is not YAML with paths in it."""
        try:
            content = parse(path.read_bytes())
        except yaml.YAMLError as error:
            raise DocumentError(f"{path.name} is not YAML: {error}") from error
        if not isinstance(content, dict) or not isinstance(content.get("paths"), dict):
            raise DocumentError(f"{path.name} has no paths")
        return cls(content)

    def operations(self) -> Iterator[Operation]:
        """Every operation, in the order of the document."""
        for template, item in self.content["paths"].items():
            for method in METHODS:
                if method in item:
                    pointer = f"/paths/{escape(template)}/{method}"
                    yield Operation(template, method.upper(), item[method], pointer)

    def parameters(self, operation: Operation) -> list[tuple[str, Json]]:
        """An operation's parameters with those of its path, each with the pointer to where it stands."""
        shared = f"/paths/{escape(operation.template)}"
        return [*self._parameters(shared), *self._parameters(operation.pointer)]

    def response(self, operation: Operation, status: str) -> tuple[str, Json] | None:
        """An operation's response to a status, with the pointer to where it stands."""
        pointer = f"{operation.pointer}/responses/{status}"
        return self._follow(pointer) if status in operation.spec.get("responses", {}) else None

    def resolve(self, node: Json) -> Json:
        """What a node is, or what its `$ref` into this document points at."""
        while "$ref" in node:
            node = self._at(node["$ref"].removeprefix("#"))
        return node

    def _parameters(self, owner: str) -> list[tuple[str, Json]]:
        count = len(self._at(owner).get("parameters", []))
        return [self._follow(f"{owner}/parameters/{index}") for index in range(count)]

    def _follow(self, pointer: str) -> tuple[str, Json]:
        node = self._at(pointer)
        while "$ref" in node:
            pointer = node["$ref"].removeprefix("#")
            node = self._at(pointer)
        return pointer, node

    def _at(self, pointer: str) -> Any:
        node: Any = self.content
        for part in pointer.split("/")[1:]:
            key = part.replace("~1", "/").replace("~0", "~")
            node = node[int(key)] if isinstance(node, list) else node[key]
        return node


def escape(part: str) -> str:
    """A key as one part of a JSON pointer."""
    return part.replace("~", "~0").replace("/", "~1")
