"""What a schema says of a value, field by field. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from service.document import Document, Json

_LIMITS: Final = {
    "const": "always {}",
    "default": "default {}",
    "format": "format {}",
    "minimum": "at least {}",
    "exclusiveMinimum": "more than {}",
    "maximum": "at most {}",
    "exclusiveMaximum": "less than {}",
    "multipleOf": "a multiple of {}",
    "minLength": "at least {} long",
    "maxLength": "at most {} long",
    "pattern": "matches {}",
    "minItems": "at least {} of them",
    "maxItems": "at most {} of them",
    "minProperties": "at least {} fields",
    "maxProperties": "at most {} fields",
}


@dataclass(frozen=True, slots=True)
class Field:
    """One value with everything that is said of it."""

    name: str
    """Empty for the value as a whole."""
    type: str
    description: str
    is_required: bool
    limits: tuple[tuple[str, str], ...]
    """Sentences with `{}` and what stands there."""
    fields: tuple[Field, ...]
    """What is inside."""


def fields(document: Document, schema: Json) -> tuple[Field, ...]:
    """What is inside of a value with this schema, at every depth."""
    return _Reader(document).inside(schema, ())


def whole(document: Document, schema: Json) -> Field:
    """A value with this schema."""
    return _Reader(document).field("", schema, True, ())


class _Reader:
    """Follows references; `open_` has those that the way here went through, so that a circle ends."""

    def __init__(self, document: Document) -> None:
        self._document = document

    def field(self, name: str, schema: Json, is_required: bool, open_: tuple[str, ...]) -> Field:
        resolved = {**self._document.resolve(schema), **{key: schema[key] for key in schema if key != "$ref"}}
        description = str(resolved.get("description", ""))
        limits = tuple(_limits(resolved))
        return Field(name, self._type(schema), description, is_required, limits, self.inside(schema, open_))

    def inside(self, schema: Json, open_: tuple[str, ...]) -> tuple[Field, ...]:
        reference = schema.get("$ref")
        if reference in open_:
            return ()
        if reference is not None:
            open_ = (*open_, reference)
        return tuple(self._inside(self._document.resolve(schema), open_))

    def _inside(self, schema: Json, open_: tuple[str, ...]) -> Iterator[Field]:
        required = schema.get("required", [])
        for name, part in schema.get("properties", {}).items():
            yield self.field(name, part, name in required, open_)
        more = schema.get("additionalProperties")
        if isinstance(more, dict):
            yield self.field("<any name>", more, False, open_)
        if isinstance(schema.get("items"), dict):
            yield from self.inside(schema["items"], open_)
        for part in schema.get("allOf", []):
            yield from self.inside(part, open_)
        for part in [*schema.get("oneOf", []), *schema.get("anyOf", [])]:
            yield self.field("<either>", part, True, open_)

    def _type(self, schema: Json) -> str:
        resolved = self._document.resolve(schema)
        if "oneOf" in resolved or "anyOf" in resolved:
            return "one of"
        kinds = resolved.get("type", "object" if "properties" in resolved else "any")
        names = [kinds] if isinstance(kinds, str) else list(kinds)
        return " or ".join(self._of_items(name, resolved) for name in names)

    def _of_items(self, name: str, schema: Json) -> str:
        if name != "array" or not isinstance(schema.get("items"), dict):
            return name
        return f"array of {self._type(schema['items'])}"


def _limits(schema: Json) -> Iterator[tuple[str, str]]:
    if "enum" in schema:
        yield "one of {}", ", ".join(_written(each) for each in schema["enum"])
    for key, sentence in _LIMITS.items():
        if key in schema:
            yield sentence, _written(schema[key])


def _written(value: Any) -> str:
    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)
