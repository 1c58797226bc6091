"""Who may do what over HTTP: decided here, from plain values; asked by the guard in front of every operation."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum, auto
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final, Literal

Role = Literal["reader", "operator"]
"""What a token may do: read, or read and change."""

ANONYMOUS: Final = "anonymous"
"""How the audit log calls a caller without a valid token."""

NEEDS: Final = ("probe", "metrics", "reader", "operator")
"""What an operation can need of its caller, its `x-role`: the first two can be open to everybody by setting."""

# The scheme in any case, and a token as RFC 6750 writes it.
_BEARER = re.compile(r"bearer +([A-Za-z0-9._~+/-]+=*) *", re.IGNORECASE)
_ORIGIN = re.compile(r"https?://(?P<authority>(?P<name>\[[^\]]*\]|[^:/]*)(:[0-9]+)?)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Token:
    """One caller that the server knows. The token itself is not kept."""

    name: str
    role: Role
    digest: bytes = field(repr=False)
    """SHA-256 of the token."""


def digest(token: str) -> bytes:
    """What is kept of a token, and what two of them are compared by."""
    return hashlib.sha256(token.encode()).digest()


@dataclass(frozen=True, slots=True)
class Asked:
    """What a decision needs to know of a request."""

    need: str
    """The operation's `x-role`."""
    peer: str
    """The address at the other end of the connection, never one that a header claims."""
    authorization: str | None = None
    host: str = ""
    origin: str | None = None
    fetch_site: str | None = None


class Refusal(Enum):
    """Why a request is not carried out."""

    NO_TOKEN = auto()
    INVALID_TOKEN = auto()
    FROM_ELSEWHERE = auto()
    """It would change something, there are no tokens, and it comes from another machine."""
    ROLE = auto()
    CROSS_SITE = auto()


@dataclass(frozen=True, slots=True)
class Decision:
    """Who asks, and why the answer is no, if it is."""

    who: str
    refusal: Refusal | None


@dataclass(frozen=True, slots=True)
class Policy:
    """The rules in force. By itself: no tokens, everybody reads, this machine changes."""

    tokens: tuple[Token, ...] = ()
    allow_unauthenticated: bool = False
    """Without tokens: whether other machines may change something."""
    open_probes: bool = True
    open_metrics: bool = False

    def decide(self, asked: Asked) -> Decision:
        """Whether a request is carried out, and as whose."""
        caller = self.caller(asked.authorization)
        refusal = self._unauthenticated(asked, caller) or self._forbidden(asked, caller)
        return Decision(caller.name if caller else ANONYMOUS, refusal)

    def caller(self, authorization: str | None) -> Token | None:
        """Whose token a header carries. Takes the same time wherever it stands in the list, or if it does not."""
        sent = _BEARER.fullmatch(authorization or "")
        theirs = digest(sent[1] if sent else "")
        found = None
        for token in self.tokens:
            if hmac.compare_digest(token.digest, theirs):
                found = token
        return found

    def _unauthenticated(self, asked: Asked, caller: Token | None) -> Refusal | None:
        if not self.tokens:
            is_open = asked.need != "operator" or self.allow_unauthenticated or is_loopback(asked.peer)
            return None if is_open else Refusal.FROM_ELSEWHERE
        if caller is not None or self._is_open(asked.need):
            return None
        scheme = (asked.authorization or "").partition(" ")[0].lower()
        return Refusal.INVALID_TOKEN if scheme == "bearer" else Refusal.NO_TOKEN

    def _is_open(self, need: str) -> bool:
        return (need == "probe" and self.open_probes) or (need == "metrics" and self.open_metrics)

    def _forbidden(self, asked: Asked, caller: Token | None) -> Refusal | None:
        if asked.need != "operator":
            return None
        if caller is not None and caller.role != "operator":
            return Refusal.ROLE
        return Refusal.CROSS_SITE if _is_cross_site(asked, caller is not None) else None


class AccessControl:
    """Holds the policy in force. Any thread reads it, whoever reloads the settings replaces it: one reference."""

    def __init__(self, policy: Policy | None = None) -> None:
        self._policy = policy or Policy()

    @property
    def policy(self) -> Policy:
        """The rules for the next request."""
        return self._policy

    def replace(self, policy: Policy) -> None:
        """From the next request on, other rules."""
        self._policy = policy


def is_loopback(address: str) -> bool:
    """Whether an address is this machine's own, also as IPv4 in IPv6. A name other than localhost is none."""
    if address.lower() == "localhost":
        return True
    try:
        parsed: IPv4Address | IPv6Address = ip_address(address)
    except ValueError:
        return False
    mapped = parsed.ipv4_mapped if isinstance(parsed, IPv6Address) else None
    return (mapped or parsed).is_loopback


def exposures(policy: Policy, http_host: str, data_host: str) -> Iterator[str]:
    """What the addresses open to other machines, one sentence each, for the log at the start."""
    if not is_loopback(http_host) and not policy.tokens:
        yield (
            f"the HTTP API listens on {http_host} without tokens: who reaches it can {_reach(policy)}; "
            "set http.tokens, or listen on 127.0.0.1"
        )
    if not is_loopback(data_host):
        yield (
            f"the data plane listens on {data_host} and has no authentication: who reaches it can read and store "
            "what is cached; keep it to a trusted network"
        )


def _reach(policy: Policy) -> str:
    if policy.allow_unauthenticated:
        return "read everything and change everything (http.allow_unauthenticated)"
    return "read everything; only this machine itself can change something"


def _is_cross_site(asked: Asked, has_token: bool) -> bool:
    """Whether a page of somebody else has made a browser send this. What is no browser sends neither header."""
    if (asked.fetch_site or "").lower() == "cross-site":
        return True
    if asked.origin is None:
        return False
    own = _ORIGIN.fullmatch(asked.origin)
    if own is None or own["authority"].lower() != asked.host.lower():
        return True
    # NOTE: A page can have its own name resolve to this machine, and then its origin is the request's own host. It
    # cannot do so with an address, and it does not have a token.
    return not has_token and not _is_address(own["name"])


def _is_address(name: str) -> bool:
    try:
        ip_address(name.strip("[]"))
    except ValueError:
        return name.lower() == "localhost"
    return True
