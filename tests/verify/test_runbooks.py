"""Every alert has a runbook, and what documents call a metric is one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.verify.repository import ROOT, name_of, tracked_files

RUNBOOKS = ROOT / "docs" / "runbooks"
SOURCES = [
    path
    for path in tracked_files()
    if path.suffix == ".py" and name_of(path).startswith(("services/", "sandbox/"))
]
METRICS = set(
    re.findall(
        r"\b(?:Counter|Gauge|Histogram)\(\s*\"(\w+)\"",
        "\n".join(path.read_text(encoding="utf-8") for path in SOURCES),
    )
)
SUFFIXES = ("_bucket", "_count", "_sum", "_created")
METRIC = re.compile(
    r"\b(?:paymesh|rpc)_\w+_(?:total|seconds|seconds_max|size|commands|waiting)(?:_count|_bucket|_sum)?\b"
)
DOCUMENTS = [path for path in tracked_files() if path.suffix == ".md"]


def alerts() -> Iterator[tuple[Path, str]]:
    """Every alert that a README names: `- *Name*: …` in its section of alerts."""
    for path in DOCUMENTS:
        _, _, section = path.read_text(encoding="utf-8").partition("\n## Alerts\n")
        yield from ((path, name) for name in re.findall(r"\*([A-Z]\w+)\*", section.partition("\n## ")[0]))


@pytest.mark.parametrize(("readme", "alert"), list(alerts()), ids=lambda value: str(value).rpartition("/")[2])
def test_an_alert_has_a_runbook(readme: Path, alert: str) -> None:
    assert (RUNBOOKS / f"{alert}.md").is_file(), f"{name_of(readme)} names {alert}"


def test_the_index_has_every_runbook() -> None:
    index = (RUNBOOKS / "README.md").read_text(encoding="utf-8")
    missing = [
        path.name
        for path in RUNBOOKS.glob("*.md")
        if path.name != "README.md" and f"({path.name})" not in index
    ]
    assert missing == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_a_metric_that_is_named_exists(document: Path) -> None:
    named = {
        re.sub("|".join(f"{suffix}$" for suffix in SUFFIXES), "", name)
        for name in METRIC.findall(document.read_text(encoding="utf-8"))
    }
    assert named - METRICS == set()


def test_metrics_are_found() -> None:
    assert {"rpc_server_call_duration_seconds", "paymesh_payment_waiting_seconds_max"} <= METRICS
