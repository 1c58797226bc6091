"""How long a stop waits for running transfers, and what ends the wait."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from engine import EngineError, EngineStoppedError, EngineTimeoutError, StatusReport
from service.stopping import drain
from tests.support.fake_engine import HEALTHY, FakeEngine


class Draining(FakeEngine):
    """Has so many transfers left, one less each time it is looked at once it drains; None for one that never ends."""

    def __init__(self, transfers: int | None, refusal: EngineError | None = None) -> None:
        super().__init__(refusal=refusal)
        self.transfers = transfers
        self.drained = False
        self.looks = 0

    def drain(self, timeout: float) -> None:
        if self.refusal is not None:
            raise self.refusal
        self.drained = True

    def status(self) -> StatusReport:
        assert self.drained
        self.looks += 1
        left = 1 if self.transfers is None else max(0, self.transfers - self.looks)
        return replace(HEALTHY, running_transfers=left)


def never() -> bool:
    return False


def test_it_waits_until_nothing_runs(caplog: pytest.LogCaptureFixture) -> None:
    engine = Draining(4)
    with caplog.at_level("INFO"):
        drain(engine, 60.0, never)  # type: ignore[arg-type]
    assert engine.looks == 4
    assert "drained, 0 transfers still run" in caplog.text


@pytest.mark.parametrize(("timeout", "is_hurried"), [(0.05, never), (60.0, lambda: True), (0.0, never)])
def test_it_does_not_wait_longer_than_it_may(timeout: float, is_hurried, caplog: pytest.LogCaptureFixture) -> None:
    began = time.monotonic()
    with caplog.at_level("INFO"):
        drain(Draining(None), timeout, is_hurried)  # type: ignore[arg-type]
    assert time.monotonic() - began < 30
    assert "drained, 1 transfers still run" in caplog.text


@pytest.mark.parametrize("refusal", [EngineTimeoutError("stuck"), EngineStoppedError("it has ended")])
def test_an_engine_that_cannot_be_told_is_not_waited_for(
    refusal: EngineError, caplog: pytest.LogCaptureFixture
) -> None:
    drain(Draining(None, refusal), 60.0, never)  # type: ignore[arg-type]
    assert f"not drained: {refusal}" in caplog.text
