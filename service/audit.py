"""One line for every mutation that was asked for, whatever became of it."""

from __future__ import annotations

import logging
import time
from typing import Any, Final
from urllib.parse import urlencode

import falcon

from service.access import ANONYMOUS, AccessControl
from service.document import Document, Operation
from service.problems import MASK
from service.validation import Described

log = logging.getLogger("kvkeep.audit")
# NOTE: A level of its own, so that no setting and no change of the log level silences it.
log.setLevel(logging.INFO)

_TEXT: Final = "%(who)s from %(peer)s: %(operation)s %(method)s %(target)s: %(status)d, %(duration_ms).1f ms"


class AuditMiddleware:
    """Writes the line when the answer is known: who, from where, what, and how it ended."""

    def __init__(self, access: AccessControl, document: Document, described: Described) -> None:
        self._access = access
        self._document = document
        self._described = described

    def process_request(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Remembers when it began."""
        req.context.began = time.perf_counter()

    def process_response(self, req: falcon.Request, resp: falcon.Response, resource: Any, req_succeeded: bool) -> None:
        """Writes, if it was an operator's operation."""
        operation = self._described.operation(req)
        if operation is None or operation.spec["x-role"] != "operator":
            return
        fields = {
            "who": self._who(req),
            "peer": req.remote_addr,
            "operation": operation.spec["operationId"],
            "method": req.method,
            "target": _target(req, self._queries(operation)),
            "status": falcon.http_status_to_code(resp.status),
            "duration_ms": round(1000 * (time.perf_counter() - req.context.began), 1),
        }
        log.info(_TEXT, fields, extra=fields)

    def _who(self, req: falcon.Request) -> str:
        found: str | None = getattr(req.context, "who", None)
        if found is not None:
            return found
        caller = self._access.policy.caller(req.get_header("Authorization"))
        return caller.name if caller else ANONYMOUS

    def _queries(self, operation: Operation) -> set[str]:
        return {each["name"] for _, each in self._document.parameters(operation) if each["in"] == "query"}


def _target(req: falcon.Request, documented: set[str]) -> str:
    """Path and query. What the document does not know may be somebody's secret, its name too."""
    known = {name: value for name, value in req.params.items() if name in documented}
    parts = [urlencode(known, doseq=True)] if known else []
    if len(known) < len(req.params):
        parts.append(MASK)
    return "?".join([req.path, "&".join(parts)]) if parts else req.path
