"""What is being measured right now, on stderr: a whole run takes minutes."""

from __future__ import annotations

import sys


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
