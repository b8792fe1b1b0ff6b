"""The measurement of the reconciler runs, and finds what it has made wrong. With few lines: it measures nothing."""

from __future__ import annotations

import pytest

from bench.reconcile import WRONG_ONE_IN, main


def test_a_small_statement_is_reconciled(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--lines", "500", "--lines", str(WRONG_ONE_IN + 1_000)]) == 0
    told = capsys.readouterr().out
    assert told.rstrip().endswith("times as long")
    assert "1 of 1" in told
