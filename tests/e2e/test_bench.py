"""A bench from beginning to end, for a few seconds: the results are complete and agree with each other."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.machine import NotDurableError, read_settings
from bench.phases import all_phases
from bench.report import BARS
from deploy.local.mesh import ROOT
from deploy.local.stores import EmbeddedPostgres

pytestmark = pytest.mark.timeout(300)

SECONDS = 3.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bench")


def run_bench(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(ROOT), str(ROOT / "clients" / "python")])
    return subprocess.run(
        [sys.executable, "-m", "bench", *arguments, "--output", str(folder / "results.json")],
        env=os.environ | {"PYTHONPATH": path, "BENCH_SECONDS": str(SECONDS), "TMPDIR": str(folder)},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


@pytest.fixture(scope="module")
def results(folder: Path) -> dict[str, Any]:
    answer = run_bench(folder, "--trace-ratio", "0.1", "--callers", "3", "--batch-size", "40")
    assert answer.returncode == 0, answer.stdout + answer.stderr
    for phase in all_phases(3, 40):
        assert phase.title in answer.stdout
    found: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return found


def test_every_figure_is_there(results: dict[str, Any]) -> None:
    assert results["problems"] == []
    assert set(results["phases"]) == {phase.name for phase in all_phases()}
    figures = {"floor_rows_per_s", "orders_per_floor_row", "authorizations_per_floor_row"}
    figures |= {"floor_calls_per_s", "orders_64_callers_per_floor_call", "orders_512_callers_per_floor_call"}
    for phase in all_phases():
        if not phase.name.startswith("floor"):
            figures |= {f"{phase.name}_{share}" for share in ("p50_ms", "p95_ms", "p99_ms")}
            figures |= {f"{phase.name}_per_s"} if phase.measures_rate else set()
    assert all(results[figure] > 0 for figure in figures)
    assert [bar["figure"] for bar in results["bars"]] == [bar.figure for bar in BARS]


def test_what_counts_is_in_the_database(results: dict[str, Any]) -> None:
    for name, phase in results["phases"].items():
        assert phase["succeeded_for_callers"] > 0, name
        if name in ("floor_calls", "edge_reads"):
            assert phase["succeeded_in_database"] is None
        else:
            assert phase["succeeded_in_database"] == phase["succeeded_for_callers"], name
        assert phase["per_s"] == pytest.approx(phase["succeeded_for_callers"] / phase["seconds"], rel=0.01), (
            name
        )
        assert phase["failed"] == {}, name
        assert phase["p50_ms"] <= phase["p95_ms"] <= phase["p99_ms"] <= phase["max_ms"], name


def test_the_services_counted_the_same(results: dict[str, Any]) -> None:
    phases = results["phases"]
    for name in ("idle_order", "orders", "orders_64_callers", "orders_512_callers"):
        commands = phases[name]["set_sizes"]["orchestrator/PlaceOrder"]["commands"]
        assert commands == phases[name]["succeeded_for_callers"] + sum(phases[name]["repeated"].values()), (
            name
        )
    assert phases["orders"]["set_sizes"]["payment/AuthorizePayment"]["mean"] > 1
    assert phases["orders"]["succeeded_for_callers"] == phases["orders"]["calls"] * 40
    assert phases["floor"]["succeeded_for_callers"] == phases["floor"]["calls"] * 250


def test_processor_time_is_told_by_process(results: dict[str, Any]) -> None:
    cpu = results["phases"]["orders"]["cpu_us_per_item"]
    assert {"orchestrator", "payment", "inventory", "shipping", "fraud", "bank", "load"} <= set(cpu)
    assert {"postgres/orchestrator", "postgres/payment"} <= set(cpu)
    assert cpu["total"] == pytest.approx(sum(us for name, us in cpu.items() if name != "total"), rel=0.01)


def test_what_the_figures_depend_on_is_told(results: dict[str, Any]) -> None:
    settings = results["settings"]
    assert (settings["fsync"], settings["synchronous_commit"], settings["full_page_writes"]) == (
        "on",
        "on",
        "on",
    )
    assert settings["server_version"]
    assert results["machine"]["cores"] >= 1
    assert results["machine"]["python"]
    assert results["audit"]["ok"] is True
    assert results["sampler_ratio"] == 0.1
    assert {"orchestrator", "payment"} <= set(results["spans"])


def test_nothing_is_left_behind(folder: Path, results: dict[str, Any]) -> None:
    assert [path.name for path in folder.iterdir()] == ["results.json"]


def test_a_phase_that_is_none_is_named(folder: Path) -> None:
    answer = run_bench(folder, "--phases", "floor,order")
    assert answer.returncode == 2
    assert answer.stderr.startswith("error: there is no phase 'order'; there are floor,")


async def test_a_server_without_fsync_is_refused(tmp_path: Path) -> None:
    with (
        EmbeddedPostgres(tmp_path, durable=False) as server,
        pytest.raises(NotDurableError, match="fsync is off"),
    ):
        await read_settings({"payment": server.create_database("payment")})
