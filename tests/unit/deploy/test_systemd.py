"""The systemd unit: what systemd itself says of it, and what has to agree with the server."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import defaultdict
from pathlib import Path

import pytest
import yaml

from service.__main__ import REFUSED
from tests.support.server import ROOT
from tests.unit.deploy import sizing

UNIT = ROOT / "config" / "deploy" / "systemd" / "kvkeep.service"
ANALYZE = shutil.which("systemd-analyze")


def settings() -> dict[str, list[str]]:
    """Every value of every key, in order."""
    found: dict[str, list[str]] = defaultdict(list)
    for line in UNIT.read_text().splitlines():
        if match := re.fullmatch(r"(\w+)=(.*)", line):
            found[match[1]].append(match[2])
    return found


def one(name: str) -> str:
    [value] = settings()[name]
    return value


@pytest.mark.skipif(ANALYZE is None, reason="there is no systemd-analyze here")
def test_systemd_finds_no_fault(tmp_path: Path) -> None:
    copy = tmp_path / UNIT.name
    # It asks whether the program exists, which it does only where kvkeep is installed.
    copy.write_text(UNIT.read_text().replace("ExecStart=/opt/kvkeep/bin/kvkeep", f"ExecStart={shutil.which('true')}"))
    command = [str(ANALYZE), "verify", "--man=no", str(copy)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    # It also loads what the unit depends on, and says what it does not like about that.
    about_us = [line for line in done.stderr.splitlines() if "kvkeep" in line]
    assert (about_us, done.returncode) == ([], 0)


def test_the_times_follow_from_the_l1_that_it_is_installed_with() -> None:
    config = yaml.safe_load((ROOT / "config" / "examples" / "node-cache.yaml").read_text())
    assert "config/examples/node-cache.yaml /etc/kvkeep/kvkeep.yaml" in UNIT.read_text()
    l1 = sizing.largest_l1(config)
    assert sizing.seconds(one("TimeoutStartSec")) == sizing.start_seconds(l1)
    assert sizing.seconds(one("TimeoutStopSec")) == sizing.stop_seconds(l1)


def test_readiness_is_told_by_the_server() -> None:
    assert (one("Type"), one("NotifyAccess")) == ("notify", "main")
    assert sizing.seconds(one("WatchdogSec")) >= 10


def test_what_was_refused_is_not_tried_again() -> None:
    assert (one("Restart"), one("RestartPreventExitStatus")) == ("on-failure", str(REFUSED))


def test_a_reload_is_a_hangup() -> None:
    assert one("ExecReload") == "/bin/kill -HUP $MAINPID"


def test_it_is_not_root_and_cannot_become_it() -> None:
    assert (one("User"), one("NoNewPrivileges"), one("CapabilityBoundingSet")) == ("kvkeep", "yes", "")
    assert one("ProtectSystem") == "strict"


def test_shared_memory_stays_shared() -> None:
    """Each of these would hide /dev/shm from the engines, take segments away, or hide the GPUs."""
    forbidden = {"PrivateIPC", "PrivateUsers", "PrivateDevices", "DynamicUser", "TemporaryFileSystem", "RootDirectory"}
    assert forbidden & settings().keys() == set()
    assert one("RemoveIPC") == "no"
    assert not any("/dev" in path for name in ("InaccessiblePaths", "ReadOnlyPaths") for path in settings()[name])


def test_code_of_torch_may_be_made_at_runtime() -> None:
    assert "MemoryDenyWriteExecute" not in settings()
    assert one("LimitMEMLOCK") == "infinity"
