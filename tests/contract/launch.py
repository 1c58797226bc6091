"""The server with its answers held against the document, otherwise the same as `python -m service`."""

from __future__ import annotations

import sys

from service.__main__ import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], validate_responses=True))
