"""Every request has an id: the caller's own, or one made here. It comes back in the answer."""

from __future__ import annotations

import re
import secrets
from typing import Any

import falcon

from service.logs import current_request

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
    """Returns the id with every answer, errors included, and gives it to the log's lines meanwhile."""

    def process_request(self, req: falcon.Request, resp: falcon.Response) -> None:
        """From here on this thread's lines carry the id."""
        current_request.set(request_id(req))

    def process_response(self, req: falcon.Request, resp: falcon.Response, resource: Any, req_succeeded: bool) -> None:
        """Sets the header. The last thing that is done for a request, and the thread goes on to others."""
        resp.set_header(HEADER, request_id(req))
        current_request.set(None)
