"""The wheel carries the two contracts, so that an installed kvkeep works from any folder."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.support.server import ROOT


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel's content in a folder by itself, as an installer would lay it out."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, capture_output=True, timeout=60, check=True)
    [wheel] = folder.glob("kvkeep-*.whl")
    zipfile.ZipFile(wheel).extractall(folder / "site")
    return folder / "site"


def run(installed: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    code = (
        "import sys, service.__main__ as m; assert m.__file__.startswith(sys.argv[1]); sys.exit(m.main(sys.argv[2:]))"
    )
    # NOTE: -P and a folder of its own, so that neither this checkout nor an editable install of it is what runs.
    command = [sys.executable, "-P", "-c", code, str(installed), *arguments]
    env = {**os.environ, "PYTHONPATH": str(installed)}
    return subprocess.run(command, cwd="/", env=env, capture_output=True, text=True, timeout=60, check=False)


def test_an_installed_kvkeep_finds_its_contracts(installed: Path) -> None:
    shown = run(installed, "show-config")
    assert (shown.returncode, shown.stderr) == (0, "")
    checked = run(installed, "check-config", str(installed / "service" / "config" / "default.yaml"))
    assert checked.returncode == 0


def test_the_api_document_is_found_too(installed: Path) -> None:
    # An address that cannot be listened on is met only after code and document were compared.
    done = run(installed, "--port", "0", "--http-port", "0", "--http-host", "no.such.host.invalid")
    assert (done.returncode, "cannot listen" in done.stderr) == (1, True)


def test_nothing_else_travels(installed: Path) -> None:
    assert {path.name for path in installed.iterdir()} == {"engine", "service", installed_info(installed)}
    config = installed / "service" / "config"
    assert {path.name for path in config.iterdir()} == {"default.yaml", "examples", "schema.json"}


def installed_info(installed: Path) -> str:
    [info] = installed.glob("kvkeep-*.dist-info")
    assert (info / "licenses" / "LICENSE").exists()
    assert "kvkeep = service.__main__:run" in (info / "entry_points.txt").read_text()
    return info.name
