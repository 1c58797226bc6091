"""`python -m tests.soak`: runs a soak and prints what came of it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tests.soak.run import Soak
from tests.soak.table import table


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description="A soak of the whole server.")
    parser.add_argument("--seconds", type=float, default=120.0, help="how long; 120 without it")
    parser.add_argument("--seed", type=int, help="that of another run, for the same draws")
    parser.add_argument("--json", type=Path, help="file for everything that was counted")
    arguments = parser.parse_args()
    outcome = Soak(arguments.seconds, arguments.seed).run()
    if arguments.json is not None:
        outcome.write(arguments.json)
    print(f"\n{table(outcome)}")
    return 1 if outcome.problems else 0


if __name__ == "__main__":
    sys.exit(main())
