"""Puts the HTTP application together from what it is given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import falcon
from falcon.routing import CompiledRouter

from service import errors
from service.audit import AuditMiddleware
from service.context import Context
from service.contract import ContractError, differences, plain
from service.discovery import Route, discover
from service.guard import AccessMiddleware
from service.http_metrics import HttpMetricsMiddleware
from service.request_id import RequestIdMiddleware
from service.schemas import Schemas
from service.validation import BodyLimitMiddleware, Described, RequestValidation, ResponseValidation

RESOURCES = "service.resources"

App = falcon.App[falcon.Request, falcon.Response]


class DerivingRouter(CompiledRouter):
    """Answers HEAD wherever GET is answered, and OPTIONS everywhere.

    Falcon drops the body of an answer to HEAD and keeps its length.
    """

    def map_http_methods(self, resource: object, **kwargs: Any) -> Any:
        """The resource's responders by method, with those two derived."""
        methods: dict[str, Any] = dict(super().map_http_methods(resource, **kwargs))
        if "GET" in methods:
            methods["HEAD"] = methods["GET"]
        methods["OPTIONS"] = _options_responder(sorted({*methods, "OPTIONS"}))
        return methods


def _options_responder(allowed: list[str]) -> Callable[..., None]:
    def on_options(req: falcon.Request, resp: falcon.Response, **params: Any) -> None:
        resp.status = falcon.HTTP_204
        resp.set_header("Allow", ", ".join(allowed))

    return on_options


def create_app(context: Context, *, resources: str = RESOURCES, validate_responses: bool = False) -> App:
    """The application over what its resources use.

    Raises ContractError with every difference between the resources and the document.
    """
    document = context.document
    found = discover(resources, context)
    wrong = differences(document, found)
    if wrong:
        raise ContractError(wrong)
    context.http_metrics.expect(document)
    app = _application(context, {route.template: plain(route.template) for route in found.routes}, validate_responses)
    _add_routes(app, found.routes)
    return app


def _application(context: Context, templates: dict[str, str], validate_responses: bool) -> App:
    document, router = context.document, DerivingRouter()
    described, schemas = Described(document, templates, router.find), Schemas(document)
    # NOTE: Answers pass through in the opposite order: the audit sees what the checks made of them.
    middleware: list[Any] = [
        HttpMetricsMiddleware(context.http_metrics, described),
        RequestIdMiddleware(),
        AuditMiddleware(context.access, document, described),
        BodyLimitMiddleware(),
        AccessMiddleware(context.access, described),
        RequestValidation(document, described, schemas),
    ]
    if validate_responses:
        middleware.append(ResponseValidation(document, described, schemas))
    app: App = falcon.App(middleware=middleware, router=router)
    # NOTE: A missing value is a value here: `?verbose` must be told from no `verbose` at all.
    app.req_options.keep_blank_qs_values = True
    app.req_options.strip_url_path_trailing_slash = False
    errors.install(app)
    return app


def _add_routes(app: App, routes: list[Route]) -> None:
    wrong = []
    for route in routes:
        try:
            app.add_route(route.template, route.resource)
        except (TypeError, ValueError) as error:
            wrong.append(f"{route.template}: {route.module} cannot be routed: {error}")
    if wrong:
        raise ContractError(wrong)
