"""Code and document are compared at the start, both ways; each difference is shown to refuse it."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.app import create_app
from service.context import Context
from service.contract import ContractError
from service.document import Document, DocumentError

numbers = itertools.count()

OPERATION = """
operationId: getThing
summary: Get it
description: Gets it.
x-curl: curl http://127.0.0.1:8080/thing/1
x-role: reader
parameters:
  - {name: id, in: path, required: true, schema: {type: integer}, example: 1}
responses:
  "200": {description: Good., content: {application/json: {schema: {type: integer}, example: 1}}}
  "400": {description: Bad.}
  "401": {description: Unknown.}
  "413": {description: Big.}
  "500": {description: Broken.}
"""

THING = """
import falcon
from service.operations import operation

class Thing:
    @operation("getThing", 200)
    def on_get(self, req, resp, id):
        resp.media = id

def routes(context):
    return [("/thing/{id:int}", Thing())]
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Makes an importable package of resource modules."""
    monkeypatch.syspath_prepend(tmp_path)

    def make(**modules: str) -> str:
        name = f"resources_{next(numbers)}"
        folder = tmp_path / name
        folder.mkdir()
        (folder / "__init__.py").touch()
        for module, source in modules.items():
            (folder / f"{module}.py").write_text(source)
        return name

    yield make
    for name in [name for name in sys.modules if name.startswith("resources_")]:
        del sys.modules[name]


def document(operation: str = OPERATION, template: str = "/thing/{id}", **more: Any) -> Document:
    return Document({"openapi": "3.1.0", "paths": {template: {"get": yaml.safe_load(operation)}, **more}})


def refusal(described: Document, resources: str) -> list[str]:
    with pytest.raises(ContractError) as caught:
        create_app(Context(lambda: None, described), resources=resources)
    assert all(difference in str(caught.value) for difference in caught.value.differences)
    return list(caught.value.differences)


def without(key: str) -> str:
    operation = yaml.safe_load(OPERATION)
    del operation[key]
    return yaml.safe_dump(operation)


def test_code_and_document_that_agree_start(package) -> None:
    create_app(Context(lambda: None, document()), resources=package(thing_api=THING))


def test_only_modules_named_api_are_resources(package) -> None:
    create_app(Context(lambda: None, document()), resources=package(thing_api=THING, helper="raise RuntimeError"))


def test_a_route_without_an_operation_refuses_the_start(package) -> None:
    resources = package(thing_api=THING)
    assert refusal(Document({"paths": {}}), resources) == [
        f"/thing/{{id}} ({resources}.thing_api): getThing is served there, but openapi.yaml has no such operation"
    ]


def test_an_operation_without_a_route_refuses_the_start(package) -> None:
    assert refusal(document(), package()) == ["GET /thing/{id}: in openapi.yaml, but no resource serves it"]


def test_a_parameter_of_another_name_is_another_template(package) -> None:
    differences = refusal(document(), package(thing_api=THING.replace("{id:int}", "{key}")))
    assert "GET /thing/{id}: in openapi.yaml, but no resource serves it" in differences
    assert len(differences) == 2


def test_another_method_is_a_difference_both_ways(package) -> None:
    assert len(refusal(document(), package(thing_api=THING.replace("on_get", "on_put")))) == 2


def test_another_operation_id_refuses_the_start(package) -> None:
    assert refusal(document(), package(thing_api=THING.replace("getThing", "readThing"))) == [
        "GET /thing/{id}: operationId is getThing in openapi.yaml, readThing in the code"
    ]


def test_a_status_that_the_document_does_not_have_refuses_the_start(package) -> None:
    assert refusal(document(), package(thing_api=THING.replace("200", "200, 503"))) == [
        "GET /thing/{id}: the responder can answer 503, but openapi.yaml does not have it"
    ]


def test_a_status_that_nothing_answers_refuses_the_start(package) -> None:
    more = document(OPERATION + '  "404": {description: Not there.}\n  default: {description: Else.}\n')
    assert refusal(more, package(thing_api=THING)) == [
        "GET /thing/{id}: openapi.yaml has status 404, but nothing answers it",
        "GET /thing/{id}: openapi.yaml has status default, but nothing answers it",
    ]


@pytest.mark.parametrize("status", ["400", "401", "413", "500"])
def test_the_middlewares_statuses_must_be_in_the_document(package, status: str) -> None:
    operation = yaml.safe_load(OPERATION)
    del operation["responses"][status]
    assert refusal(document(yaml.safe_dump(operation)), package(thing_api=THING)) == [
        f"GET /thing/{{id}}: the middleware can answer {status}, but openapi.yaml does not have it"
    ]


def test_a_body_with_named_media_types_can_meet_415(package) -> None:
    body = "requestBody: {content: {application/json: {schema: {type: object}, example: {}}}}\n"
    assert refusal(document(OPERATION + body), package(thing_api=THING)) == [
        "GET /thing/{id}: the middleware can answer 415, but openapi.yaml does not have it"
    ]


def changing(role: str, method: str, statuses: str = "") -> Document:
    """The document with an operation that is not a GET, and what it needs of its caller."""
    operation = yaml.safe_load(OPERATION.replace("x-role: reader", f"x-role: {role}") + statuses)
    return Document({"openapi": "3.1.0", "paths": {"/thing/{id}": {method: operation}}})


def test_an_operators_operation_can_meet_403(package) -> None:
    resources = package(thing_api=THING.replace("on_get", "on_post"))
    assert refusal(changing("operator", "post"), resources) == [
        "POST /thing/{id}: the middleware can answer 403, but openapi.yaml does not have it"
    ]


def test_a_readers_operation_never_meets_403(package) -> None:
    assert refusal(document(OPERATION + '  "403": {description: No.}\n'), package(thing_api=THING)) == [
        "GET /thing/{id}: openapi.yaml has status 403, but nothing answers it; "
        "it is for operations with `x-role: operator`"
    ]


def test_where_a_response_is_shared_the_refusal_tells_the_line_to_add(package) -> None:
    operation = yaml.safe_load(OPERATION)
    del operation["responses"]["401"]
    described = document(yaml.safe_dump(operation))
    described.content["components"] = {"responses": {"Unauthorized": {"description": "Unknown."}}}
    assert refusal(described, package(thing_api=THING)) == [
        "GET /thing/{id}: the middleware can answer 401, but openapi.yaml does not have it; "
        'add to its responses: "401": {$ref: "#/components/responses/Unauthorized"}'
    ]


def test_an_operation_that_does_not_say_whose_it_is_refuses_the_start(package) -> None:
    assert refusal(document(without("x-role")), package(thing_api=THING)) == [
        "GET /thing/{id}: has no x-role; write one of probe, metrics, reader, operator: what it needs of its caller"
    ]
    assert refusal(document(OPERATION.replace("reader", "admin")), package(thing_api=THING)) == [
        "GET /thing/{id}: x-role is 'admin'; write one of probe, metrics, reader, operator: what it needs of its caller"
    ]


@pytest.mark.parametrize(
    ("method", "role", "difference"),
    [
        ("get", "operator", "GET /thing/{id}: x-role is operator, but a GET changes nothing; write reader"),
        ("put", "reader", "PUT /thing/{id}: x-role is reader, but a PUT changes something; write operator"),
        ("delete", "probe", "DELETE /thing/{id}: x-role is probe, but a DELETE changes something; write operator"),
        ("post", "metrics", "POST /thing/{id}: x-role is metrics; write operator, or reader if it changes nothing"),
    ],
)
def test_what_changes_something_is_for_operators_and_reading_never_is(package, method, role, difference) -> None:
    forbidden = '  "403": {description: No.}\n' if role == "operator" else ""
    resources = package(thing_api=THING.replace("on_get", f"on_{method}"))
    assert refusal(changing(role, method, forbidden), resources) == [difference]


def test_a_post_that_reads_says_so(package) -> None:
    resources = package(thing_api=THING.replace("on_get", "on_post"))
    create_app(Context(lambda: None, changing("reader", "post")), resources=resources)


def test_a_duplicate_route_refuses_the_start(package) -> None:
    resources = package(one_api=THING, two_api=THING)
    assert refusal(document(), resources) == [
        f"/thing/{{id}}: routed twice, by {resources}.one_api and {resources}.two_api"
    ]


def test_a_duplicate_operation_id_refuses_the_start(package) -> None:
    other = THING.replace("/thing/", "/other/")
    both = document(**{"/other/{id}": {"get": yaml.safe_load(OPERATION)}})
    assert refusal(both, package(thing_api=THING, other_api=other)) == [
        "operationId getThing: in openapi.yaml at GET /thing/{id} and GET /other/{id}",
        "operationId getThing: declared by the responders of GET /other/{id} and GET /thing/{id}",
    ]


def test_a_responder_without_a_declaration_refuses_the_start(package) -> None:
    bare = THING.replace('@operation("getThing", 200)', "")
    resources = package(thing_api=bare)
    assert refusal(document(), resources)[0] == (
        f"GET /thing/{{id}} ({resources}.thing_api): the responder declares no operation; decorate it with @operation"
    )


def test_a_resource_without_a_method_refuses_the_start(package) -> None:
    resources = package(thing_api=THING.replace("on_get", "get"))
    assert f"/thing/{{id}}: {resources}.thing_api answers no method there" in refusal(document(), resources)


def test_a_responder_for_a_derived_method_refuses_the_start(package) -> None:
    more = THING.replace("def routes", "    on_head = on_get\n\ndef routes")
    resources = package(thing_api=more)
    assert refusal(document(), resources) == [
        f"HEAD /thing/{{id}} ({resources}.thing_api): is derived; remove the responder"
    ]


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import not_there", "ModuleNotFoundError: No module named 'not_there'"),
        ("def routes(:", "SyntaxError: invalid syntax"),
        ("x = 1", "AttributeError: module"),
        ("def routes(context): return 5", "TypeError: 'int' object is not iterable"),
        ("def routes(context): return [('/x',)]", "ValueError: not enough values to unpack"),
    ],
)
def test_a_module_that_cannot_be_used_refuses_the_start_with_the_others_differences(package, source, reason) -> None:
    resources = package(broken_api=source)
    differences = refusal(document(), resources)
    assert differences[0].startswith(f"{resources}.broken_api: cannot be used: {reason}")
    assert differences[1] == "GET /thing/{id}: in openapi.yaml, but no resource serves it"


@pytest.mark.parametrize("key", ["summary", "description"])
def test_an_operation_that_does_not_explain_itself_refuses_the_start(package, key: str) -> None:
    assert refusal(document(without(key)), package(thing_api=THING)) == [f"GET /thing/{{id}}: has no {key}"]


def test_an_operation_without_a_call_of_curl_refuses_the_start(package) -> None:
    expected = ["GET /thing/{id}: has no x-curl, an example call that starts with `curl `"]
    assert refusal(document(without("x-curl")), package(thing_api=THING)) == expected
    assert refusal(document(OPERATION.replace("x-curl: curl", "x-curl: wget")), package(thing_api=THING)) == expected


@pytest.mark.parametrize(
    ("gone", "difference"),
    [
        (", example: 1}}}", "GET /thing/{id}: the response 200 application/json has no example"),
        (", example: 1}\n", "GET /thing/{id}: parameter id has no example"),
    ],
)
def test_a_missing_example_refuses_the_start(package, gone: str, difference: str) -> None:
    operation = OPERATION.replace(gone, gone.replace(", example: 1", ""))
    assert refusal(document(operation), package(thing_api=THING)) == [difference]


def test_a_request_body_without_an_example_refuses_the_start(package) -> None:
    body = "requestBody: {content: {'*/*': {}}}\n"
    assert refusal(document(OPERATION + body), package(thing_api=THING)) == [
        "GET /thing/{id}: the request body */* has no example"
    ]


def test_path_parameters_are_those_of_the_template(package) -> None:
    operation = OPERATION.replace("name: id", "name: key")
    assert refusal(document(operation), package(thing_api=THING)) == [
        "GET /thing/{id}: path parameter id is not in both, the template and its parameters",
        "GET /thing/{id}: path parameter key is not in both, the template and its parameters",
    ]


def test_templates_that_cannot_stand_beside_each_other_refuse_the_start(package) -> None:
    other = THING.replace("{id:int}", "{key}").replace("getThing", "getOther")
    described = OPERATION.replace("getThing", "getOther").replace("name: id", "name: key")
    both = document(**{"/thing/{key}": {"get": yaml.safe_load(described)}})
    assert "cannot be routed" in refusal(both, package(thing_api=THING, other_api=other))[0]


@pytest.mark.parametrize("text", ["{", "[]", "a: 1", "paths: []"])
def test_a_document_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "openapi.yaml").write_text(text)
    with pytest.raises(DocumentError, match=r"^openapi\.yaml (is not YAML|has no paths)"):
        Document.load(tmp_path / "openapi.yaml")
