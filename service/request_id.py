"""Every request has an id: the caller's own, or one made here. It comes back in the answer."""

from __future__ import annotations

import re
import secrets
from typing import Any

import falcon

HEADER = "X-Request-ID"

# NOTE: What is taken over ends up in logs and headers, so it is held to characters that cannot forge either.
_ACCEPTABLE = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")


def request_id(req: falcon.Request) -> str:
    """The id of a request; made at the first call where the caller sent none that can be used."""
    found: str | None = getattr(req.context, "request_id", None)
    if found is None:
        sent = req.get_header(HEADER) or ""
        found = sent if _ACCEPTABLE.fullmatch(sent) else secrets.token_hex(8)
        req.context.request_id = found
    return found


class RequestIdMiddleware:
    """Returns the id with every answer, errors included."""

    def process_response(self, req: falcon.Request, resp: falcon.Response, resource: Any, req_succeeded: bool) -> None:
        """Sets the header."""
        resp.set_header(HEADER, request_id(req))
