"""The API's document: as it stands, as JSON, and as a page for people."""

from __future__ import annotations

import json
from functools import cached_property
from typing import Any, Final

import falcon

from service.context import Context
from service.document import Document
from service.operations import operation

YAML: Final = "application/yaml"


class OpenapiYaml:
    """Serves the document's file."""

    def __init__(self, document: Document) -> None:
        self._document = document

    @operation("getOpenapiYaml", 200)
    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """The bytes of the file."""
        resp.content_type = YAML
        resp.data = self._document.source


class OpenapiJson:
    """Serves the document as JSON."""

    def __init__(self, document: Document) -> None:
        self._document = document

    @operation("getOpenapiJson", 200)
    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """The same content in the same order."""
        resp.content_type = falcon.MEDIA_JSON
        resp.data = self._rendered

    # PERF: Made when first asked for, as the page below is: a start has less than a second.
    @cached_property
    def _rendered(self) -> bytes:
        return json.dumps(self._document.content, ensure_ascii=False).encode()


class Docs:
    """Serves the page."""

    def __init__(self, document: Document) -> None:
        self._document = document

    @operation("getDocs", 200)
    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """The page, and a policy that lets it load nothing."""
        page, policy = self._rendered
        resp.content_type = falcon.MEDIA_HTML
        resp.set_header("Content-Security-Policy", policy)
        resp.data = page

    @cached_property
    def _rendered(self) -> tuple[bytes, str]:
        from service.docs import page

        return page.render(self._document).encode(), page.security_policy()


def routes(context: Context) -> list[tuple[str, Any]]:
    """The document's three forms."""
    document = context.document
    return [
        ("/openapi.yaml", OpenapiYaml(document)),
        ("/openapi.json", OpenapiJson(document)),
        ("/docs", Docs(document)),
    ]
