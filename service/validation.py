"""Holds requests against the document always, and answers where they are asked to be."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import falcon

from service.document import Document, Json, Operation, escape
from service.errors import InvalidRequestError
from service.schemas import Fault, Schemas
from service.yaml_source import parse

Find = Callable[[str], Any]
"""The router's own look-up of a path."""

BODY_LIMIT = 1 << 20
"""Bytes of a request body, above which the answer is 413. Below the HTTP server's own limit."""

_INTEGER = re.compile(r"-?[0-9]{1,20}")
_NUMBER = re.compile(r"-?[0-9]{1,20}(\.[0-9]{1,20})?([eE][+-]?[0-9]{1,2})?")


class BodyLimitMiddleware:
    """Refuses bodies over the limit, whatever the path."""

    def process_request(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Looks at the length only: the HTTP server has read the body, and sets the length of a chunked one too."""
        if (req.content_length or 0) > BODY_LIMIT:
            raise falcon.HTTPContentTooLarge(description=f"the body may have {BODY_LIMIT} bytes")


class Described:
    """Finds the operation of a request."""

    def __init__(self, document: Document, templates: dict[str, str], find: Find) -> None:
        """`templates`: those of the document by those of Falcon."""
        self._operations = {(each.template, each.method): each for each in document.operations()}
        self._templates = templates
        self._find = find

    def operation(self, req: falcon.Request) -> Operation | None:
        """The operation that a request asks for, also if it was refused before it was routed; HEAD asks for GET's."""
        template = req.uri_template
        if template is None:
            found = self._find(req.path)
            template = found[3] if found else ""
        return self._operations.get((self._templates.get(template, ""), "GET" if req.method == "HEAD" else req.method))


@dataclass(frozen=True, slots=True)
class _Checks:
    """What one operation's requests are held against."""

    parameters: tuple[tuple[str, Json, Json], ...]
    """Pointer, parameter, and its schema resolved."""
    content: Json | None
    """The documented bodies by media type; None if bodies are not looked at."""

    @classmethod
    def of(cls, document: Document, operation: Operation) -> _Checks:
        """Those of an operation."""
        parameters = document.parameters(operation)
        resolved = ((pointer, each, document.resolve(each["schema"])) for pointer, each in parameters)
        return cls(tuple(resolved), operation.spec.get("requestBody", {}).get("content"))


class RequestValidation:
    """Refuses requests whose parameters or body are not what the document says."""

    def __init__(self, document: Document, described: Described, schemas: Schemas) -> None:
        self._described = described
        self._schemas = schemas
        # PERF: Looked up once, since most requests are probes and scrapes, of which there is nothing to check.
        self._checks = {each.pointer: _Checks.of(document, each) for each in document.operations()}

    def process_resource(self, req: falcon.Request, resp: falcon.Response, resource: Any, params: Any) -> None:
        """Raises 400 with every fault, or 415."""
        operation = self._described.operation(req)
        if operation is None:
            return
        checks = self._checks[operation.pointer]
        faults = [*self._parameter_faults(req, params, checks), *self._body_faults(req, operation, checks)]
        if faults:
            raise InvalidRequestError(faults)

    def _parameter_faults(self, req: falcon.Request, params: Any, checks: _Checks) -> Iterator[Fault]:
        for pointer, parameter, schema in checks.parameters:
            place, name = parameter["in"], parameter["name"]
            text = _sent(req, params, place, name)
            if text is None:
                if parameter.get("required"):
                    yield f"/{place}/{name}", "is required"
                continue
            value = _typed(text, schema)
            yield from self._schemas.faults(f"{pointer}/schema", value, f"{place}/{name}")

    def _body_faults(self, req: falcon.Request, operation: Operation, checks: _Checks) -> Iterator[Fault]:
        content = checks.content
        if content is None:
            return
        if not req.content_length:
            if operation.spec["requestBody"].get("required"):
                yield "/body", "is required"
            return
        media_type = _matching(req.content_type, content)
        if content[media_type].get("schema"):
            yield from self._json_faults(req, operation, media_type)

    def _json_faults(self, req: falcon.Request, operation: Operation, media_type: str) -> Iterator[Fault]:
        try:
            req.context.body = json.loads(req.bounded_stream.read())
        except ValueError as error:
            yield "/body", f"is not JSON: {error}"
            return
        pointer = f"{operation.pointer}/requestBody/content/{escape(media_type)}/schema"
        yield from self._schemas.faults(pointer, req.context.body, "body")


def _sent(req: falcon.Request, params: Any, place: str, name: str) -> Any:
    match place:
        case "path":
            return params.get(name)
        case "query":
            return req.params.get(name)
        case "header":
            return req.get_header(name)
    return req.cookies.get(name)


def _typed(sent: Any, schema: Json) -> Any:
    """A parameter in the type that its schema means; left as text where it does not fit, for the schema to refuse."""
    kind = schema.get("type")
    if kind == "array":
        items = sent if isinstance(sent, list) else [sent]
        return [_typed(item, schema.get("items", {})) for item in items]
    if kind in ("integer", "number", "boolean") and isinstance(sent, str):
        return _plain(sent, kind)
    return sent


def _plain(text: str, kind: str) -> Any:
    # NOTE: By pattern, since Python's own conversions also take 1_000, nan and digits of other scripts.
    if kind == "integer":
        return int(text) if _INTEGER.fullmatch(text) else text
    if kind == "number":
        return float(text) if _NUMBER.fullmatch(text) else text
    return {"true": True, "false": False}.get(text, text)


def _matching(content_type: str | None, content: Json) -> str:
    """The documented media type that a request's fits best. Raises 415."""
    sent = (content_type or "application/octet-stream").partition(";")[0].strip().lower()
    for candidate in (sent, f"{sent.partition('/')[0]}/*", "*/*"):
        if candidate in content:
            return candidate
    raise falcon.HTTPUnsupportedMediaType(description=f"the body may be {', '.join(content)}")


class ResponseMismatchError(Exception):
    """An answer is not what the document says. Only raised where answers are checked: in tests."""


class ResponseValidation:
    """Holds every answer of an operation against the document."""

    def __init__(self, document: Document, described: Described, schemas: Schemas) -> None:
        self._document = document
        self._described = described
        self._schemas = schemas

    def process_response(self, req: falcon.Request, resp: falcon.Response, resource: Any, req_succeeded: bool) -> None:
        """Raises ResponseMismatchError, which the caller sees as 500 and the log in full."""
        operation = self._described.operation(req) if resource is not None else None
        if operation is None:
            return
        faults = list(self._faults(operation, resp))
        if faults:
            raise ResponseMismatchError(f"{operation} answered {resp.status}: {'; '.join(faults)}")

    def _faults(self, operation: Operation, resp: falcon.Response) -> Iterator[str]:
        found = self._document.response(operation, str(falcon.http_status_to_code(resp.status)))
        if found is None:
            yield "the document does not have this status"
            return
        pointer, response = found
        media_type = (resp.content_type or falcon.MEDIA_JSON).partition(";")[0]
        if media_type not in response.get("content", {}):
            yield f"the document does not have {media_type} for this status"
            return
        schema = f"{pointer}/content/{escape(media_type)}/schema"
        rendered = resp.render_body() or b"null"
        body = decoded(media_type, rendered)
        yield from (f"{where} {reason}" for where, reason in self._schemas.faults(schema, body, "body"))


def decoded(media_type: str, body: bytes) -> Any:
    """What a schema describes of a body: the value of JSON and YAML, the text of everything else."""
    if media_type.endswith("json"):
        return json.loads(body)
    return parse(body) if media_type.endswith("yaml") else body.decode()
