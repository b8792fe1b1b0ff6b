"""The two-phase-commit experiment runs, says that it is one, and shows what it is for: whoever is killed between
prepare and commit leaves locks behind, and a saga does not. With few orders: it measures nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.two_phase_commit import PATIENCE_SECONDS, WARNING, main


def test_a_small_run_blocks_where_a_prepared_coordinator_died_and_nowhere_else(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    output = tmp_path / "figures.json"
    small = ["--orders", "40", "--workers", "4", "--bank-ms", "1", "--sets", "1,10", "--products", "1,5"]
    assert main([*small, "--output", str(output)]) == 0
    told = capsys.readouterr().out
    assert told.startswith(WARNING)
    assert WARNING.upper() in told
    figures = json.loads(output.read_text("utf-8"))
    assert [(s["way"], s["set_size"], s["products"]) for s in figures["speeds"]] == [
        (way, size, products) for size in (1, 10) for products in (1, 5) for way in ("saga", "2pc")
    ]
    assert all(s["orders_per_s"] > 0 for s in figures["speeds"])
    saga, two_phase = figures["blocked"]
    assert (saga["same_product"], saga["left_prepared"]) == ("reserved", 0)
    assert (two_phase["same_product"], two_phase["left_prepared"]) == ("blocked", 2)
    assert two_phase["same_product_ms"] >= 1000 * PATIENCE_SECONDS
    assert max(saga["other_product_ms"], two_phase["other_product_ms"]) < 1000 * PATIENCE_SECONDS


@pytest.mark.parametrize("wrong", [["--orders", "0"], ["--sets", "1,0"], ["--workers", "-1"]])
def test_numbers_that_make_no_sense_are_refused(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(wrong)
    assert ended.value.code == 2
    assert "must be at least 1" in capsys.readouterr().err
