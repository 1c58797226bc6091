"""The page: everything that the document says, by tag and operation. Pure but for the style sheet beside it."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final

import falcon

from service.docs.fields import Field, fields, whole
from service.docs.html import Html, element, join
from service.docs.text import blocks, code_block, example, inline
from service.document import Document, Json, Operation

_RESPONSES: Final = "#/components/responses/"


def render(document: Document) -> str:
    """The whole page; it loads nothing and runs nothing."""
    info = document.content.get("info", {})
    title = f"{info.get('title', 'API')} API reference"
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", title),
        element("style", Html(_style())),
    )
    page = element("html", head, element("body", *_body(document, info)), lang="en")
    return f"<!doctype html>\n{page}\n"


def security_policy() -> str:
    """What the page may load: its own style, known by its hash, and nothing else."""
    digest = base64.b64encode(hashlib.sha256(_style().encode()).digest()).decode()
    return (
        f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


@cache
def _style() -> str:
    return Path(__file__).with_name("page.css").read_text()


def _body(document: Document, info: Json) -> Iterator[Html]:
    groups = _groups(document)
    yield element("a", "Skip to the operations", href="#content", class_="skip")
    yield element("input", type="checkbox", id="menu", class_="menu-state", aria_label="Show the contents")
    yield element("header", _brand(info), element("label", "Contents", for_="menu", class_="menu-button"))
    yield element("nav", _navigation(document, groups), aria_label="Contents")
    sections = [_introduction(document, info), *(_tag(document, *group) for group in groups), _shared(document)]
    yield element("main", *sections, id="content")


def _brand(info: Json) -> Html:
    version = element("span", f"API version {info.get('version', '')}", class_="version")
    return element("a", element("strong", str(info.get("title", "API"))), version, href="#top", class_="brand")


Group = tuple[Json, list[Operation]]


def _groups(document: Document) -> list[Group]:
    """The operations by their first tag: tags in their order, and then those that the document does not describe."""
    tags: dict[str, Json] = {each["name"]: each for each in document.content.get("tags", [])}
    found: dict[str, list[Operation]] = {name: [] for name in tags}
    for operation in document.operations():
        found.setdefault(next(iter(operation.spec.get("tags", [])), "other"), []).append(operation)
    return [(tags.get(name, {"name": name}), operations) for name, operations in found.items() if operations]


def _navigation(document: Document, groups: Sequence[Group]) -> Html:
    entries = [element("li", element("a", "Overview", href="#top", class_="heading"))]
    for tag, operations in groups:
        heading = element("a", tag["name"], href=f"#tag-{tag['name']}", class_="heading")
        links = [element("li", _link(operation)) for operation in operations]
        entries.append(element("li", heading, element("ul", *links)))
    if _shared_responses(document):
        entries.append(element("li", element("a", "Shared responses", href="#shared", class_="heading")))
    return element("ul", *entries)


def _link(operation: Operation) -> Html:
    return element(
        "a", _method(operation.method), element("span", _breakable(operation.template)), href=_anchor(operation)
    )


def _anchor(operation: Operation) -> str:
    return f"#{_identity(operation)}"


def _identity(operation: Operation) -> str:
    return str(operation.spec.get("operationId") or f"{operation.method}{operation.template}")


def _method(method: str) -> Html:
    return element("span", method, class_=f"method {method.lower()}")


def _breakable(path: str) -> Html:
    """A path that may be broken before its slashes, where a line is too short for it."""
    return join(path.split("/"), Html("<wbr>/"))


def _introduction(document: Document, info: Json) -> Html:
    title = element("h1", str(info.get("title", "API")))
    lead = element("p", inline(str(info.get("summary", ""))), class_="lead")
    servers = document.content.get("servers", [])
    schemes = document.content.get("components", {}).get("securitySchemes", {})
    facts = [_fact("Address", str(each["url"]), each) for each in servers]
    facts += [_fact(f"Authentication: {name}", _scheme(each), each) for name, each in schemes.items()]
    return element("section", title, lead, blocks(str(info.get("description", ""))), *facts, id="top")


def _scheme(scheme: Json) -> str:
    return " ".join(str(scheme[key]) for key in ("type", "scheme") if key in scheme)


def _fact(name: str, value: str, described: Json) -> Html:
    description = inline(str(described.get("description", "")))
    return element("p", element("strong", name), " ", element("code", value), " ", description, class_="fact")


def _tag(document: Document, tag: Json, operations: Sequence[Operation]) -> Html:
    heading = element("h2", tag["name"])
    description = element("p", inline(str(tag.get("description", ""))), class_="lead")
    articles = [_operation(document, operation) for operation in operations]
    return element("section", heading, description, *articles, id=f"tag-{tag['name']}", class_="tag")


def _operation(document: Document, operation: Operation) -> Html:
    spec = operation.spec
    title = element("h3", element("a", inline(str(spec.get("summary", operation))), href=_anchor(operation)))
    call = element(
        "p", _method(operation.method), element("code", _breakable(operation.template)), _role(spec), class_="call"
    )
    parts = [title, call, blocks(str(spec.get("description", "")))]
    if "x-curl" in spec:
        parts.append(code_block(str(spec["x-curl"]), "An example call", "curl"))
    parts += [_parameters(document, operation), _request(document, spec), _responses(document, operation)]
    return element("article", *parts, id=_identity(operation))


def _role(spec: Json) -> Html:
    role = spec.get("x-role")
    return element("span", str(role), class_="role", title="The role that this operation asks for") if role else Html()


def _parameters(document: Document, operation: Operation) -> Html:
    found = [parameter for _, parameter in document.parameters(operation)]
    if not found:
        return Html()
    items = [_parameter(document, each) for each in found]
    return element("section", element("h4", "Parameters"), element("ul", *items, class_="fields"))


def _parameter(document: Document, parameter: Json) -> Html:
    field = whole(document, parameter.get("schema", {}))
    named = Field(
        str(parameter["name"]),
        f"{field.type} in {parameter['in']}",
        str(parameter.get("description", field.description)),
        bool(parameter.get("required")),
        field.limits,
        field.fields,
    )
    given = [element("code", _plain(value)) for _, value in _examples(parameter)]
    return _field(named, marks_required=True, more=join(["such as ", join(given, ", ")]) if given else None)


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else str(value).lower() if isinstance(value, bool) else str(value)


def _request(document: Document, spec: Json) -> Html:
    body = document.resolve(spec.get("requestBody", {}))
    if not body:
        return Html()
    needed = "required" if body.get("required") else "optional"
    heading = element("h4", "Request body ", element("span", needed, class_="note"))
    contents = _contents(document, body, marks_required=True)
    return element("section", heading, blocks(str(body.get("description", ""))), contents)


def _responses(document: Document, operation: Operation) -> Html:
    rows = [_response(document, status, node) for status, node in operation.spec.get("responses", {}).items()]
    return element("section", element("h4", "Responses"), *rows)


def _response(document: Document, status: str, node: Json) -> Html:
    response = document.resolve(node)
    reference = str(node.get("$ref", ""))
    is_good = status.startswith("2")
    line = join([_status(status), element("span", inline(str(response.get("description", ""))))])
    if reference.startswith(_RESPONSES) and not is_good:
        link = element("a", "see below", href=f"#response-{reference.removeprefix(_RESPONSES)}")
        return element("p", line, link, class_="response shared")
    contents = _contents(document, response, marks_required=False)
    return element("details", element("summary", line), contents, class_="response", open=is_good)


def _status(status: str) -> Html:
    family = status[:1] if status[:1].isdigit() else "x"
    title = falcon.code_to_http_status(int(status)).partition(" ")[2] if status.isdigit() else None
    return element("span", status, class_=f"status s{family}", title=title)


def _shared_responses(document: Document) -> Json:
    found: Json = document.content.get("components", {}).get("responses", {})
    return found


def _shared(document: Document) -> Html:
    found = _shared_responses(document)
    if not found:
        return Html()
    lead = element("p", "Answers that several operations have in common.", class_="lead")
    articles = [_shared_response(document, name, response) for name, response in found.items()]
    return element("section", element("h2", "Shared responses"), lead, *articles, id="shared", class_="tag")


def _shared_response(document: Document, name: str, response: Json) -> Html:
    resolved = document.resolve(response)
    contents = _contents(document, resolved, marks_required=False)
    description = blocks(str(resolved.get("description", "")))
    return element("article", element("h3", name), description, contents, id=f"response-{name}")


def _contents(document: Document, owner: Json, *, marks_required: bool) -> Html:
    """What a body can be, by media type, and the headers of a response."""
    media = owner.get("content", {}).items()
    parts = [_media(document, name, each, marks_required=marks_required) for name, each in media]
    headers = [_header(document, name, node) for name, node in owner.get("headers", {}).items()]
    return join([*parts, element("ul", *headers, class_="fields headers") if headers else Html()])


def _header(document: Document, name: str, node: Json) -> Html:
    header = document.resolve(node)
    schema = header.get("schema", {})
    field = whole(document, schema)
    description = str(header.get("description", field.description))
    return _field(
        Field(name, "header", description, True, field.limits, ()), marks_required=True, more=None, is_quiet=True
    )


def _media(document: Document, media_type: str, media: Json, *, marks_required: bool) -> Html:
    schema = media.get("schema", {})
    kind = element("p", element("code", media_type), _kind(document, schema), class_="media")
    inside = [_field(each, marks_required=marks_required) for each in fields(document, schema)]
    parts = [kind, element("ul", *inside, class_="fields") if inside else Html()]
    parts += [
        join([element("p", inline(title), class_="note"), example(value, "Example")])
        for title, value in _examples(media)
    ]
    return join(parts)


def _kind(document: Document, schema: Json) -> Html:
    if not schema:
        return Html()
    field = whole(document, schema)
    return join([element("span", field.type, class_="type"), _limits(field)])


def _examples(owner: Json) -> list[tuple[str, Any]]:
    if "example" in owner:
        return [("Example", owner["example"])]
    return [(str(each.get("summary", name)), each.get("value")) for name, each in owner.get("examples", {}).items()]


def _field(field: Field, *, marks_required: bool, more: Html | None = None, is_quiet: bool = False) -> Html:
    """One field with what is inside. Requests mark what is required, answers what may be missing."""
    mark = ("required" if field.is_required else "") if marks_required else ("" if field.is_required else "optional")
    line = [element("code", field.name, class_="name"), element("span", field.type, class_="type")]
    line += [element("span", mark, class_=mark)] if mark and not is_quiet else []
    inside = [_field(each, marks_required=marks_required) for each in field.fields]
    return element(
        "li",
        element("div", *line, class_="line"),
        element("p", inline(field.description), _limits(field), Html(" ") if more else Html(), more or Html()),
        element("ul", *inside, class_="fields") if inside else Html(),
    )


def _limits(field: Field) -> Html:
    return join(element("span", *_limit(*each), class_="limit") for each in field.limits)


def _limit(sentence: str, value: str) -> list[str]:
    before, _, after = sentence.partition("{}")
    return [before, element("code", value), after]
