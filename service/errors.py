"""The one error shape of the API, and the only table from errors to statuses."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import falcon

from engine import (
    AmbiguousError,
    EngineError,
    EngineStoppedError,
    EngineTimeoutError,
    NoMemoryError,
    PinError,
    PrefetchError,
    QuotaError,
    RecordingError,
    TierError,
)
from service.request_id import request_id

PROBLEM_JSON = "application/problem+json"

log = logging.getLogger("kvkeep.http")

# The engine's refusals. After 503 a client may try again, with this server or with the one after it.
_ENGINE_STATUS: dict[type[EngineError], int] = {
    AmbiguousError: 409,
    EngineStoppedError: 503,
    EngineTimeoutError: 503,
    NoMemoryError: 507,
    PinError: 409,
    PrefetchError: 409,
    QuotaError: 409,
    RecordingError: 409,
    TierError: 409,
}

_DETAIL = {
    404: "no operation has this path; openapi.yaml lists them all",
    405: "the path exists, but not with this method; the Allow header lists those it has",
    500: "the request could not be carried out; the server's log tells why under this request id",
}


class InvalidRequestError(falcon.HTTPBadRequest):
    """The request is not what the document says; carries a pointer and a reason for each fault."""

    def __init__(self, faults: Sequence[tuple[str, str]]) -> None:
        super().__init__(description="; ".join(f"{pointer}: {reason}" for pointer, reason in faults))
        self.faults = tuple(faults)


class ProblemError(falcon.HTTPError):
    """A problem with members of its own beside those that every problem has."""

    def __init__(self, status: int, detail: str, **members: Any) -> None:
        super().__init__(status, description=detail)
        self.members = members


class UnavailableError(ProblemError):
    """The request cannot be served now; says why, with further members of the problem if there are any."""

    def __init__(self, reason: str, members: Mapping[str, Any] | None = None) -> None:
        super().__init__(503, reason, **(members or {}))


def engine_status(error: EngineError) -> int:
    """The status that tells an engine's refusal."""
    return _ENGINE_STATUS.get(type(error), 500)


def problem_body(status: int, detail: str, request_id: str) -> dict[str, Any]:
    """A problem as RFC 9457 has it; `type` is stable, one for each status."""
    # NOTE: Not from the standard library, which renamed some phrases between its versions; `type` must be stable.
    phrase = falcon.code_to_http_status(status).partition(" ")[2]
    kind = phrase.lower().replace(" ", "-")
    return {
        "type": f"urn:kvkeep:problem:{kind}",
        "title": phrase,
        "status": status,
        "detail": detail,
        "request_id": request_id,
    }


def install(app: falcon.App[Any, Any]) -> None:
    """Makes every error of the application answer in the one shape."""
    app.add_error_handler(Exception, _unexpected)
    app.add_error_handler(falcon.HTTPError, _http_error)


def _http_error(req: falcon.Request, resp: falcon.Response, error: falcon.HTTPError, params: dict[str, Any]) -> None:
    status = error.status_code
    body = problem_body(status, error.description or _DETAIL.get(status, ""), request_id(req))
    if isinstance(error, InvalidRequestError):
        body["errors"] = [{"pointer": pointer, "detail": reason} for pointer, reason in error.faults]
    if isinstance(error, ProblemError):
        body |= error.members
    resp.set_headers(error.headers or {})
    _answer(resp, status, body)


def _unexpected(req: falcon.Request, resp: falcon.Response, error: Exception, params: dict[str, Any]) -> None:
    log.error("%s %s failed", req.method, req.path, exc_info=error)
    _answer(resp, 500, problem_body(500, _DETAIL[500], request_id(req)))


def _answer(resp: falcon.Response, status: int, body: dict[str, Any]) -> None:
    resp.status = falcon.code_to_http_status(status)
    # NOTE: As bytes. A media object would need a handler of its own for this type; without one Falcon answers 415.
    resp.media = None
    resp.text = None
    resp.data = json.dumps(body).encode()
    resp.content_type = PROBLEM_JSON
