"""Requests are held against the document: here against one that has parameters and bodies of every kind."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import yaml
from falcon.testing import Result, TestClient

from service.app import create_app
from service.context import Context
from service.document import Document

PROBLEM = "{description: x, content: {application/problem+json: {schema: {type: object}, example: {}}}}"

DOCUMENT = f"""
openapi: 3.1.0
paths:
  /things/{{id}}:
    parameters:
      - {{name: id, in: path, required: true, schema: {{type: integer, minimum: 1}}, example: 1}}
    put:
      operationId: putThing
      summary: Put
      description: Puts.
      x-curl: curl -X PUT http://127.0.0.1:8080/things/1
      x-role: operator
      parameters:
        - {{name: limit, in: query, schema: {{type: integer, maximum: 10}}, example: 1}}
        - {{name: ratio, in: query, schema: {{type: number}}, example: 1}}
        - {{name: dry, in: query, schema: {{type: boolean}}, example: true}}
        - {{name: tags, in: query, schema: {{type: array, items: {{type: integer}}}}, example: [1]}}
        - {{name: X-Mode, in: header, schema: {{type: string, enum: [a, b]}}, example: a}}
        - {{name: key, in: cookie, schema: {{type: string, minLength: 2}}, example: ab}}
        - $ref: "#/components/parameters/Model"
      requestBody:
        required: true
        content:
          application/json:
            schema: {{$ref: "#/components/schemas/Thing"}}
            example: {{name: x}}
      responses:
        "200": {{description: x, content: {{application/json: {{schema: {{type: object}}, example: {{}}}}}}}}
        "400": {PROBLEM}
        "401": {PROBLEM}
        "403": {PROBLEM}
        "413": {PROBLEM}
        "415": {PROBLEM}
        "500": {PROBLEM}
components:
  parameters:
    Model: {{name: model, in: query, required: true, schema: {{$ref: "#/components/schemas/Name"}}, example: m}}
  schemas:
    Name: {{type: string, minLength: 1}}
    Thing:
      type: object
      required: [name]
      additionalProperties: false
      properties:
        name: {{$ref: "#/components/schemas/Name"}}
        parts: {{type: array, items: {{type: integer}}}}
"""

RESOURCE = """
from service.operations import operation

class Thing:
    @operation("putThing", 200)
    def on_put(self, req, resp, id):
        resp.media = {"id": id, "body": req.context.body}

def routes(context):
    return [("/things/{id}", Thing())]
"""


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory):
    folder: Path = tmp_path_factory.mktemp("resources")
    package = folder / "validated_resources"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "thing_api.py").write_text(RESOURCE)
    sys.path.insert(0, str(folder))
    document = Document(yaml.safe_load(DOCUMENT))
    yield TestClient(
        create_app(Context(lambda: None, document), resources="validated_resources", validate_responses=True)
    )
    sys.path.remove(str(folder))


@pytest.fixture
def put(client: TestClient):
    def put(query: str = "model=m", body: object = None, path: str = "/things/7", **headers: str) -> Result:
        raw = body if isinstance(body, bytes) else json.dumps(body or {"name": "x"}).encode()
        sent = {"Content-Type": "application/json", **{name.replace("_", "-"): text for name, text in headers.items()}}
        return client.simulate_put(path, query_string=query, body=raw, headers=sent)

    return put


def faults(result: Result) -> list[tuple[str, str]]:
    assert result.status_code == 400
    assert result.headers["content-type"] == "application/problem+json"
    return [(fault["pointer"], fault["detail"]) for fault in result.json["errors"]]


def test_a_request_as_documented_passes(put) -> None:
    query = "model=m&limit=10&ratio=1.5&dry=true&tags=1&tags=2"
    result = put(query, {"name": "x", "parts": [1]}, X_Mode="a", Cookie="key=ab")
    assert (result.status_code, result.json["body"]) == (200, {"name": "x", "parts": [1]})


@pytest.mark.parametrize(
    ("query", "pointer", "reason"),
    [
        ("", "/query/model", "is required"),
        ("model=", "/query/model", "'' should be non-empty"),
        ("model=m&limit=11", "/query/limit", "11 is greater than the maximum of 10"),
        ("model=m&limit=x", "/query/limit", "'x' is not of type 'integer'"),
        ("model=m&limit=", "/query/limit", "'' is not of type 'integer'"),
        ("model=m&limit=1&limit=2", "/query/limit", "['1', '2'] is not of type 'integer'"),
        ("model=m&limit=1_0", "/query/limit", "'1_0' is not of type 'integer'"),
        ("model=m&ratio=nan", "/query/ratio", "'nan' is not of type 'number'"),
        ("model=m&ratio=x", "/query/ratio", "'x' is not of type 'number'"),
        ("model=m&dry=maybe", "/query/dry", "'maybe' is not of type 'boolean'"),
        ("model=m&tags=1&tags=b", "/query/tags/1", "'b' is not of type 'integer'"),
        ("model=m&tags=b", "/query/tags/0", "'b' is not of type 'integer'"),
    ],
)
def test_a_wrong_query_is_refused_with_a_pointer(put, query: str, pointer: str, reason: str) -> None:
    assert faults(put(query)) == [(pointer, reason)]


@pytest.mark.parametrize(
    ("path", "reason"),
    [("/things/x", "'x' is not of type 'integer'"), ("/things/0", "0 is less than the minimum of 1")],
)
def test_a_wrong_path_parameter_is_refused(put, path: str, reason: str) -> None:
    assert faults(put(path=path)) == [("/path/id", reason)]


def test_a_wrong_header_or_cookie_is_refused(put) -> None:
    assert faults(put(X_Mode="c")) == [("/header/X-Mode", "'c' is not one of ['a', 'b']")]
    assert faults(put(Cookie="key=a")) == [("/cookie/key", "'a' is too short")]


@pytest.mark.parametrize(
    ("body", "pointer", "reason"),
    [
        (b"", "/body", "is required"),
        (b"{", "/body", "is not JSON"),
        (b"\xff", "/body", "is not JSON"),
        (b"[]", "/body", "[] is not of type 'object'"),
        ({"name": 5}, "/body/name", "5 is not of type 'string'"),
        ({"name": "x", "parts": [1, "b"]}, "/body/parts/1", "'b' is not of type 'integer'"),
        ({"nam": "x", "name": "y"}, "/body", "Additional properties are not allowed ('nam' was unexpected)"),
    ],
)
def test_a_wrong_body_is_refused_with_a_pointer(put, body: object, pointer: str, reason: str) -> None:
    [(found_pointer, found_reason)] = faults(put(body=body))
    assert found_pointer == pointer
    assert found_reason.startswith(reason)


def test_every_fault_is_told_at_once(put) -> None:
    assert [pointer for pointer, _ in faults(put("limit=99", {"name": ""}, "/things/0"))] == [
        "/path/id",
        "/query/limit",
        "/query/model",
        "/body/name",
    ]


@pytest.mark.parametrize("media_type", ["text/plain", "application/x-www-form-urlencoded", "application/jsonx"])
def test_a_body_of_another_type_is_refused(put, media_type: str) -> None:
    result = put(Content_Type=media_type)
    assert result.status_code == 415
    assert result.json["detail"] == "the body may be application/json"


def test_parameters_of_a_media_type_do_not_matter(put) -> None:
    assert put(Content_Type="Application/JSON; charset=utf-8").status_code == 200
