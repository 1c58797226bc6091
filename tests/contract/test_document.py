"""The document by itself: a valid one, whose examples are what its schemas say."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator, validate

from service import assets
from service.document import Document, Operation, escape
from service.schemas import Schemas
from service.yaml_source import read_yaml

DOCUMENT = Document.load(assets.openapi_path())
SCHEMAS = Schemas(DOCUMENT)


def examples() -> Iterator[tuple[str, str, Any]]:
    """Name, pointer of the schema and value of every example in the document."""
    for operation in DOCUMENT.operations():
        yield from body_examples(operation)
        for status in operation.spec["responses"]:
            found = DOCUMENT.response(operation, status)
            assert found is not None
            pointer, response = found
            for media_type, media in response.get("content", {}).items():
                for value in values(media):
                    yield f"{operation} {status}", f"{pointer}/content/{escape(media_type)}", value


def body_examples(operation: Operation) -> Iterator[tuple[str, str, Any]]:
    for media_type, media in operation.spec.get("requestBody", {}).get("content", {}).items():
        for value in values(media) if "schema" in media else []:
            yield f"{operation} body", f"{operation.pointer}/requestBody/content/{escape(media_type)}", value


def values(media: dict[str, Any]) -> list[Any]:
    if "example" in media:
        return [media["example"]]
    return [each["value"] for each in media["examples"].values()]


def schemas(node: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every property of every object in the document's schemas."""
    for name, part in node.get("properties", {}).items():
        yield f"{path}.{name}", part
        yield from schemas(part, f"{path}.{name}")
        yield from schemas(part.get("items", {}), f"{path}.{name}[]")


def test_no_key_of_the_document_hides_another() -> None:
    assert read_yaml(assets.openapi_path().read_bytes(), "openapi.yaml", {}).problems == []


def test_the_document_is_valid_openapi() -> None:
    validate(DOCUMENT.content, cls=OpenAPIV31SpecValidator)


@pytest.mark.parametrize(("pointer", "value"), [pytest.param(p, v, id=name) for name, p, v in examples()])
def test_every_example_is_what_its_schema_says(pointer: str, value: Any) -> None:
    assert SCHEMAS.faults(f"{pointer}/schema", value, "example") == []


@pytest.mark.parametrize("name", DOCUMENT.content["components"]["schemas"])
def test_every_field_has_a_type_and_a_description(name: str) -> None:
    for path, part in schemas(DOCUMENT.content["components"]["schemas"][name], name):
        resolved = DOCUMENT.resolve(part)
        assert "type" in resolved, path
        assert resolved["description"].endswith("."), path


def test_what_is_required_is_described() -> None:
    for name, schema in DOCUMENT.content["components"]["schemas"].items():
        assert set(schema.get("required", [])) <= set(schema["properties"]) if "properties" in schema else True, name
