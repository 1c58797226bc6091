"""What the engine thread notes of its requests for the threads that study them. Pure.

PERF: A note holds what the request has made anyway; whoever reads it does the work. So it costs about a microsecond.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Final, NamedTuple

from engine.feed import Feed
from engine.prompts import Chunks
from engine.wire.messages import Key

_REFERENCES: Final = 1 << 16
"""Object keys that may wait to be read: about 6 MB if nothing else holds them any more."""
_PROMPT_BYTES: Final = 16 << 20
"""Encoded tokens that may wait to be read."""
_PROMPT_OVERHEAD: Final = 1024
"""Bytes that a prompt costs besides its tokens."""
_REQUESTS: Final = 4096
"""Requests of which it is remembered how far their prompts were noted."""


class References(NamedTuple):
    """Chunks of one prompt that a request uses or stores, and the chunks before them."""

    request_id: str
    identity: tuple[str, int, str]
    """Model name, world size and cache salt."""
    keys: Sequence[bytes]
    """Object keys. `keys[::step]` has one for each chunk, from the prompt's first on."""
    step: int
    first: int
    """Index of the first chunk that is used or stored now; those before it were noted before."""
    counted: int
    """Index behind the last chunk that the request's lookup has asked for; those from there on are only stored."""
    asked: int
    """How many chunks the lookup asks for, if this is one; else 0."""
    size: int
    """Bytes that a chunk occupies with all its shards and layouts."""
    clears: int
    """How often L1 was emptied before."""


class Prompt(NamedTuple):
    """One lookup."""

    now: float
    """The engine's monotonic seconds."""
    key: Key


class Traffic:
    """Belongs to the engine thread; each feed is read by one other thread.

    A chunk of a request is noted once: when its lookup finds it, or else when the first shard stores it. So the chunks
    that were asked for and never stored are not among them, but their number is known.
    """

    def __init__(self) -> None:
        self.references: Final = Feed[References](_REFERENCES)
        self.prompts: Final = Feed[Prompt](_PROMPT_BYTES)
        self._progress: OrderedDict[str, tuple[int, int]] = OrderedDict()
        """By request id: how many chunks were asked for, and how many were noted. Ids may repeat between engines; then
        a chunk more or less is noted."""

    def prompt(self, now: float, key: Key) -> None:
        """A lookup that could be answered."""
        if self.prompts.is_open:
            self.prompts.put(Prompt(now, key), len(bytes(key.token_ids)) + _PROMPT_OVERHEAD)

    def found(self, key: Key, asked: int, suffix_first: list[bytes], spaces: int, size: int, clears: int) -> None:
        """A lookup asked for so many chunks and found these objects, `spaces` of them a chunk."""
        if not self.references.is_open:
            return
        hits = len(suffix_first) // spaces
        self._remember(key.request_id, asked, hits)
        identity = (key.model_name, key.world_size, key.cache_salt)
        noted = References(key.request_id, identity, suffix_first, -spaces, 0, hits, asked, size, clears)
        self.references.put(noted, len(suffix_first) + 1)

    def stored(self, request_id: str, chunks: Chunks, size: int, clears: int) -> None:
        """A worker stores these chunks. A `size` of 0 is that of a worker whose chunks nobody may find."""
        if not (self.references.is_open and size):
            return
        # NOTE: A request that nobody looked up, or whose lookup is long forgotten, has asked for nothing.
        asked, noted = self._progress.get(request_id, (0, 0))
        first, end = max(chunks.first, noted), len(chunks.keys)
        if first >= end:
            return
        self._remember(request_id, asked, end)
        space = chunks.namespace
        identity = (space.model_name, space.world_size, space.cache_salt)
        counted = min(end, max(first, asked))
        note = References(request_id, identity, chunks.keys, 1, first, counted, 0, size, clears)
        self.references.put(note, end + 1)

    def _remember(self, request_id: str, asked: int, noted: int) -> None:
        progress = self._progress
        progress[request_id] = (asked, noted)
        progress.move_to_end(request_id)
        if len(progress) > _REQUESTS:
            progress.popitem(last=False)
