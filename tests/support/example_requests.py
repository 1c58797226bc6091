"""A request for every operation of the document, made of the document's own examples."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlencode

from service.document import Document, Operation


@dataclass(frozen=True)
class ExampleRequest:
    """What to send."""

    method: str
    path: str
    query: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""

    @property
    def target(self) -> str:
        """Path and query, as they stand in the request line."""
        return f"{self.path}?{self.query}" if self.query else self.path


def example_request(document: Document, operation: Operation) -> ExampleRequest:
    """The request that an operation's examples describe; with its required parameters only."""
    required = [each for _, each in document.parameters(operation) if each.get("required")]
    path = operation.template
    for each in required:
        if each["in"] == "path":
            path = path.replace(f"{{{each['name']}}}", quote(str(_example(each)), safe=""))
    query = urlencode({each["name"]: _example(each) for each in required if each["in"] == "query"}, doseq=True)
    headers = {each["name"]: str(_example(each)) for each in required if each["in"] == "header"}
    content = operation.spec.get("requestBody", {}).get("content", {})
    if "application/json" not in content:
        return ExampleRequest(operation.method, path, query, headers)
    body = json.dumps(_example(content["application/json"])).encode()
    return ExampleRequest(operation.method, path, query, {**headers, "Content-Type": "application/json"}, body)


def _example(node: dict[str, Any]) -> Any:
    return node["example"] if "example" in node else next(iter(node["examples"].values()))["value"]
