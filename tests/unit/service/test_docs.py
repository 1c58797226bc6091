"""The reference page: all of the document is on it, nothing of that is markup, and nothing comes from elsewhere."""

from __future__ import annotations

import base64
import copy
import hashlib
import html
import json
import re
from html.parser import HTMLParser
from typing import Any

import pytest

from service import assets
from service.docs.fields import fields, whole
from service.docs.html import Html, element, escaped, join
from service.docs.page import render, security_policy
from service.docs.text import blocks, example, inline
from service.document import Document

DOCUMENT = Document.load(assets.openapi_path())
PAGE = render(DOCUMENT)
HOSTILE = "<script>alert('x')</script>\"' onload=\"x\" &amp; `</code><b>`"


class Page(HTMLParser):
    """What a browser would see of it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.shown: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "input", "wbr", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.shown.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.shown).split())

    def values(self, attribute: str) -> list[str]:
        return [found for _, attributes in self.tags if (found := attributes.get(attribute)) is not None]


SEEN = Page(PAGE)


def strings(node: Any) -> Any:
    """A copy of the document with hostile text at the end of every text that people read."""
    if isinstance(node, dict):
        return {
            key: f"{value} {HOSTILE}" if isinstance(value, str) and key in TEXTS else strings(value)
            for key, value in node.items()
        }
    return [strings(each) for each in node] if isinstance(node, list) else node


TEXTS = {"title", "version", "summary", "description", "x-curl", "x-role", "url", "name", "example", "value", "type"}


def test_every_element_is_closed_in_order() -> None:
    assert SEEN.open == []


def test_every_operation_is_there_and_in_the_contents() -> None:
    links = SEEN.values("href")
    for operation in DOCUMENT.operations():
        identity = operation.spec["operationId"]
        assert SEEN.values("id").count(identity) == 1
        assert links.count(f"#{identity}") == 2, "in the contents, and at its heading"
        assert operation.template in SEEN.text
        assert " ".join(operation.spec["x-curl"].split()) in SEEN.text


def article(identity: str) -> str:
    found = re.search(rf'<article id="{identity}">.*?</article>', PAGE, re.DOTALL)
    assert found is not None
    return Page(found[0]).text


@pytest.mark.parametrize("operation", list(DOCUMENT.operations()), ids=str)
def test_an_operation_has_everything_that_the_document_says_of_it(operation) -> None:
    shown = article(operation.spec["operationId"])
    assert plain(operation.spec["summary"]) in shown
    assert operation.spec.get("x-role", "") in shown
    for _, parameter in DOCUMENT.parameters(operation):
        assert parameter["name"] in shown
    for status, node in operation.spec["responses"].items():
        assert status in shown
        assert plain(DOCUMENT.resolve(node)["description"]) in shown
    for content in (operation.spec.get("requestBody", {}).get("content", {}),):
        assert all(media_type in shown for media_type in content)


def plain(text: str) -> str:
    return " ".join(text.replace("`", "").split())


def test_every_field_of_every_schema_that_is_used_is_described() -> None:
    for name, schema in DOCUMENT.content["components"]["schemas"].items():
        for field, part in schema.get("properties", {}).items():
            description = DOCUMENT.resolve(part)["description"]
            assert field in SEEN.text, name
            assert plain(description) in SEEN.text, f"{name}.{field}"


def test_every_link_leads_somewhere_on_the_page() -> None:
    identities = SEEN.values("id")
    assert len(identities) == len({*identities})
    for link in SEEN.values("href"):
        assert link.startswith("#")
        assert link[1:] in identities, link


def test_nothing_is_loaded_and_nothing_runs() -> None:
    assert {tag for tag, _ in SEEN.tags}.isdisjoint(
        {"script", "link", "img", "iframe", "object", "embed", "base", "form"}
    )
    assert not SEEN.values("src")
    assert not SEEN.values("style"), "the policy would not let it count"
    assert not any(name.startswith("on") for _, attributes in SEEN.tags for name in attributes)
    [style] = re.findall(r"<style>(.*?)</style>", PAGE, re.DOTALL)
    assert not re.search(r"url\(|@import|https?:", style)


def test_the_policy_knows_the_pages_own_style() -> None:
    [style] = re.findall(r"<style>(.*?)</style>", PAGE, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert f"style-src 'sha256-{digest}'" in security_policy()


def test_hostile_text_anywhere_in_the_document_stays_text() -> None:
    hostile = Page(render(Document(strings(DOCUMENT.content))))
    assert hostile.open == []
    assert [tag for tag, _ in hostile.tags if tag in ("script", "b")] == []
    assert not any(name.startswith("on") for _, attributes in hostile.tags for name in attributes)
    assert hostile.text.count("<script>alert('x')</script>") > 100
    assert "&amp;" in hostile.text


def test_hostile_names_stay_text_too() -> None:
    content = copy.deepcopy(DOCUMENT.content)
    operation = content["paths"].pop("/api/config")["get"]
    media = operation["responses"]["200"]["content"].pop("application/json")
    media["schema"] = {"type": HOSTILE, "properties": {HOSTILE: {"enum": [HOSTILE], "default": {HOSTILE: HOSTILE}}}}
    media["example"] = {HOSTILE: [HOSTILE]}
    operation |= {"operationId": HOSTILE, "tags": [HOSTILE]}
    operation["responses"] = {HOSTILE: {"description": HOSTILE, "headers": {HOSTILE: {}}, "content": {HOSTILE: media}}}
    content["paths"] = {f"/{HOSTILE}": {"get": operation}}
    content["components"]["responses"] = {HOSTILE: {"description": HOSTILE}}
    seen = Page(render(Document(content)))
    assert {tag for tag, _ in seen.tags}.isdisjoint({"script", "b"})
    assert not any(name.startswith("on") for _, attributes in seen.tags for name in attributes)
    assert seen.open == []


def test_the_least_document_is_a_page() -> None:
    least = {"paths": {"/x": {"get": {"responses": {"default": {}}}}}}
    assert "GET" in Page(render(Document(least))).text


def test_an_element_escapes_what_is_not_html() -> None:
    assert element("p", "a < b", Html("<i>"), title='"&"') == '<p title="&quot;&amp;&quot;">a &lt; b<i></p>'
    assert element("input", type="x", checked=True, disabled=False, name=None) == '<input type="x" checked>'
    assert join(["<", Html("<br>")], " & ") == "&lt; &amp; <br>"
    assert escaped(escaped("&")) == "&amp;"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("one\ntwo", "<p>one two</p>"),
        ("one\n\n two\n", "<p>one</p><p>two</p>"),
        ("- one\n- two\n  goes on", "<ul><li>one</li><li>two goes on</li></ul>"),
        ("These:\n- one\n- two", "<p>These:</p><ul><li>one</li><li>two</li></ul>"),
        ("a - b", "<p>a - b</p>"),
        ("", ""),
    ],
)
def test_paragraphs_and_lists(text: str, expected: str) -> None:
    assert blocks(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a `b < c` d", "a <code>b &lt; c</code> d"),
        ("``a ` b``", "<code>a ` b</code>"),
        ("an open ` stays", "an open ` stays"),
        ("*not* <b>", "*not* &lt;b&gt;"),
    ],
)
def test_code_spans(text: str, expected: str) -> None:
    assert inline(text) == expected


def test_an_example_reads_as_json_and_loses_nothing() -> None:
    value = {'a"<': [1, -2.5e-7, None, True, "x: \\"], "ü": {}}
    shown = example(value, "Example")
    assert "json-key" in shown
    text = html.unescape(re.sub(r"<[^>]*>", "", shown))
    assert json.loads(text) == value


def test_fields_tell_type_limits_and_what_is_inside() -> None:
    schema = {
        "type": "object",
        "required": ["a"],
        "properties": {
            "a": {"type": "integer", "minimum": 1, "maximum": 5, "description": "How many."},
            "b": {"type": "array", "items": {"$ref": "#/components/schemas/Inner"}, "minItems": 1},
            "c": {"type": ["string", "null"], "enum": ["x", "y"], "default": ""},
        },
        "additionalProperties": {"type": "boolean"},
    }
    inner = {"type": "object", "properties": {"again": {"$ref": "#/components/schemas/Inner"}}}
    document = Document({"paths": {}, "components": {"schemas": {"Inner": inner}}})
    a, b, c, other = fields(document, schema)
    assert (a.type, a.is_required, a.limits) == ("integer", True, (("at least {}", "1"), ("at most {}", "5")))
    assert (b.type, b.is_required, [each.name for each in b.fields]) == ("array of object", False, ["again"])
    assert b.fields[0].fields == (), "a circle ends"
    assert (c.type, c.limits) == ("string or null", (("one of {}", "x, y"), ("default {}", '""')))
    assert (other.name, other.type) == ("<any name>", "boolean")


def test_alternatives_are_all_shown() -> None:
    schema = {"oneOf": [{"type": "string"}, {"type": "object", "properties": {"a": {"type": "integer"}}}]}
    found = whole(Document({"paths": {}}), schema)
    assert found.type == "one of"
    assert [each.type for each in found.fields] == ["string", "object"]
    assert found.fields[1].fields[0].name == "a"
