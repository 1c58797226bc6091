"""Holds the discovered resources against the OpenAPI document, both ways. Any difference refuses the start."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from service.access import NEEDS
from service.discovery import DERIVED, Found, Route
from service.document import Document, Json, Operation
from service.operations import Declaration

Served = dict[tuple[str, str], tuple[Route, Declaration]]
"""What is served, by template and method."""

_CONVERTER = re.compile(r"\{(\w+):[^}]*\}")
_VARIABLE = re.compile(r"\{(\w+)\}")


class ContractError(Exception):
    """Code and document differ; carries every difference."""

    def __init__(self, differences: Sequence[str]) -> None:
        lines = "\n".join(f"  - {difference}" for difference in differences)
        super().__init__(f"the API's code and openapi.yaml differ ({len(differences)}):\n{lines}")
        self.differences = tuple(differences)


def _checks_request(document: Document, operation: Operation) -> bool:
    return bool(document.parameters(operation)) or _body_schemas(operation)


def _body_schemas(operation: Operation) -> bool:
    content = operation.spec.get("requestBody", {}).get("content", {})
    return any(media.get("schema") for media in content.values())


def _names_media_types(document: Document, operation: Operation) -> bool:
    content = operation.spec.get("requestBody", {}).get("content", {"*/*": {}})
    return "*/*" not in content


def _is_operators(document: Document, operation: Operation) -> bool:
    return operation.spec.get("x-role") == "operator"


def _always(document: Document, operation: Operation) -> bool:
    return True


# The statuses that stand before every responder, with the operations that can meet them. 404 and 405 belong to no
# operation: there the path or the method is not in the document.
MIDDLEWARE_STATUSES: dict[int, Callable[[Document, Operation], bool]] = {
    400: _checks_request,
    401: _always,
    403: _is_operators,
    413: _always,
    415: _names_media_types,
    500: _always,
}

_SHARED: dict[int, str] = {
    400: "Invalid",
    401: "Unauthorized",
    403: "Forbidden",
    413: "TooLarge",
    415: "WrongMediaType",
    500: "Internal",
}
"""What each of them is called among the document's shared responses."""


def middleware_statuses(document: Document, operation: Operation) -> frozenset[int]:
    """The statuses that the middleware can answer in an operation's place."""
    return frozenset(status for status, applies in MIDDLEWARE_STATUSES.items() if applies(document, operation))


def differences(document: Document, found: Found) -> list[str]:
    """Every difference between the document and the code; none if they agree."""
    served, problems = _served(found)
    documented = {(operation.template, operation.method): operation for operation in document.operations()}
    return [
        *found.problems,
        *problems,
        *_repeated_ids(document, served),
        *(_unserved(operation) for key, operation in documented.items() if key not in served),
        *(_undocumented(*entry) for key, entry in served.items() if key not in documented),
        *(
            each
            for key, entry in served.items()
            if key in documented
            for each in _mismatches(document, documented[key], entry[1])
        ),
        *(each for operation in documented.values() for each in _incomplete(document, operation)),
    ]


def plain(template: str) -> str:
    """A Falcon template without converters, as the document writes it: `/x/{id:int}` is `/x/{id}`."""
    return _CONVERTER.sub(r"{\1}", template)


def _served(found: Found) -> tuple[Served, list[str]]:
    served: Served = {}
    problems: list[str] = []
    templates: dict[str, Route] = {}
    for route in found.routes:
        template = plain(route.template)
        first = templates.setdefault(template, route)
        if first is not route:
            problems.append(f"{template}: routed twice, by {first.module} and {route.module}")
            continue
        problems += _collect(route, template, served)
    return served, problems


def _collect(route: Route, template: str, served: Served) -> Iterator[str]:
    methods = list(route.responders())
    if not methods:
        yield f"{template}: {route.module} answers no method there"
    for method, declared in methods:
        where = f"{method} {template} ({route.module})"
        if method in DERIVED:
            yield f"{where}: is derived; remove the responder"
        elif declared is None:
            yield f"{where}: the responder declares no operation; decorate it with @operation"
        else:
            served[template, method] = (route, declared)


