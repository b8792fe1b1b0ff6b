"""camt.053: what an entry becomes, and what is refused instead of being guessed."""

from __future__ import annotations

from datetime import date

import pytest

from services.reconciler.domain.statement import Closed, Line, Opened
from tests.statements import balance, camt, details, entry, lines, read, refusal, transaction


def test_an_entry_with_one_transaction_is_one_line_with_its_references() -> None:
    document = camt(entry("12.34", details(transaction("pay_1", text="Order 17"))), closing="12.34")
    assert read(document) == [
        Opened("S1", "GB00PAYM00000001", "EUR", 0, date(2026, 11, 26), 4),
        Line(1, date(2026, 11, 26), date(2026, 11, 27), 1234, "EUR", "pay_1", "B1", "", "PMNT.RCDT.ESCT", "Order 17",
             False, 8),
        Closed(1234, date(2026, 11, 26), 1, 6),
    ]  # fmt: skip


@pytest.mark.parametrize("version", [f"{number:02d}" for number in range(2, 14)])
def test_all_versions_are_read_by_the_same_names(version: str) -> None:
    assert len(lines(camt(entry("1"), closing="1", version=version))) == 1


def test_a_document_without_a_namespace_and_inside_of_an_envelope_is_read() -> None:
    document = camt(entry("1"), closing="1").replace(
        ' xmlns="urn:iso:std:iso:20022:tech:xsd:camt.053.001.08"', ""
    )
    document = document.replace("<Document>", "<Envelope><AppHdr/><Document>").replace(
        "</Document>", "</Document></Envelope>"
    )
    assert len(lines(document)) == 1


def test_transactions_that_add_up_to_their_entry_are_lines_of_their_own() -> None:
    parts = (
        transaction("a", "70.00"),
        transaction("b", "40.00"),
        transaction("c", "10.00", direction="DBIT"),
    )
    batch = "<Btch><PmtInfId>batch_7</PmtInfId></Btch>"
    found = lines(camt(entry("100.00", details(*parts, batch=batch)), closing="100.00"))
    assert [(line.reference, line.amount_minor, line.batch_reference) for line in found] == [
        ("a", 7000, "batch_7"), ("b", 4000, "batch_7"), ("c", -1000, "batch_7"),
    ]  # fmt: skip


