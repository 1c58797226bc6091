"""Every call of curl that the document shows, made against a real server."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from service import assets
from service.document import Document, Operation
from service.schemas import Schemas
from service.validation import decoded
from tests.support.server import Server

DOCUMENT = Document.load(assets.openapi_path())
SCHEMAS = Schemas(DOCUMENT)
OPERATIONS = list(DOCUMENT.operations())
[SET_QUOTA] = [operation for operation in OPERATIONS if operation.spec["operationId"] == "setQuota"]
ADDRESS = DOCUMENT.content["servers"][0]["url"]


def call(operation: Operation, server: Server, folder: Path) -> tuple[int, str, bytes]:
    """Status, media type and body that the operation's own example call gets."""
    command = shlex.split(operation.spec["x-curl"].replace(ADDRESS, server.http_url))
    body = folder / "body"
    extra = ["--noproxy", "*", "--max-time", "20", "--output", str(body), "--write-out", "%{http_code} %{content_type}"]
    done = subprocess.run([*command, *extra], capture_output=True, text=True, timeout=30, check=True)
    status, _, content_type = done.stdout.partition(" ")
    return int(status), content_type.partition(";")[0], body.read_bytes()


def test_curl_is_there() -> None:
    assert shutil.which("curl"), "these tests need the curl program; install it with your system's packages"


@pytest.mark.parametrize("operation", OPERATIONS, ids=str)
def test_an_example_call_names_its_own_operation(operation: Operation) -> None:
    command = shlex.split(operation.spec["x-curl"])
    asked = command[command.index("-X") + 1] if "-X" in command else "GET"
    [url] = [word for word in command if word.startswith(ADDRESS)]
    path = re.sub(r"\\{\w+\\}", "[^/]+", re.escape(operation.template))
    assert asked == operation.method
    assert re.fullmatch(path, url.removeprefix(ADDRESS).partition("?")[0])


@pytest.mark.parametrize("operation", OPERATIONS, ids=str)
def test_an_example_call_gets_what_the_document_says(operation: Operation, server: Server, tmp_path: Path) -> None:
    # So that the job and the quota of the examples are there.
    assert server.post("/api/cache/clear")[0] == 200
    assert call(SET_QUOTA, server, tmp_path)[0] == 200
    status, media_type, body = call(operation, server, tmp_path)
    assert status == 200
    found = DOCUMENT.response(operation, str(status))
    assert found is not None
    pointer, response = found
    assert media_type in response["content"]
    escaped = media_type.replace("/", "~1")
    assert SCHEMAS.faults(f"{pointer}/content/{escaped}/schema", decoded(media_type, body), "body") == []
