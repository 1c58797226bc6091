"""Pages of lists: how many at once, and the cursor that says where the next one begins."""

from __future__ import annotations

import base64
import binascii
from typing import Any, Final

import falcon

from service.errors import InvalidRequestError

DEFAULT_LIMIT: Final = 100

_INTEGER_BYTES: Final = 16


def limit(req: falcon.Request) -> int:
    """How many a page may have; the document has its bounds."""
    return req.get_param_as_int("limit", default=DEFAULT_LIMIT)


def start(req: falcon.Request, kind: str) -> int | None:
    """Where the page of this kind of list begins; None for the first one. Raises InvalidRequestError."""
    given = req.get_param("cursor")
    return None if given is None else _decoded(given, kind)


def cursor(kind: str, position: int | None) -> str | None:
    """What a client gives to get the page that begins at a position; None after the last one. Opaque to clients."""
    if position is None:
        return None
    packed = kind.encode() + b":" + position.to_bytes(_INTEGER_BYTES, "big", signed=True)
    return base64.urlsafe_b64encode(packed).decode().rstrip("=")


def page(name: str, members: list[Any], kind: str, position: int | None) -> dict[str, Any]:
    """The body of a page."""
    return {name: members, "next_cursor": cursor(kind, position)}


def _decoded(text: str, kind: str) -> int:
    try:
        packed = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        packed = b""
    head, separator, number = packed.partition(b":")
    if head != kind.encode() or not separator or len(number) != _INTEGER_BYTES:
        raise InvalidRequestError([("/query/cursor", "is no cursor of this list; take next_cursor of its last page")])
    return int.from_bytes(number, "big", signed=True)
