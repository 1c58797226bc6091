"""Objects in a bucket of S3, or of any store that speaks its protocol."""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from configparser import ConfigParser
from configparser import Error as ConfigParserError
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit, urlunsplit

import obstore
from obstore.exceptions import BaseError
from obstore.store import S3Store

from engine.l2.base import (
    AbsentError,
    DeniedError,
    FullError,
    L2Adapter,
    L2Error,
    Stored,
    UnavailableError,
    Usage,
)

if TYPE_CHECKING:
    from obstore.store import S3Credential

_NAME: Final = re.compile(r"[a-z0-9_-]{1,128}")
_STATUS: Final = re.compile(r"status code: (\d{3})")
_CODE: Final = re.compile(r"<Code>(\w+)</Code>")
_FULL: Final = re.compile(r"Quota|StorageFull|InsufficientCapacity|InsufficientStorage")
"""What the codes of the various stores for no room have in common."""
_DENIED: Final = frozenset({"ExpiredToken", "InvalidToken", "AuthorizationHeaderMalformed", "RequestTimeTooSkewed"})
"""Codes that come with another status than 401 or 403."""
_NO_CREDENTIALS: Final = re.compile(r"no credentials|credentials file|/latest/(api|meta-data)/")
"""Our own words, or the machine's services that are asked where nothing else has any."""
_QUESTIONS: Final = 16
"""PERF: Requests in flight when many names are asked for; more are no quicker, and a burden on the store."""
_PIECE_BYTES: Final = 256 << 10
"""PERF: What is read at once. It is copied out of the cache then, while a whole object would go through memory once
more: a third of the time for 32 MiB."""
_PAGE_OBJECTS: Final = 1000
_FILE_LIFETIME: Final = timedelta(minutes=5)
_LOOK_AGAIN: Final = 0.001
_PATIENCE: Final = 1.0
"""Seconds; the client takes a few thousandths."""


