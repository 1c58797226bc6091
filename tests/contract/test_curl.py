"""Every call of curl that the document shows, made against a real server."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from service import assets
from service.document import Document, Operation
from service.schemas import Schemas
from service.validation import decoded
from tests.contract.worker import Worker
from tests.support.polling import until
from tests.support.server import Server

DOCUMENT = Document.load(assets.openapi_path())
SCHEMAS = Schemas(DOCUMENT)
OPERATIONS = list(DOCUMENT.operations())
[SET_QUOTA] = [operation for operation in OPERATIONS if operation.spec["operationId"] == "setQuota"]
[START_PREFETCH] = [operation for operation in OPERATIONS if operation.spec["operationId"] == "startPrefetch"]
GOOD = (200, 202)
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


@pytest.fixture(scope="module")
def used_server(server: Server) -> Iterator[Server]:
    """The server with what the examples speak of: a worker of their model, a prefetch of the id that is asked for."""
    with Worker(server, "meta-llama/Llama-3.1-8B-Instruct"):
        yield server


@pytest.fixture
def as_in_the_examples(used_server: Server, tmp_path: Path) -> Server:
    """The jobs, the quota and the tier of the examples are there, and nobody has paused the tier or works on it."""
    for name in ("memory", "nvme"):
        assert used_server.post(f"/api/l2/{name}/resume")[0] == 200
    until(lambda: all(each["work"] is None for each in used_server.get("/api/l2")[1]["tiers"]), "no tier is busy")
    for operation in (SET_QUOTA, START_PREFETCH):
        assert call(operation, used_server, tmp_path)[0] in GOOD
    while used_server.get("/api/cache/prefetches/8")[0] == 404:
        assert call(START_PREFETCH, used_server, tmp_path)[0] == 202
    return used_server


@pytest.mark.parametrize("operation", OPERATIONS, ids=str)
def test_an_example_call_gets_what_the_document_says(operation, as_in_the_examples: Server, tmp_path: Path) -> None:
    status, media_type, body = call(operation, as_in_the_examples, tmp_path)
    assert status in GOOD
    found = DOCUMENT.response(operation, str(status))
    assert found is not None
    pointer, response = found
    assert media_type in response["content"]
    escaped = media_type.replace("/", "~1")
    assert SCHEMAS.faults(f"{pointer}/content/{escaped}/schema", decoded(media_type, body), "body") == []
