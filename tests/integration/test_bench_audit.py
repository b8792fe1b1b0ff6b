"""The measurement of the audit trail runs, and what it has measured is whole. With few events: it measures nothing."""

from __future__ import annotations

import pytest

from bench.audit import main
from bench.history import EVENTS_EACH, SET_SIZE


def test_a_small_history_is_written_sealed_and_verified(capsys: pytest.CaptureFixture[str]) -> None:
    events = 3 * SET_SIZE * EVENTS_EACH
    assert main(["--events", str(events)]) == 0
    told = capsys.readouterr().out
    assert told.startswith(f"{events:,} events on ")
    for figure in ("hash of an event", "sealed", "verified", "memory at most"):
        assert figure in told
