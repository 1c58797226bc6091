"""Stands in front of every operation and asks the policy whether it is carried out."""

from __future__ import annotations

from typing import Any, Final

import falcon

from service.access import AccessControl, Asked, Refusal
from service.validation import Described

_REALM: Final = 'Bearer realm="kvkeep"'

_REASONS: Final = {
    Refusal.NO_TOKEN: "this operation needs a token: send the header `Authorization: Bearer TOKEN`",
    Refusal.INVALID_TOKEN: "the token in the Authorization header is none of this server's",
    Refusal.FROM_ELSEWHERE: (
        "this server has no tokens, so only its own machine may change something; "
        "set http.tokens, or http.allow_unauthenticated"
    ),
    Refusal.ROLE: "this operation needs a token with the role operator; this one has the role reader",
    Refusal.CROSS_SITE: "a page of another site made the browser send this; it is not carried out",
}

_CHALLENGES: Final = {
    Refusal.NO_TOKEN: _REALM,
    Refusal.INVALID_TOKEN: f'{_REALM}, error="invalid_token"',
    Refusal.FROM_ELSEWHERE: _REALM,
    Refusal.ROLE: f'{_REALM}, error="insufficient_scope"',
}
_FORBIDDEN: Final = (Refusal.ROLE, Refusal.CROSS_SITE)


class AccessMiddleware:
    """Refuses what the policy in force does not allow.

    It asks for operations of the document only. Unknown paths, unknown methods and OPTIONS are answered to everybody:
    what they tell stands in the document, which is public, and a client learns of its wrong path rather than of a
    missing token.
    """

    def __init__(self, access: AccessControl, described: Described) -> None:
        self._access = access
        self._described = described

    def process_resource(self, req: falcon.Request, resp: falcon.Response, resource: Any, params: Any) -> None:
        """Remembers who asks. Raises 401 or 403."""
        operation = self._described.operation(req)
        if operation is None:
            return
        decision = self._access.policy.decide(_asked(req, operation.spec["x-role"]))
        req.context.who = decision.who
        if decision.refusal is not None:
            raise _error(decision.refusal)


def _asked(req: falcon.Request, need: str) -> Asked:
    return Asked(
        need=need,
        # NOTE: The connection's own end, which no header can change. Only a call without a connection has none, and it
        # comes from this process.
        peer=req.remote_addr,
        authorization=req.get_header("Authorization"),
        host=req.get_header("Host") or "",
        origin=req.get_header("Origin"),
        fetch_site=req.get_header("Sec-Fetch-Site"),
    )


def _error(refusal: Refusal) -> falcon.HTTPError:
    status = falcon.HTTP_403 if refusal in _FORBIDDEN else falcon.HTTP_401
    challenge = _CHALLENGES.get(refusal)
    headers = {"WWW-Authenticate": challenge} if challenge else None
    return falcon.HTTPError(status, description=_REASONS[refusal], headers=headers)
