"""Reads the tokens of callers from their files. Of each only a digest is kept, and no problem shows one."""

from __future__ import annotations

import os
import re
import shlex
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from service.access import ANONYMOUS, Token, digest
from service.problems import Problem, SettingPath, dotted

MINIMUM_LENGTH: Final = 16
_MAXIMUM_BYTES: Final = 4096
_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")
_GENERATE: Final = "python3 -c 'import secrets; print(secrets.token_urlsafe(32))'"


@dataclass(frozen=True, slots=True)
class Entry:
    """One item of `http.tokens`, as the settings have it."""

    path: SettingPath
    place: str
    """Where its file is named."""
    name: str
    role: Any
    file: Path
    shown: str
    """How problems name the file: its path, or the variable that it comes from."""


@dataclass(slots=True)
class TokenFiles:
    """The tokens that could be read, and what is wrong with the rest."""

    tokens: list[Token] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


class _TokenError(Exception):
    """A file has no token that can be used; the message says why and what to do."""


def read_tokens(entries: list[Entry]) -> TokenFiles:
    """The tokens of all entries, every problem, and a warning for each file that everybody can read."""
    found = TokenFiles()
    paths: dict[str, SettingPath] = {}
    digests: dict[bytes, SettingPath] = {}
    for entry in entries:
        found.problems += _name_problems(entry, paths)
        try:
            content, mode = _read(entry)
            kept = digest(_token(content, entry))
        except _TokenError as error:
            found.problems.append(_problem(entry, str(error)))
            continue
        first = digests.setdefault(kept, entry.path)
        if first is not entry.path:
            found.problems.append(_problem(entry, f"has the same token as {dotted(first)}; {_remedy(entry)}"))
        found.tokens.append(Token(entry.name, entry.role, kept))
        if mode & stat.S_IROTH:
            found.warnings.append(_world_readable(entry))
    return found


def _name_problems(entry: Entry, paths: dict[str, SettingPath]) -> Iterator[Problem]:
    path = (*entry.path, "name")
    if entry.name == ANONYMOUS:
        message = "is what the audit log calls callers without a token; choose another name"
        yield Problem(entry.place, message, path)
    first = paths.setdefault(entry.name, entry.path)
    if first is not entry.path:
        yield Problem(entry.place, f"is also the name of {dotted(first)}; give each token its own", path)


def _problem(entry: Entry, message: str) -> Problem:
    return Problem(entry.place, message, (*entry.path, "file"), entry.shown, has_value=True)


def _read(entry: Entry) -> tuple[bytes, int]:
    """The beginning of a file and its mode."""
    try:
        # NOTE: Without blocking, since opening a pipe would else wait for somebody to write.
        descriptor = os.open(entry.file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise _TokenError(f"does not exist; {_remedy(entry)}") from None
    except OSError as error:
        raise _TokenError(f"cannot be read: {error.strerror}; the user that runs kvkeep must be able to") from None
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            raise _TokenError("is not a regular file; name one that has the token in it")
        return os.read(descriptor, _MAXIMUM_BYTES + 1), mode
    finally:
        os.close(descriptor)


def _token(content: bytes, entry: Entry) -> str:
    """The token in a file's content. Spaces and line ends around it do not belong to it."""
    if len(content) > _MAXIMUM_BYTES:
        raise _TokenError(f"has more than {_MAXIMUM_BYTES} bytes, which is no token; {_remedy(entry)}")
    text = content.decode("ascii", errors="replace").strip()
    if not text:
        raise _TokenError(f"is empty; {_remedy(entry)}")
    if len(text.split()) > 1:
        raise _TokenError(f"has whitespace inside the token; {_remedy(entry)}")
    if not _TOKEN.fullmatch(text):
        raise _TokenError(f"has characters other than letters, digits and -._~+/ (= at the end); {_remedy(entry)}")
    if len(text) < MINIMUM_LENGTH:
        raise _TokenError(f"has a token of fewer than {MINIMUM_LENGTH} characters; {_remedy(entry)}")
    return text


def _remedy(entry: Entry) -> str:
    return f"make a good one with: (umask 077; {_GENERATE} > {_quoted(entry)})"


def _quoted(entry: Entry) -> str:
    # NOTE: `${VARIABLE}` stays as it is: in the shell, too, it stands for the path.
    return f'"{entry.shown}"' if entry.shown != str(entry.file) else shlex.quote(entry.shown)


def _world_readable(entry: Entry) -> str:
    where = f"{entry.place}: {dotted((*entry.path, 'file'))}"
    return f"{where}: every user of this machine can read {entry.shown}; do: chmod o= {_quoted(entry)}"
