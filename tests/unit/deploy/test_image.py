"""The Dockerfile, which nothing here builds: its sources, its base, its user, its ports, and its health check."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.http_server import HttpServer
from tests.support.server import ROOT, free_port

DOCKERFILE = ROOT / "config" / "deploy" / "Dockerfile"

Instruction = tuple[str, str]


def instructions() -> list[Instruction]:
    """Name and arguments of each, with continued lines joined and comments taken out."""
    lines = [line for line in DOCKERFILE.read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(name, rest.strip()) for name, _, rest in (line.partition(" ") for line in joined.splitlines() if line)]


def arguments(name: str) -> list[str]:
    return [rest for each, rest in instructions() if each == name]


def copied() -> list[tuple[list[str], str]]:
    """Sources in the checkout and destination of each COPY that is not from another stage."""
    parts = [shlex.split(rest) for rest in arguments("COPY") if not rest.startswith("--from")]
    return [(part[:-1], part[-1]) for part in parts]


def ignored(path: str) -> bool:
    """Whether .dockerignore keeps a path away: the last pattern that fits it or a folder above it decides."""
    result = False
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = line.strip()
        if pattern and not pattern.startswith("#"):
            kept = pattern.startswith("!")
            if any(_fits(pattern.removeprefix("!"), part) for part in _with_parents(path)):
                result = not kept
    return result


def _with_parents(path: str) -> list[str]:
    return [path, *(str(parent) for parent in Path(path).parents if str(parent) != ".")]


def _fits(pattern: str, path: str) -> bool:
    # NOTE: fnmatch's star crosses slashes and Docker's does not, so patterns without a slash meet first parts only.
    if pattern.startswith("**/"):
        return fnmatch(Path(path).name, pattern.removeprefix("**/"))
    return path.count("/") == pattern.count("/") and fnmatch(path, pattern)


@pytest.mark.parametrize("source", [source for sources, _ in copied() for source in sources])
def test_every_copied_source_exists_and_reaches_the_build(source: str) -> None:
    found = list(ROOT.glob(source))
    assert found
    assert [str(path.relative_to(ROOT)) for path in found if ignored(str(path.relative_to(ROOT)))] == []


@pytest.mark.parametrize(
    "path", [".git/HEAD", ".tox/x", "tests/unit", "config/deploy/Dockerfile", "engine/__pycache__"]
)
def test_the_rest_of_the_checkout_does_not(path: str) -> None:
    assert ignored(path)


def test_what_is_copied_is_all_that_the_wheel_is_made_of(tmp_path: Path) -> None:
    source = tmp_path / "src"
    for sources, destination in copied():
        for name in sources:
            _copy(ROOT / name, source / destination / ("" if (ROOT / name).is_dir() else name))
    assert _wheel_names(source, tmp_path / "copied") == _wheel_names(ROOT, tmp_path / "checkout")


def _copy(source: Path, target: Path) -> None:
    if not source.is_dir():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)
        return
    for path in source.rglob("*"):
        if path.is_file() and not ignored(str(path.relative_to(ROOT))):
            _copy(path, target / path.relative_to(source))


def _wheel_names(folder: Path, target: Path) -> list[str]:
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(target)]
    subprocess.run(build, cwd=folder, capture_output=True, timeout=60, check=True)
    [wheel] = target.glob("kvkeep-*.whl")
    return sorted(zipfile.ZipFile(wheel).namelist())


def test_the_base_is_a_python_that_is_supported() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    bases = [rest.split()[0] for rest in arguments("FROM")]
    [version] = {re.fullmatch(r"python:(3\.\d+)-slim-\w+", base)[1] for base in bases}  # type: ignore[index]
    assert f"Programming Language :: Python :: {version}" in project["classifiers"]


def test_everything_is_installed_under_the_constraints() -> None:
    installs = [command for rest in arguments("RUN") for command in rest.split("&&") if "pip install" in command]
    assert len(installs) == 3
    assert all("--constraint constraints.txt" in install and "--no-cache-dir" in install for install in installs)


def test_torch_is_for_the_cpu_unless_the_build_says_otherwise() -> None:
    assert arguments("ARG") == ["TORCH_INDEX=https://download.pytorch.org/whl/cpu"]
    assert any('--index-url "${TORCH_INDEX}" torch' in rest for rest in arguments("RUN"))


def test_the_user_is_the_one_of_the_manifests_and_not_root() -> None:
    daemonset = yaml.safe_load((ROOT / "config/deploy/kubernetes/node/daemonset.yaml").read_text())
    security = daemonset["spec"]["template"]["spec"]["securityContext"]
    assert arguments("USER") == [f"{security['runAsUser']}:{security['runAsGroup']}"]
    assert security["runAsUser"] > 0
    # The last that is said about the user holds; nothing after it may need root.
    assert [name for name, _ in instructions()][-5:] == ["USER", "EXPOSE", "HEALTHCHECK", "ENTRYPOINT", "CMD"]


def test_the_ports_are_the_defaults() -> None:
    defaults = yaml.safe_load((ROOT / "config" / "default.yaml").read_text())
    ports = [defaults[section]["port"] for section in ("server", "http")]
    assert arguments("EXPOSE") == [" ".join(map(str, ports))]


def test_the_program_is_the_console_script() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    [entry] = arguments("ENTRYPOINT")
    assert json.loads(entry) == list(scripts)


def health_check(port: int) -> int:
    """Runs what the image runs, against another port."""
    [check] = arguments("HEALTHCHECK")
    program, flag, code = json.loads(check.partition("CMD ")[2])
    assert (program, flag, "8080" in code) == ("python", "-c", True)
    command = [sys.executable, flag, code.replace("8080", str(port))]
    return subprocess.run(command, capture_output=True, timeout=30, check=False).returncode


@pytest.mark.parametrize(("status", "healthy"), [("200 OK", True), ("503 Service Unavailable", False)])
def test_the_health_check_tells_a_server_that_serves(status: str, healthy: bool) -> None:
    asked = []

    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        asked.append((environ["REQUEST_METHOD"], environ["PATH_INFO"]))
        start_response(status, [("Content-Length", "0")])
        return []

    http = HttpServer(app, "127.0.0.1", 0, 1, lambda error: None)
    http.start()
    try:
        assert (health_check(http.port) == 0) is healthy
    finally:
        http.stop()
    assert asked == [("GET", "/api/healthcheck")]


def test_the_health_check_fails_where_nobody_listens() -> None:
    assert health_check(free_port()) != 0
