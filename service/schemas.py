"""JSON-schema validators for the parts of the OpenAPI document, made when first asked for."""

from __future__ import annotations

from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError
from referencing import Registry
from referencing.jsonschema import DRAFT202012

from service.document import Document, escape

_DOCUMENT_URI = "urn:kvkeep:openapi"

Fault = tuple[str, str]
"""A JSON pointer and what is wrong there."""


class Schemas:
    """Validates values against schemas that stand in the document."""

    def __init__(self, document: Document) -> None:
        resource = DRAFT202012.create_resource(document.content)
        self._registry: Registry[Any] = Registry().with_resource(_DOCUMENT_URI, resource)
        self._validators: dict[str, Draft202012Validator] = {}

    def faults(self, pointer: str, value: Any, name: str) -> list[Fault]:
        """What is wrong with a value by the schema at a pointer; the faults' own pointers begin with the name."""
        # PERF: Made on first use, since a start has less than a second. Two threads may both make one; either is good.
        validator = self._validators.get(pointer)
        if validator is None:
            reference = {"$ref": f"{_DOCUMENT_URI}#{pointer}"}
            validator = self._validators[pointer] = Draft202012Validator(reference, registry=self._registry)
        return [(_pointer(name, error), error.message) for error in validator.iter_errors(value)]


def _pointer(name: str, error: ValidationError) -> str:
    return "/".join(["", name, *(escape(str(part)) for part in error.absolute_path)])
