"""What a responder says of itself: which operation of the document it serves, and how that can end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

ATTRIBUTE = "__kvkeep_operation__"

Responder = TypeVar("Responder", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Declaration:
    """A responder's operationId and its own statuses; those of the middleware are not its business."""

    operation_id: str
    statuses: frozenset[int]


def operation(operation_id: str, *statuses: int) -> Callable[[Responder], Responder]:
    """Declares the operation that a responder serves and every status that it can answer."""

    def declare(responder: Responder) -> Responder:
        setattr(responder, ATTRIBUTE, Declaration(operation_id, frozenset(statuses)))
        return responder

    return declare


def declaration(responder: Callable[..., Any]) -> Declaration | None:
    """What was declared for a responder, if anything."""
    found: Declaration | None = getattr(responder, ATTRIBUTE, None)
    return found
