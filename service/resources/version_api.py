"""What runs here."""

from __future__ import annotations

import platform
from typing import Any, Final

import falcon

from service import __version__
from service.context import Context
from service.operations import operation

PROTOCOL: Final = "LMCache 0.5"


class Version:
    """Says which version this is, of the server and of its contracts."""

    def __init__(self, api_version: str) -> None:
        self._body = {
            "version": __version__,
            "api_version": api_version,
            "protocol": PROTOCOL,
            "python": platform.python_version(),
            "platform": f"{platform.system()} {platform.release()} {platform.machine()}",
        }

    @operation("getVersion", 200)
    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """The versions."""
        resp.media = self._body


def routes(context: Context) -> list[tuple[str, Any]]:
    """The version's route."""
    return [("/api/version", Version(context.document.content["info"]["version"]))]
