"""HTML that cannot be forgotten to be escaped: plain text becomes HTML by escaping only. Pure."""

from __future__ import annotations

import html
from collections.abc import Iterable
from typing import Final

_VOID: Final = frozenset({"input", "link", "meta"})


class Html(str):
    """Text that is HTML already."""

    __slots__ = ()


def escaped(text: str) -> Html:
    """HTML that shows the text; what is HTML stays as it is."""
    return text if isinstance(text, Html) else Html(html.escape(text))


def join(parts: Iterable[str], between: str = "") -> Html:
    """One part after the other."""
    return Html(escaped(between).join(escaped(part) for part in parts))


def element(tag: str, /, *children: str, **attributes: str | bool | None) -> Html:
    """An element around its children.

    A trailing underscore of an attribute's name is dropped (`class_`), others become hyphens (`aria_label`). True
    stands for an attribute without a value, None and False for none.
    """
    start = f"<{tag}{''.join(_attribute(*each) for each in attributes.items())}>"
    return Html(start) if tag in _VOID else Html(f"{start}{join(children)}</{tag}>")


def _attribute(name: str, value: str | bool | None) -> str:
    if value is None or value is False:
        return ""
    written = name.removesuffix("_").replace("_", "-")
    return f" {written}" if value is True else f' {written}="{html.escape(value)}"'
