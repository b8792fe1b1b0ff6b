"""Statements of real banks: what is whole is imported, and what is broken is refused with its line and field."""

from __future__ import annotations

import pytest
from pycamt.parser import Camt053Parser

from services.reconciler.domain.statement import Closed, Line
from services.reconciler.statements.exact import minor_units
from tests.statements import REAL_FILES, read, refusal

pytestmark = pytest.mark.skipif(not REAL_FILES.is_dir(), reason="the real bank statements are not at hand")

IMPORTED = {
    "camt/camt053.v2.multi.statement.xml": [(1, 885), (1, -700)],
    "mt940/cmxl-mt940.sta": [(11, 8730), (2, 220_000), (3, 1_004_000)],
    "mt940/jejik-generic.sta": [(1, -1_000), (1, -1_000)],
    "mt940/jejik-rabobank-iban.sta": [(2, -3_500), (2, -3_500)],
    "mt940/mBank-mt940.sta": [(3, 3)],
    "mt940/self-provided-february_30.sta": [(1, -600)],
}
"""File to the number of lines and the sum of each of its statements."""

REFUSED = {
    "camt/camt053.v2.five.decimals.xml": (49, "closing balance"),
    "camt/camt053.v2.minimal.xml": (54, "closing balance"),
    "camt/camt053.v2.wrong.xml": (3, "BkToCstmrStmt/Stmt"),
    "camt/camt053.v4.xml": (74, "closing balance"),
    "camt/camt053.v8.xml": (74, "closing balance"),
    "mt940/jejik-abnamro.sta": (27, "closing balance"),
    "mt940/jejik-ing.sta": (26, "closing balance"),
    "mt940/jejik-triodos.sta": (12, "closing balance"),
    "mt940/self-provided-invalid_statement.sta": (1, "file"),
    "mt940/self-provided-sparkassen.sta": (1, ":61:"),
}
"""Files that contradict themselves, are cut off, or are none."""

UNPROVED = [name for name, (_, field) in REFUSED.items() if field == "closing balance"]


def sections(name: str, *, accept_unproved: bool = False) -> list[tuple[int, int]]:
    found = []
    count = total = 0
    for event in read((REAL_FILES / name).read_bytes(), accept_unproved=accept_unproved):
        if isinstance(event, Line):
            count, total = count + 1, total + event.amount_minor
        elif isinstance(event, Closed):
            found.append((count, total))
            count = total = 0
    return found


def test_every_real_file_is_accounted_for() -> None:
    files = {str(path.relative_to(REAL_FILES)) for path in REAL_FILES.glob("*/*") if path.name != "LICENSE"}
    assert files == IMPORTED.keys() | REFUSED.keys()


@pytest.mark.parametrize("name", IMPORTED)
def test_a_real_statement_that_adds_up_is_imported(name: str) -> None:
    assert sections(name) == IMPORTED[name]


@pytest.mark.parametrize("name", REFUSED)
def test_a_real_statement_that_is_broken_is_refused_with_line_and_field(name: str) -> None:
    refused = refusal((REAL_FILES / name).read_bytes())
    assert (refused.line, refused.field) == REFUSED[name]


@pytest.mark.parametrize("name", UNPROVED)
def test_a_real_statement_that_does_not_add_up_is_imported_when_a_person_accepts_that(name: str) -> None:
    assert sections(name, accept_unproved=True)


# Of v4 and v8 it takes a transaction's amount, 0 SEK, for that of the entry, 8.85 EUR.
@pytest.mark.parametrize("name", ["v2.five.decimals", "v2.minimal", "v2.multi.statement"])
def test_pycamt_sees_the_same_amounts(name: str) -> None:
    data = (REAL_FILES / "camt" / f"camt053.{name}.xml").read_bytes()
    theirs = [
        minor_units(str(said["Amount"]), 2) * (1 if said["CreditDebitIndicator"] == "CRDT" else -1)
        for said in Camt053Parser(data).get_transactions()
    ]
    assert [e.amount_minor for e in read(data, accept_unproved=True) if isinstance(e, Line)] == theirs
