"""What must not stand anywhere in the tree: ways to run what somebody has sent."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("engine", "service", "tests", "config")

# NOTE: Each with a pair of brackets in it, so that this file does not have what it looks for.
FORBIDDEN = {
    "unpickling": r"\b[c_]*pickl[e]\b|\b(cloudpickl[e]|dil[l])\b",
    "unmarshalling": r"\bmarsha[l]\b",
    "evaluating text": r"(?<![\w.])eva[l]\(",
    "executing text": r"(?<![\w.])exe[c]\(",
    "YAML that makes objects": r"\byaml\.(loa[d]|unsaf[e]|full_loa[d]|Unsaf[e]Loader)",
    "a shell": r"\bshell\s*=\s*Tru[e]|\bos\.syste[m]\b|\bos\.pope[n]\b",
    "importing by a name at run time": r"__impor[t]__\(",
}


def texts() -> Iterator[tuple[Path, str]]:
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                yield path, path.read_text(errors="replace")


@pytest.mark.parametrize("what", FORBIDDEN)
def test_nothing_in_the_tree_runs_what_somebody_has_sent(what: str) -> None:
    pattern = re.compile(FORBIDDEN[what])
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path, text in texts()
        for number, line in enumerate(text.splitlines(), 1)
        if pattern.search(line)
    ]
    assert found == []


@pytest.mark.parametrize(
    ("what", "line"),
    [
        ("unpickling", "import pickl" + "e"),
        ("unmarshalling", "marsha" + "l.loads(x)"),
        ("evaluating text", "x = eva" + "l(y)"),
        ("executing text", "exe" + "c(y)"),
        ("YAML that makes objects", "yaml.loa" + "d(x, Loader=y)"),
        ("YAML that makes objects", "yaml.unsaf" + "e_load(x)"),
        ("a shell", "run(x, shell=Tru" + "e)"),
        ("a shell", "os.syste" + "m(x)"),
        ("importing by a name at run time", "__impor" + "t__(x)"),
    ],
)
def test_the_patterns_find_what_they_are_for(what: str, line: str) -> None:
    assert re.search(FORBIDDEN[what], line)


def test_the_tree_was_looked_at() -> None:
    assert {path.relative_to(ROOT).parts[0] for path, _ in texts()} == set(FOLDERS)
