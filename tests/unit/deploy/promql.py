"""Reads an expression of PromQL far enough to say which metrics it names, and by which labels."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

_TOKEN = re.compile(
    r"""(?P<space>\s+)
      | (?P<string>"(?:[^"\\]|\\.)*")
      | (?P<duration>[0-9]+(?:ms|[smhdwy])\b)
      | (?P<number>[0-9]+(?:\.[0-9]+)?(?:e[+-]?[0-9]+)?)
      | (?P<name>[a-zA-Z_:][a-zA-Z0-9_:]*)
      | (?P<variable>\$[a-zA-Z_]+)
      | (?P<sign>=~|!~|!=|==|<=|>=|[-+*/%^<>=(){}\[\],])""",
    re.VERBOSE,
)
_CLOSING = {"(": ")", "{": "}", "[": "]"}
_GROUPING = {"by", "without", "on", "ignoring", "group_left", "group_right"}
_WORDS = {"and", "or", "unless", "offset", "bool"}
FUNCTIONS = {
    *("avg", "count", "max", "min", "sum", "topk"),
    *("absent", "changes", "histogram_quantile", "increase", "rate"),
}
_MATCHERS = {"=", "!=", "=~", "!~"}


class PromqlError(Exception):
    """The text is not an expression."""


@dataclass
class Named:
    """What an expression names."""

    metrics: dict[str, set[str]] = field(default_factory=dict)
    """By name: the labels that its own braces match."""
    groupings: set[str] = field(default_factory=set)
    """Labels by which something is grouped or joined."""


def named(expression: str) -> Named:
    """Raises PromqlError for brackets that do not match, unknown functions, and what is no token at all."""
    return _Reader([token for token in _tokens(expression) if token[0] != "space"]).read()


def _tokens(expression: str) -> Iterator[tuple[str, str]]:
    place = 0
    while place < len(expression):
        found = _TOKEN.match(expression, place)
        if found is None or found.lastgroup is None:
            raise PromqlError(f"{expression[place:]!r} begins with no token")
        yield found.lastgroup, found[0]
        place = found.end()


class _Reader:
    def __init__(self, tokens: list[tuple[str, str]]) -> None:
        self._tokens = tokens
        self._place = 0
        self._found = Named()

    def read(self) -> Named:
        self._until(None)
        if not self._found.metrics:
            raise PromqlError("no metric is named")
        return self._found

    def _next(self) -> tuple[str, str] | None:
        token = self._tokens[self._place] if self._place < len(self._tokens) else None
        self._place += 1
        return token

    def _take(self, text: str) -> bool:
        """Whether that is what comes next; it is passed then."""
        there = self._place < len(self._tokens) and self._tokens[self._place][1] == text
        self._place += there
        return there

    def _until(self, closing: str | None) -> None:
        while (token := self._next()) is not None:
            kind, text = token
            if text == closing:
                return
            if text in _CLOSING:
                self._until(_CLOSING[text])
            elif text in _CLOSING.values():
                raise PromqlError(f"a {text!r} that nothing opened")
            elif kind == "name":
                self._name(text)
        if closing is not None:
            raise PromqlError(f"a {closing!r} is missing")

    def _name(self, text: str) -> None:
        if text in _GROUPING:
            self._found.groupings |= set(self._labels())
        elif text in FUNCTIONS:
            if self._tokens[self._place : self._place + 1] not in (
                [("sign", "(")],
                [("name", "by")],
                [("name", "without")],
            ):
                raise PromqlError(f"{text} is given nothing")
        elif text not in _WORDS:
            if self._take("("):
                raise PromqlError(f"{text} is no function")
            self._found.metrics.setdefault(text, set()).update(self._matchers() if self._take("{") else ())

    def _labels(self) -> Iterator[str]:
        if not self._take("("):
            raise PromqlError("labels are missing")
        while not self._take(")"):
            yield self._label()
            self._take(",")

    def _matchers(self) -> Iterator[str]:
        while not self._take("}"):
            yield self._label()
            operator, value = self._next(), self._next()
            if operator is None or operator[1] not in _MATCHERS or value is None or value[0] != "string":
                raise PromqlError("a label is matched with nothing")
            self._take(",")

    def _label(self) -> str:
        token = self._next()
        if token is None or token[0] != "name":
            raise PromqlError("a label is missing")
        return token[1]