def _repeated_ids(document: Document, served: Served) -> Iterator[str]:
    in_document: dict[Any, list[str]] = defaultdict(list)
    for operation in document.operations():
        in_document[operation.spec.get("operationId")].append(str(operation))
    in_code: dict[Any, list[str]] = defaultdict(list)
    for (template, method), (_, declared) in served.items():
        in_code[declared.operation_id].append(f"{method} {template}")
    for name, places in in_document.items():
        if name is not None and len(places) > 1:
            yield f"operationId {name}: in openapi.yaml at {' and '.join(places)}"
    for name, places in in_code.items():
        if len(places) > 1:
            yield f"operationId {name}: declared by the responders of {' and '.join(places)}"


def _unserved(operation: Operation) -> str:
    return f"{operation}: in openapi.yaml, but no resource serves it"


def _undocumented(route: Route, declared: Declaration) -> str:
    where = f"{plain(route.template)} ({route.module})"
    return f"{where}: {declared.operation_id} is served there, but openapi.yaml has no such operation"


def _mismatches(document: Document, operation: Operation, declared: Declaration) -> Iterator[str]:
    documented_id = operation.spec.get("operationId")
    if documented_id != declared.operation_id:
        yield f"{operation}: operationId is {documented_id} in openapi.yaml, {declared.operation_id} in the code"
    answers = declared.statuses | middleware_statuses(document, operation)
    documented = {str(status) for status in operation.spec.get("responses", {})}
    for unanswered in sorted(documented - {str(status) for status in answers}):
        yield f"{operation}: openapi.yaml has status {unanswered}, but nothing answers it{_why_not(unanswered)}"
    for status in sorted(answers):
        if str(status) not in documented:
            whose = "the responder" if status in declared.statuses else "the middleware"
            remedy = _remedy(document, status) if status not in declared.statuses else ""
            yield f"{operation}: {whose} can answer {status}, but openapi.yaml does not have it{remedy}"


def _why_not(status: str) -> str:
    return "; it is for operations with `x-role: operator`" if status == "403" else ""


def _remedy(document: Document, status: int) -> str:
    """The line to add, where the document has the response to be shared."""
    name = _SHARED.get(status)
    if name not in document.content.get("components", {}).get("responses", {}):
        return ""
    return f'; add to its responses: "{status}": {{$ref: "#/components/responses/{name}"}}'


def _incomplete(document: Document, operation: Operation) -> Iterator[str]:
    """What every operation must have, so that the document teaches."""
    for name in ("operationId", "summary", "description"):
        if not operation.spec.get(name):
            yield f"{operation}: has no {name}"
    if not str(operation.spec.get("x-curl", "")).startswith("curl "):
        yield f"{operation}: has no x-curl, an example call that starts with `curl `"
    yield from _wrong_role(operation)
    yield from _wrong_path_parameters(document, operation)
    for _, parameter in document.parameters(operation):
        if not _has_example(parameter):
            yield f"{operation}: parameter {parameter.get('name')} has no example"
    for media_type, media in operation.spec.get("requestBody", {}).get("content", {}).items():
        if not _has_example(media):
            yield f"{operation}: the request body {media_type} has no example"
    for status, response in operation.spec.get("responses", {}).items():
        for media_type, media in document.resolve(response).get("content", {}).items():
            if not _has_example(media):
                yield f"{operation}: the response {status} {media_type} has no example"


def _wrong_role(operation: Operation) -> Iterator[str]:
    role = operation.spec.get("x-role")
    if role not in NEEDS:
        has = "has no x-role" if role is None else f"x-role is {role!r}"
        yield f"{operation}: {has}; write one of {', '.join(NEEDS)}: what it needs of its caller"
    elif operation.method == "GET" and role == "operator":
        yield f"{operation}: x-role is operator, but a GET changes nothing; write reader"
    elif operation.method == "POST" and role not in ("operator", "reader"):
        yield f"{operation}: x-role is {role}; write operator, or reader if it changes nothing"
    elif operation.method not in ("GET", "POST") and role != "operator":
        yield f"{operation}: x-role is {role}, but a {operation.method} changes something; write operator"


def _wrong_path_parameters(document: Document, operation: Operation) -> Iterator[str]:
    described = {each["name"] for _, each in document.parameters(operation) if each.get("in") == "path"}
    in_template = set(_VARIABLE.findall(operation.template))
    for name in sorted(in_template ^ described):
        yield f"{operation}: path parameter {name} is not in both, the template and its parameters"


def _has_example(node: Json) -> bool:
    return "example" in node or bool(node.get("examples"))
