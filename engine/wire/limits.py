"""How much a client may send at once, and leave unread. Pure numbers; sizes in bytes.

The largest message that makes sense is about a very long prompt: `MAX_TOKENS` tokens at up to 5 bytes. Everything else
stands far above what a client sends.
"""

from __future__ import annotations

from typing import Final

KIB: Final = 1 << 10
MIB: Final = 1 << 20

MAX_TOKENS: Final = 1 << 21
"""Tokens of one prompt, twice a context of a million. Nothing else costs the engine thread so much at once."""
MAX_FRAME: Final = 32 * MIB
"""libzmq cuts off whoever sends more in one frame."""
MAX_FRAMES: Final = 32
"""Frames of one message, with its sender's name; the longest operation has ten."""

MAX_QUEUE: Final = 192 * MIB
"""What has come from one client and was not taken yet: more than `RECEIVED_MESSAGES` of the largest that make sense, so
that who is only fast waits, and who sends what makes no sense is cut off."""
MAX_OPEN: Final = MAX_FRAME + 32 * MIB
"""Of that, what may belong to a message whose end has not come: the rest may wait in the kernel, whose buffer for a
connection grows to `net.ipv4.tcp_rmem`, or be on its way through libzmq."""
MAX_OPEN_SLOWLY: Final = MIB
"""The same, for a message that is still growing after a second. Large frames take a fraction of that; what takes
longer are many small ones, each of which costs 64 bytes of memory."""
MAX_UNREAD: Final = 64 * MIB
"""What was sent to one client and has not reached it."""
FORGIVEN_PER_SECOND: Final = 64
"""Heartbeats, which are not counted as taken."""

RECEIVED_MESSAGES: Final = 16
"""Per client. One that is ahead by more waits, by what TCP has for that; what it sends stays in its own memory."""
SENT_MESSAGES: Final = 10_000
"""Per client. The next reply is lost, and with it the client's connection."""

KEY: Final = 5 * MAX_TOKENS + 256 * KIB
KEY_TEXTS: Final = 128 * KIB
"""A key without its tokens: names, salt, configurations."""
NAME: Final = 4 * KIB
NUMBER: Final = 16
BLOCK_IDS: Final = 3 * MIB
DESCRIPTORS: Final = 4 * MIB
GROUPS: Final = 256 * KIB
HANDLE: Final = 128 * KIB
SMALL: Final = 256 * KIB
