"""Pages of lists: how many at once, and the cursor that says where the next one begins."""

from __future__ import annotations

from typing import Any, Final

import falcon

DEFAULT_LIMIT: Final = 100

_BYTES: Final = 16


def limit(req: falcon.Request) -> int:
    """How many a page may have; the document has its bounds."""
    return req.get_param_as_int("limit", default=DEFAULT_LIMIT)


def start(req: falcon.Request) -> int | None:
    """Where the page begins; None for the first one. Every cursor of the documented form is a place."""
    given = req.get_param("cursor")
    return None if given is None else int.from_bytes(bytes.fromhex(given), "big", signed=True)


def seat(req: falcon.Request) -> int:
    """The same for a list of numbered seats."""
    return max(0, start(req) or 0)


def cursor(position: int | None) -> str | None:
    """What a client gives to get the page that begins at a position; None after the last one. Opaque to clients."""
    return None if position is None else position.to_bytes(_BYTES, "big", signed=True).hex()


def page(name: str, members: list[Any], position: int | None) -> dict[str, Any]:
    """The body of a page."""
    return {name: members, "next_cursor": cursor(position)}
