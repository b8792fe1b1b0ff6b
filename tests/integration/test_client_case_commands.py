"""`paymesh case` as two people use it, against a reconciler that runs: what they read, what is refused, and what the
exit code says. The commands are processes; payment is played, as in `test_reconciler_service.py`."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from deploy.local.stores import EmbeddedPostgres
from tests.conftest import Services
from tests.processes import ServiceProcess
from tests.reconciler_service import HEADING, Payment

CLIENT = Path(__file__).parents[2] / "clients" / "python"
DAY = "2026-11-02"
_numbers = itertools.count(1)


class Said(NamedTuple):
    """What a command has said."""

    code: int
    out: str
    err: str


class Desk:
    """The commands of one merchant."""

    def __init__(self, target: str, folder: Path) -> None:
        self.merchant = f"mer_desk_{next(_numbers)}"
        self._folder = folder
        self._environment = {
            "PYTHONPATH": str(CLIENT),
            "COLUMNS": "200",
            "PAYMESH_RECONCILER_TARGET": target,
            "PAYMESH_MERCHANT": self.merchant,
        }

    def run(self, *words: str) -> Said:
        """Run `paymesh`."""
        done = subprocess.run(
            [sys.executable, "-m", "paymesh.cli", *words],
            env=self._environment,
            capture_output=True,
            text=True,
            check=False,
        )
        return Said(done.returncode, done.stdout, done.stderr)

    def case(self, *words: str) -> Said:
        """Run `paymesh case`."""
        return self.run("case", *words)

    def as_json(self, *words: str) -> dict[str, Any]:
        """What `paymesh case … --json` prints."""
        said = self.case(*words, "--json")
        assert said.code == 0, said
        printed: dict[str, Any] = json.loads(said.out)
        return printed

    def find(self, *references: str) -> list[str]:
        """Import a statement of lines that are in no books; returns the cases, in the order of the lines."""
        rows = [HEADING, f"opening,S1,GB00TEST,GBP,{DAY},,0.00,,,,,"]
        rows += [f"line,S1,GB00TEST,GBP,{DAY},{DAY},0.30,{reference},,,NTRF," for reference in references]
        rows.append(f"closing,S1,GB00TEST,GBP,{DAY},,{len(references) * 30 / 100:.2f},,,,,")
        path = self._folder / "statement.csv"
        path.write_text("\n".join(rows) + "\n", encoding="utf-8")
        said = self.run("reconcile", "--date", "2026-12-31", "--statement", str(path))
        assert said.code == 2, f"differences remain: {said}"
        listed = self.as_json("list")["cases"]
        found = {one["reference"]: one["case_id"] for one in listed}
        return [found[reference] for reference in references]


@pytest.fixture(scope="module")
def payment() -> Iterator[Payment]:
    served = Payment()
    yield served
    served.stop()


@pytest.fixture(scope="module")
def process(
    postgres: EmbeddedPostgres, payment: Payment, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServiceProcess]:
    services = Services(postgres, tmp_path_factory.mktemp("desk"))
    yield services.start(
        "reconciler", payment_target=payment.target, post_poll_seconds="0.05", post_first_ms="50"
    )
    services.stop()


@pytest.fixture
def desk(process: ServiceProcess, tmp_path: Path) -> Desk:
    return Desk(process.target, tmp_path)


def test_two_people_explain_a_case_and_everything_is_on_record(desk: Desk) -> None:
    (case_id,) = desk.find("who-knows")

    listed = desk.case("list", "--kind", "missing-in-ledger", "--state", "open")
    assert listed.code == 0
    assert case_id in listed.out
    assert "who-knows" in listed.out
    assert desk.as_json("assign", case_id, "cas", "--as", "dora")["owner"] == "cas"
    proposed = desk.case("propose", case_id, "--reason", "a gift", "--as", "ann")
    assert proposed.code == 0
    assert "proposal 1 of ann: a gift" in proposed.out

    same = desk.case("approve", case_id, "--as", "Ann")
    assert same.code == 1
    assert same.err.startswith("error: SAME_PERSON: ")
    assert "Traceback" not in same.err
    assert desk.as_json("approve", case_id, "--as", "bob")["state"] == "CASE_STATE_CLOSED"

    shown = desk.case("show", case_id)
    assert shown.code == 0
    for text in ("who-knows", "0.30 GBP", "cas", "approved by bob", "opened by reconciler", "closed by bob"):
        assert text in shown.out, text
    assert desk.as_json("list").get("cases", []) == []
    assert [one["case_id"] for one in desk.as_json("list", "--state", "closed")["cases"]] == [case_id]
    assert f"no such cases of merchant {desk.merchant}" in desk.case("list").out


def test_a_correction_is_proposed_in_decimals_and_posted_once(desk: Desk, payment: Payment) -> None:
    (case_id,) = desk.find("fee")
    booked = ("--debit", "processor_fees", "--credit", "cash", "--amount", "0.30", "--currency", "GBP")
    words = ("propose", case_id, "--reason", "bank fee", *booked, "--as", "ann", "--key", f"{case_id}-p")
    first = desk.as_json(*words)
    assert first["resolution"]["correction"]["amount"] == {"amount_minor": "30", "currency": "GBP"}
    assert desk.as_json(*words) == first, "the same key, so it is the same proposal"

    assert desk.case("approve", case_id, "--proposal", "1", "--as", "bob").code == 0
    shown = desk.as_json("show", case_id)["case"]
    while shown["state"] != "CASE_STATE_CLOSED":
        shown = desk.as_json("show", case_id)["case"]
    assert shown["outcome"] == "CASE_OUTCOME_CORRECTED"
    assert "posted as cor_" in desk.case("show", case_id).out
    assert list(payment.of[desk.merchant].corrections) == [f"{case_id}/correct/1"]


def test_a_proposal_that_is_turned_down_leaves_the_case_open(desk: Desk) -> None:
    one, other = desk.find("one", "other")
    assert desk.case("propose", one, "--reason", "a guess", "--as", "ann").code == 0
    rejected = desk.as_json("reject", one, "--reason", "no guesses", "--as", "bob")
    assert rejected["state"] == "CASE_STATE_OPEN"
    assert "no guesses" in desk.case("show", one).out
    late = desk.case("approve", one, "--proposal", "1", "--as", "bob")
    assert (late.code, late.err.split(":")[:2]) == (1, ["error", " NOTHING_PROPOSED"])
    assert {one["case_id"] for one in desk.as_json("list")["cases"]} == {one, other}
    assert len(desk.as_json("list", "--limit", "1")["cases"]) == 1


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        ("show case_404", 1, "case_404"),
        ("show nonsense", 1, "there is no case 'nonsense'"),
        ("approve case_404 --as bob", 1, "case_404"),
        ("list --state sleeping", 2, "expected one of open, proposed, resolving, closed"),
        ("list --kind odd", 2, "--kind odd: expected one of missing-in-bank"),
        (
            "propose case_1 --reason x --amount 1",
            2,
            "a correction needs --debit, --credit, --amount and --currency",
        ),
        (
            "propose case_1 --reason x --debit cash --credit suspense --amount 0.301 --currency GBP",
            2,
            "not a whole number of minor units",
        ),
        ("propose case_1", 2, "--reason"),
    ],
)
def test_a_mistake_is_told_in_a_line_and_never_by_a_traceback(
    desk: Desk, words: str, code: int, told: str
) -> None:
    said = desk.case(*words.split())
    assert (said.code, said.out) == (code, ""), said
    assert told in said.err
    assert "Traceback" not in said.err


def test_a_reconciler_that_is_not_there_is_named(desk: Desk) -> None:
    said = desk.case("list", "--target", "127.0.0.1:1")
    assert said.code not in (0, 2)
    assert "127.0.0.1:1" in said.err
    assert "Traceback" not in said.err
