"""The model, the vLLM processes and where their progress is printed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.generate import Answers, Job
from tests.support.server import ROOT

if find_spec("vllm") is None:
    # Other environments collect the whole tree; vLLM lives in one of its own.
    collect_ignore_glob = ["test_*.py"]

PROCESS_TIMEOUT = 600.0

QUIET = {
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "LMCACHE_DISABLE_BANNER": "1",
    "LMCACHE_TRACK_USAGE": "false",
    "PYTHONHASHSEED": "0",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
    "VLLM_NO_USAGE_STATS": "1",
}

Say = Callable[[str], None]
Generate = Callable[..., Answers]


@pytest.fixture(scope="session")
def say(request: pytest.FixtureRequest) -> Say:
    """Print a line at once, whatever pytest captures: a run takes minutes."""
    capture = request.config.pluginmanager.getplugin("capturemanager")

    def line(text: str) -> None:
        with capture.global_and_fixture_disabled() if capture else nullcontext():
            print(text, flush=True)

    return line


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory, say: Say) -> Path:
    """The folder of the small model; made in a process of its own, so that this one needs no torch."""
    folder = tmp_path_factory.mktemp("model")
    say("\nmaking the model")
    program = "import pathlib, sys; from tests.e2e.model import make; make(pathlib.Path(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", program, str(folder)], cwd=ROOT, env={**os.environ, **QUIET}, check=True)
    return folder


@pytest.fixture(scope="session")
def generate(model: Path, tmp_path_factory: pytest.TempPathFactory, say: Say) -> Generate:
    """Run a fresh vLLM process over prompts and return its answers."""

    def run(name: str, prompts: list[list[int]], connector: dict[str, Any] | None = None) -> Answers:
        folder = tmp_path_factory.mktemp("run")
        file, log = folder / "job.json", folder / "output.log"
        Job(str(model), prompts, connector).save(file)
        say(f"{name}: vLLM starts")
        code = _run([sys.executable, "-m", "tests.e2e.generate", str(file)], log)
        assert code == 0, f"{name} ended with {code}\n{log.read_text(errors='replace')[-6000:]}"
        answers = Answers.load(file)
        for prompt, answer in zip(prompts, answers.answers, strict=True):
            say(f"{name}: {len(prompt)} tokens, {answer.external_hits} external hits, {answer.seconds:.2f} s")
        return answers

    return run


def _run(command: list[str], log: Path) -> int:
    """Run to the end, and leave none of the processes that vLLM starts behind, however it ended."""
    environment = {**os.environ, **QUIET}
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        return process.wait(PROCESS_TIMEOUT)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