def test_charges_that_an_entry_states_become_a_line() -> None:
    charges = '<Chrgs><TtlChrgsAndTaxAmt Ccy="EUR">3.00</TtlChrgsAndTaxAmt></Chrgs>'
    parts = details(transaction("a", "70.00"), transaction("b", "33.00"))
    found = lines(camt(entry("100.00", charges + parts), closing="100.00"))
    assert [(line.reference, line.amount_minor, line.kind) for line in found] == [
        ("a", 7000, "PMNT.RCDT.ESCT"), ("b", 3300, "PMNT.RCDT.ESCT"), ("", -300, "CHRG"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "parts",
    [
        (transaction("a"), transaction("b")),
        (transaction("a", "70.00"), transaction("b", "29.99")),
        (transaction("a", "70.00", currency="SEK"), transaction("b", "30.00")),
        (transaction("a", "70.001"), transaction("b", "29.999")),
    ],
)
def test_transactions_that_do_not_add_up_leave_their_entry_one_line(parts: tuple[str, ...]) -> None:
    (line,) = lines(camt(entry("100.00", details(*parts)), closing="100.00"))
    assert (line.amount_minor, line.reference, line.text) == (10_000, "", "2 transactions")


def test_a_reversal_has_its_sign_from_the_entry_and_says_that_it_is_one() -> None:
    reversal = entry("5.00", "<RvslInd>true</RvslInd>", direction="DBIT")
    (line,) = lines(camt(reversal, balances=balance("OPBD", "5.00") + balance("CLBD", "0")))
    assert (line.amount_minor, line.reversal) == (-500, True)


def test_what_is_only_announced_is_no_line() -> None:
    assert lines(camt(entry("5.00", status="PDNG"), entry("7.00", status="<Cd>INFO</Cd>"))) == []


def test_a_reference_that_was_not_provided_is_none() -> None:
    (line,) = lines(camt(entry("5.00", details(transaction("NOTPROVIDED"))), closing="5.00"))
    assert line.reference == ""


def test_dates_may_have_a_time_or_be_those_of_the_statement() -> None:
    timed = entry("1", dates="<BookgDt><DtTm>2026-11-26T23:30:00+01:00</DtTm></BookgDt>")
    valued = entry("1", dates="<ValDt><Dt>2026-11-30</Dt></ValDt>")
    found = lines(camt(timed, valued, entry("1", dates=""), closing="3"))
    assert [(line.booking_date.day, line.value_date.day) for line in found] == [(26, 26), (30, 30), (26, 26)]


def test_several_statements_follow_each_other() -> None:
    one = camt(entry("1"), closing="1")
    two = one.replace(
        "</Stmt>", "</Stmt>" + one[one.index("<Stmt>") : one.index("</Stmt>") + 7].replace("S1", "S2")
    )
    assert [event.statement_id for event in read(two) if isinstance(event, Opened)] == ["S1", "S2"]


@pytest.mark.parametrize(
    ("balances", "opening", "closing"),
    [
        (balance("PRCD", "3") + balance("CLBD", "4"), 300, 400),
        (balance("ITBD", "3") + balance("CLBD", "4"), 300, 400),
        (balance("OPBD", "3") + balance("ITBD", "4"), 300, 400),
        (balance("OPBD", "3", "DBIT") + balance("CLBD", "2", "DBIT"), -300, -200),
        (balance("CLBD", "4") + balance("OPBD", "3") + balance("FWAV", "9"), 300, 400),
        (
            balance("OPBD", "3.5", day="2026-11-26") + balance("OPBD", "3", day="2026-11-25")
            + balance("CLBD", "3.5", day="2026-11-25") + balance("CLBD", "4", day="2026-11-26"),
            300, 400,
        ),
    ],
)  # fmt: skip
def test_opening_and_closing_are_the_booked_balances(balances: str, opening: int, closing: int) -> None:
    first, *_, last = read(camt(entry("1"), balances=balances))
    assert isinstance(first, Opened)
    assert isinstance(last, Closed)
    assert (first.opening_minor, last.closing_minor) == (opening, closing)


@pytest.mark.parametrize(
    ("balances", "said"),
    [
        (balance("CLBD", "4"), "no opening balance (OPBD or PRCD), only CLBD"),
        (balance("OPBD", "3"), "no CLBD, only OPBD"),
        (
            balance("OPBD", "3") + balance("CLBD", "4", currency="SEK"),
            "is in SEK, but the statement opens in EUR",
        ),
        (balance("OPBD", "3") + balance("CLBD", "5"), "add up to 400"),
    ],
)
def test_a_statement_that_proves_nothing_is_taken_only_when_a_person_accepts_that(
    balances: str, said: str
) -> None:
    document = camt(entry("1"), balances=balances)
    refused = refusal(document)
    assert refused.field == "closing balance"
    assert said in refused.reason
    closed = read(document, accept_unproved=True)[-1]
    assert isinstance(closed, Closed)
    assert said in closed.unproved


WRONG = {
    "decimals": (entry("1.005"), "1", "Stmt[1]/Ntry[1]/Amt"),
    "no number": (entry("1e3"), "1", "Stmt[1]/Ntry[1]/Amt"),
    "too much": (entry("9" * 40), "1", "Stmt[1]/Ntry[1]/Amt"),
    "currency": (entry("1", currency="USD"), "1", "Stmt[1]/Ntry[1]/Amt@Ccy"),
    "direction": (entry("1", direction="BOTH"), "1", "Stmt[1]/Ntry[1]/CdtDbtInd"),
    "date": (entry("1", dates="<BookgDt><Dt>2026-02-30</Dt></BookgDt>"), "1", "Stmt[1]/Ntry[1]/BookgDt"),
    "no amount": ("<Ntry><CdtDbtInd>CRDT</CdtDbtInd></Ntry>", "1", "Stmt[1]/Ntry[1]/Amt"),
}


@pytest.mark.parametrize("what", WRONG)
def test_an_entry_that_cannot_be_read_exactly_is_refused_with_its_place(what: str) -> None:
    wrong, closing, field = WRONG[what]
    refused = refusal(camt(wrong, closing=closing))
    assert (refused.line, refused.field) == (8, field)


def test_decimals_of_a_currency_are_its_own() -> None:
    yen = camt(
        entry("5", currency="JPY"),
        balances=balance("OPBD", "0", currency="JPY") + balance("CLBD", "5.00", currency="JPY"),
    ).replace("<Ccy>EUR</Ccy>", "<Ccy>JPY</Ccy>")
    assert [line.amount_minor for line in lines(yen)] == [5]
    assert refusal(yen.replace(">5<", ">5.5<")).field == "Stmt[1]/Ntry[1]/Amt"
    assert refusal(yen.replace("JPY", "XYZ")).field == "Stmt[1]/Bal[1]/Amt"


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (("<Id>S1</Id>", ""), "Stmt[1]/Id"),
        (("<IBAN>GB00 PAYM 0000 0001</IBAN>", ""), "Stmt[1]/Acct/Id"),
        (("<Ccy>EUR</Ccy>", "<Ccy>USD</Ccy>"), "Stmt[1]/Bal[OPBD]/Amt@Ccy"),
        (("camt.053.", "camt.054."), "Document"),
        (("</Stmt>", ""), "XML"),
        (("<Stmt>", "<Rpt>"), "XML"),
    ],
)
def test_a_statement_without_what_names_it_is_refused(change: tuple[str, str], field: str) -> None:
    assert refusal(camt(entry("1"), closing="1").replace(*change)).field == field


def test_a_count_of_entries_that_is_wrong_is_refused() -> None:
    summary = "<TxsSummry><TtlNtries><NbOfNtries>2</NbOfNtries></TtlNtries></TxsSummry>"
    assert (
        refusal(camt(entry("1"), closing="1", extra=summary)).field
        == "Stmt[1]/TxsSummry/TtlNtries/NbOfNtries"
    )
    assert len(lines(camt(entry("1"), entry("1"), closing="2", extra=summary))) == 2
