"""Finds the resources: every module `*_api.py` of a package, and the routes that it exports."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import falcon.constants

from service.context import Context
from service.operations import Declaration, declaration

SUFFIX = "_api"
DERIVED = ("HEAD", "OPTIONS")


@dataclass(frozen=True, slots=True)
class Route:
    """One URI template with the resource that answers there."""

    module: str
    template: str
    resource: Any

    def responders(self) -> Iterator[tuple[str, Declaration | None]]:
        """The resource's methods in capitals, each with what it declares."""
        for method in falcon.constants.COMBINED_METHODS:
            responder = getattr(self.resource, f"on_{method.lower()}", None)
            if responder is not None:
                yield method, declaration(responder)


@dataclass(slots=True)
class Found:
    """The routes of a package, and what is wrong with its modules."""

    routes: list[Route] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def discover(package: str, context: Context) -> Found:
    """Imports the package's resource modules, in the order of their names, and collects their routes."""
    found = Found()
    for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
        if module.name.endswith(SUFFIX):
            _collect(f"{package}.{module.name}", context, found)
    return found


def _collect(module: str, context: Context, found: Found) -> None:
    try:
        routes = importlib.import_module(module).routes(context)
        found.routes += [Route(module, template, resource) for template, resource in routes]
    # NOTE: Whatever a module does wrong is one line of the refusal; none may hide the others.
    except Exception as error:
        found.problems.append(f"{module}: cannot be used: {type(error).__name__}: {error}")
