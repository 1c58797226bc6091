"""Descriptions as HTML: paragraphs, lists and code, which is all of CommonMark that the document uses. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, Final

from service.docs.html import Html, element, escaped, join

_BLANK: Final = re.compile(r"\n\s*\n")
_ITEM: Final = re.compile(r"^[-*] ", re.MULTILINE)
_CODE: Final = re.compile(r"(`+)(.+?)\1", re.DOTALL)
_JSON_TOKEN: Final = re.compile(
    r'(?P<text>"(?:[^"\\]|\\.)*")(?P<colon>\s*:)?|(?P<plain>-?\d[\d.eE+-]*|true|false|null)'
)


def blocks(text: str) -> Html:
    """Paragraphs and lists, which a blank line parts."""
    return join(_block(part) for part in _BLANK.split(text.strip()) if part)


def inline(text: str) -> Html:
    """One line of text with its code spans."""
    return join(_spans(" ".join(text.split())))


def code_block(text: str, label: str, class_: str | None = None) -> Html:
    """Preformatted text that scrolls by itself; the label is for who cannot see it."""
    return element("pre", element("code", text), tabindex="0", aria_label=label, class_=class_)


def example(value: Any, label: str) -> Html:
    """An example: text as it is, anything else as JSON."""
    if isinstance(value, str):
        return code_block(value, label)
    return code_block(_coloured(json.dumps(value, indent=2, ensure_ascii=False)), label)


def _block(text: str) -> Html:
    before, *items = _ITEM.split(text)
    paragraph = element("p", inline(before)) if before.strip() else Html()
    bullets = element("ul", *(element("li", inline(item)) for item in items)) if items else Html()
    return join([paragraph, bullets])


def _spans(text: str) -> Iterator[str]:
    end = 0
    for match in _CODE.finditer(text):
        yield text[end : match.start()]
        yield element("code", match[2].strip() or match[2])
        end = match.end()
    yield text[end:]


def _coloured(text: str) -> Html:
    parts: list[str] = []
    end = 0
    for match in _JSON_TOKEN.finditer(text):
        kind = "value" if match["text"] is None else "key" if match["colon"] else "text"
        parts += [text[end : match.start()], element("span", match["text"] or match["plain"], class_=f"json-{kind}")]
        parts.append(match["colon"] or "")
        end = match.end()
    return join([*parts, escaped(text[end:])])