class Adapter(L2Adapter):
    """Each object is one of the bucket, named `prefix` and its name.

    NOTE: Names are not spread over folders: stores divide the names of a bucket among their servers by themselves, and
    ours begin with hashes. One request moves an object, whatever its size: parts and ranges in parallel were not
    faster, several objects at a time are, and parts of an upload that was killed would stay and be charged for.
    """

    first_names = 16

    def __init__(
        self,
        *,
        bucket: str,
        endpoint: str | None = None,
        region: str | None = None,
        prefix: str = "kvkeep/",
        path_style: bool = True,
        access_key_id: str | None = None,
        secret_access_key: str | None = None,
        timeout: float = 10.0,
    ) -> None:
        """`endpoint` is the URL of the store, without the bucket; that of AWS in the region if None. With `path_style`
        the bucket is the first part of the path, otherwise the first of the host name. `prefix` is a folder.

        Credentials are these, or else those of the environment, of the credentials file (`AWS_SHARED_CREDENTIALS_FILE`,
        `AWS_PROFILE`), or of the machine's role. `timeout` is the seconds that a call may take.
        """
        self._bucket: Final = bucket
        self._endpoint: Final = endpoint if path_style or endpoint is None else _with_bucket(endpoint, bucket)
        self._region: Final = region
        self._prefix: Final = prefix
        self._path_style: Final = path_style
        self._keys: Final = (access_key_id, secret_access_key)
        self._timeout: Final = timeout
        self._opened: S3Store | None = None

    def open(self, memory: Sequence[memoryview]) -> None:
        """Looks into the bucket, so that wrong settings are known before an object is lost to them."""
        with self._translated():
            store = self._connected()
            next(iter(obstore.list(store, chunk_size=1)), None)
        self._opened = store

    def close(self) -> None:
        self._opened = None

    def contains(self, names: Sequence[str]) -> list[bool]:
        """Asks for each name, several at a time.

        PERF: A listing is quicker while the bucket has a few thousand objects, and without bounds beyond.
        """
        store = self._store
        with self._translated():
            return asyncio.run(asyncio.wait_for(_exist(store, names), self._timeout))

    def read_into(self, name: str, buffers: Sequence[memoryview]) -> int:
        return self.read_pieces(name, buffers, lambda piece: None)

    def read_pieces(self, name: str, buffers: Sequence[memoryview], filled: Callable[[memoryview], object]) -> int:
        with self._translated():
            result = obstore.get(self._store, name)
            size = result.meta["size"]
            if size == sum(map(len, buffers)):
                return _fill(buffers, result.stream(min_chunk_size=_PIECE_BYTES), filled)
            return size

    def write(self, name: str, buffers: Sequence[memoryview]) -> None:
        with self._translated(), _lent(buffers) as lent:
            obstore.put(self._store, name, iter(lent), use_multipart=False)

    def delete(self, names: Sequence[str]) -> None:
        store = self._store
        with self._translated():
            asyncio.run(asyncio.wait_for(_delete(store, names), self._timeout))

    def scan(self) -> Iterator[Stored]:
        with self._translated():
            for page in obstore.list(self._store, chunk_size=_PAGE_OBJECTS):
                yield from (Stored(found["path"], found["size"]) for found in page if _NAME.fullmatch(found["path"]))

    def used(self) -> Usage | None:
        """None: it would take a listing of the whole bucket."""
        return None

    @property
    def _store(self) -> S3Store:
        if self._opened is None:
            raise UnavailableError("the S3 adapter is not open")
        return self._opened

    def _connected(self) -> S3Store:
        """The client. Connects at the first request. Raises DeniedError.

        NOTE: It does not try again by itself, so that a call takes no longer than one request: the tier does.
        PERF: The payload is not signed: its hash would cost three times the rest of a store, and the envelope has its
        own.
        """
        limit = timedelta(seconds=self._timeout)
        plain = self._endpoint is not None and self._endpoint.startswith("http://")
        settings: dict[str, Any] = {"unsigned_payload": True, "virtual_hosted_style_request": not self._path_style}
        if self._endpoint is not None:
            # The second is what the environment may set, and what wins then.
            settings |= {"endpoint": self._endpoint, "aws_endpoint_url_s3": self._endpoint}
        if self._region is not None:
            settings["region"] = self._region
        if (credentials := _credentials(*self._keys)) is not None:
            settings["credential_provider"] = credentials
        return S3Store(
            self._bucket,
            prefix=self._prefix or None,
            client_options={"allow_http": plain, "timeout": limit, "connect_timeout": limit},
            retry_config={"max_retries": 0, "retry_timeout": limit},
            **settings,
        )

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Turns what the client raises into the errors of adapters.

        NOTE: Its own messages are long, and say how it was called.
        """
        try:
            yield
        except (BaseError, FileNotFoundError, TimeoutError) as error:
            raise self._meaning(error) from None

    def _meaning(self, error: Exception) -> L2Error:
        text = str(error)
        status, code = _first(_STATUS, text), _first(_CODE, text)
        said = f"S3 says {status} {code}".strip()
        if _NO_CREDENTIALS.search(text):
            return DeniedError("there are no credentials for S3, or they cannot be had")
        if code == "NoSuchBucket":
            return UnavailableError(f"there is no bucket {self._bucket}")
        if _FULL.search(code) or status == "507":
            return FullError(said)
        if isinstance(error, FileNotFoundError):
            return AbsentError("there is no such object")
        if status in {"401", "403"} or code in _DENIED:
            return DeniedError(said)
        if status:
            return UnavailableError(said)
        return self._unanswered(error, text)

    def _unanswered(self, error: Exception, text: str) -> L2Error:
        if isinstance(error, TimeoutError) or re.search("timed ?out", text, re.IGNORECASE):
            return UnavailableError(f"S3 does not answer within {self._timeout:g} s")
        return UnavailableError(f"S3 cannot be reached at {self._endpoint or 'AWS'}")


@contextmanager
def _lent(buffers: Sequence[memoryview]) -> Iterator[list[memoryview]]:
    """The buffers for a client that may let go of them a moment after it has given up: they are waited for."""
    views = [buffer[:] for buffer in buffers]
    try:
        yield views
    finally:
        until = time.monotonic() + _PATIENCE
        while not all(map(_released, views)) and time.monotonic() < until:
            time.sleep(_LOOK_AGAIN)


def _released(view: memoryview) -> bool:
    try:
        view.release()
    except BufferError:
        return False
    return True


async def _exist(store: S3Store, names: Sequence[str]) -> list[bool]:
    found = [False] * len(names)
    questions = iter(enumerate(names))

    async def ask() -> None:
        for position, name in questions:
            try:
                await obstore.head_async(store, name)
            except FileNotFoundError:
                continue
            found[position] = True

    await asyncio.gather(*(ask() for _ in range(min(_QUESTIONS, len(names)))))
    return found


async def _delete(store: S3Store, names: Sequence[str]) -> None:
    if names:
        await obstore.delete_async(store, list(names))


def _fill(buffers: Sequence[memoryview], pieces: Iterable[bytes], filled: Callable[[memoryview], object]) -> int:
    """Copies the pieces into the buffers, one after the other, as far as they go; returns the bytes of the pieces.

    Tells of each stretch that is filled.
    """
    targets = iter(buffers)
    target = memoryview(b"")
    received = 0
    for piece in pieces:
        received += len(piece)
        rest = memoryview(piece)
        while rest:
            while not target:
                target = next(targets)
            size = min(len(target), len(rest))
            target[:size] = rest[:size]
            filled(target[:size])
            target, rest = target[size:], rest[size:]
    return received


def _first(pattern: re.Pattern[str], text: str) -> str:
    found = pattern.search(text)
    return found[1] if found else ""


def _with_bucket(endpoint: str, bucket: str) -> str:
    parts = urlsplit(endpoint)
    return urlunsplit(parts._replace(netloc=f"{bucket}.{parts.netloc}"))


class _Keys:
    """Credentials that do not change."""

    def __init__(self, access_key_id: str, secret_access_key: str) -> None:
        self._credential: Final[S3Credential] = {
            "access_key_id": access_key_id,
            "secret_access_key": secret_access_key,
            "token": None,
            "expires_at": None,
        }

    def __call__(self) -> S3Credential:
        return self._credential


class _KeysOfFile:
    """Credentials of the file that all clients of S3 know, read again every few minutes."""

    def __init__(self, path: Path, profile: str) -> None:
        self._path: Final = path
        self._profile: Final = profile

    def __call__(self) -> S3Credential:
        """Raises DeniedError."""
        # An interpolation would take a per cent sign in a secret for its own.
        file = ConfigParser(interpolation=None)
        try:
            file.read_string(self._path.read_text())
            section = file[self._profile]
            return {
                "access_key_id": section["aws_access_key_id"],
                "secret_access_key": section["aws_secret_access_key"],
                "token": section.get("aws_session_token"),
                "expires_at": datetime.now(UTC) + _FILE_LIFETIME,
            }
        except OSError as error:
            raise DeniedError(f"cannot read the credentials file {self._path}: {error.strerror}") from None
        except (KeyError, ConfigParserError):
            # NOTE: What it was is not repeated: the line may be the secret.
            raise DeniedError(f"there are no credentials of {self._profile} in {self._path}") from None


def _credentials(access_key_id: str | None, secret_access_key: str | None) -> _Keys | _KeysOfFile | None:
    """Who answers for the credentials; None leaves it to the client, which looks into the environment and asks for the
    machine's role. Raises DeniedError."""
    if access_key_id is not None and secret_access_key is not None:
        return _Keys(access_key_id, secret_access_key)
    path = Path(os.environ.get("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials")).expanduser()
    if "AWS_ACCESS_KEY_ID" in os.environ or not path.exists():
        return None
    keys = _KeysOfFile(path, os.environ.get("AWS_PROFILE", "default"))
    keys()
    return keys
