"""The soak as a test: two minutes, or KVKEEP_SOAK_SECONDS."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.soak.run import Soak
from tests.soak.table import table

SECONDS = float(os.environ.get("KVKEEP_SOAK_SECONDS", "120"))
SEED = os.environ.get("KVKEEP_SOAK_SEED")


@pytest.mark.timeout(2 * SECONDS + 240)
def test_nothing_is_wrong_lost_or_left_after_a_soak(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """KVKEEP_SOAK_JSON names a file for all that was counted."""
    with capsys.disabled():
        print()
        outcome = Soak(SECONDS, None if SEED is None else int(SEED)).run()
        print(f"\n{table(outcome)}")
    outcome.write(Path(os.environ.get("KVKEEP_SOAK_JSON", tmp_path / "soak.json")))
    assert not outcome.problems, "\n".join(outcome.problems)
    assert outcome.counts["bytes verified"] > 0
    assert outcome.counts["kills of a client process"] > 0
