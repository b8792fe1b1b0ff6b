"""CSV by a column map: layouts of several kinds, and what is refused instead of being guessed."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest

from services.reconciler.domain.statement import Closed, Line, Opened
from services.reconciler.map_files import read_maps
from services.reconciler.statements.columns import BadMap, ColumnMap, parse_map
from tests.statements import CSV, lines, read, refusal

GERMAN = parse_map(
    "sparkasse.toml",
    """
    delimiter = ";"
    decimal = ","
    thousands = "."
    date_format = "%d.%m.%Y"
    fixed = { account = "DE00", currency = "EUR" }
    [columns]
    booking_date = "Buchungstag"
    value_date = "Valuta"
    amount = "Betrag"
    sign = "S/H"
    balance = "Saldo"
    reference = "Kundenreferenz"
    text = ["Empfänger", "Zweck"]
    """,
)
GERMAN_FILE = """\
Kontoauszug;;;
;;;
"Buchungstag";Valuta;Betrag;"S/H";Saldo;Kundenreferenz;Empfänger;Zweck
26.11.2026;27.11.2026;1.234,56;H;2.234,56;R1;Müller;Bestellung 17
27.11.2026;;34,56;S;2.200,00;;;Gebühr
"""


def simple(**changes: object) -> ColumnMap:
    columns = {"booking_date": "Date", "credit": "In", "debit": "Out", "account": "Acc", "currency": "Cur"}
    options: dict[str, object] = {"columns": columns, "balances": False}
    return ColumnMap(name="simple", **(options | changes))  # type: ignore[arg-type]


SIMPLE_FILE = "Date,In,Out,Acc,Cur\n2026-11-26,5.00,,A,EUR\n2026-11-26,,1.5,A,EUR\n2026-11-27,,7,B,JPY\n"


def test_what_the_bank_of_the_sandbox_writes_is_read_by_the_map_that_comes_with_paymesh() -> None:
    assert read(CSV) == [
        Opened("S1", "A1", "EUR", 1000, date(2026, 11, 25), 2),
        Line(1, date(2026, 11, 26), date(2026, 11, 27), -150, "EUR", "pay_1", "B1", "batch_7", "FEE",
             'a "quoted", text', False, 3),
        Line(2, date(2026, 11, 26), date(2026, 11, 26), 200, "EUR", "pay_2", "", "", "", "", False, 4),
        Closed(1050, date(2026, 11, 26), 2, 5),
    ]  # fmt: skip


def test_a_layout_of_ones_own_with_a_running_balance() -> None:
    assert read(GERMAN_FILE, GERMAN) == [
        Opened("a file", "DE00", "EUR", 100_000, date(2026, 11, 26), 4),
        Line(
            1,
            date(2026, 11, 26),
            date(2026, 11, 27),
            123_456,
            "EUR",
            "R1",
            "",
            "",
            "",
            "Müller; Bestellung 17",
            False,
            4,
        ),
        Line(2, date(2026, 11, 27), date(2026, 11, 27), -3456, "EUR", "", "", "", "", "Gebühr", False, 5),
        Closed(220_000, date(2026, 11, 27), 2, 5),
    ]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "latin-1", "cp1252", "utf-16"])
def test_the_encoding_is_found_out(encoding: str) -> None:
    assert read(GERMAN_FILE.encode(encoding), GERMAN) == read(GERMAN_FILE, GERMAN)


def test_a_column_for_credits_and_one_for_debits() -> None:
    found = lines(SIMPLE_FILE, simple())
    assert [(line.amount_minor, line.currency, line.number) for line in found] == [
        (500, "EUR", 1),
        (-150, "EUR", 2),
        (-7, "JPY", 1),
    ]


def test_rows_that_run_back_in_time_are_turned_round() -> None:
    columns = {"booking_date": "Date", "amount": "Amount", "balance": "Balance"}
    options: dict[str, object] = {
        "columns": columns, "balances": True, "newest_first": True, "fixed": {"account": "A", "currency": "EUR"},
    }  # fmt: skip
    data = "Date,Amount,Balance\n2026-11-27,-1,12\n2026-11-26,3,13\n"
    opened, first, *_ = read(data, simple(**options))
    assert isinstance(opened, Opened)
    assert isinstance(first, Line)
    assert (opened.opening_minor, first.amount_minor, first.line) == (1000, 300, 3)
    refused = refusal(data, simple(**options | {"newest_first": False}))
    assert (refused.line, refused.field) == (3, "column 'Balance'")
    assert "newest_first" in refused.reason


def test_a_text_over_several_lines_is_one_cell_and_lines_are_those_of_the_file() -> None:
    data = CSV.replace('"a ""quoted"", text"', '"one\ntwo"').replace("2,pay_2", "2.001,pay_2")
    refused = refusal(data)
    assert (refused.line, refused.field) == (5, "column 'amount'")


WRONG = {
    "heading": ("booking date", "day of booking", 1, "file"),
    "decimals": ("-1.50", "-1.505", 3, "column 'amount'"),
    "comma": ("-1.50", '"-1,50"', 3, "column 'amount'"),
    "no amount": ("-1.50", "", 3, "column 'amount'"),
    "exponent": ("-1.50", "1e3", 3, "column 'amount'"),
    "date": ("2026-11-26,2026-11-27", "26.11.2026,2026-11-27", 3, "column 'booking date'"),
    "currency": ("EUR", "EURO", 2, "column 'currency'"),
    "other currency": ("line,S1,A1,EUR,2026-11-26,,2", "line,S1,A1,USD,2026-11-26,,2", 4, "column 'record'"),
    "short row": ("line,S1,A1,EUR,2026-11-26,,2,pay_2,,,,", "line,S1,A1", 4, "row"),
    "open quote": ('text"\n', "text\n", 5, "row"),
    "sum": ("10.50", "10.51", 5, "closing balance"),
    "no closing": ("closing,S1,A1,EUR,2026-11-26,,10.50,,,,,\n", "", 4, "column 'record'"),
    "no opening": ("opening,S1,A1,EUR,2026-11-25,,10.00,,,,,\n", "", 2, "column 'record'"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_file_that_cannot_be_read_exactly_is_refused_with_its_place(what: str) -> None:
    old, new, line, field = WRONG[what]
    refused = refusal(CSV.replace(old, new))
    assert (refused.line, refused.field) == (line, field)


@pytest.mark.parametrize(
    ("old", "new", "line", "field"),
    [
        ("1.234,56", "1234.56", 4, "column 'Betrag'"),
        ("1.234,56", "12.34,56", 4, "column 'Betrag'"),
        (";H;", ";?;", 4, "column 'S/H'"),
        ("2.200,00", "2.200,01", 5, "column 'Saldo'"),
    ],
)
def test_thousands_signs_and_balances_are_those_of_the_map(old: str, new: str, line: int, field: str) -> None:
    refused = refusal(GERMAN_FILE.replace(old, new), GERMAN)
    assert (refused.line, refused.field) == (line, field)


def test_rows_of_an_account_that_are_not_together_are_refused() -> None:
    assert refusal(SIMPLE_FILE + "2026-11-27,1,,A,EUR\n", simple()).line == 5
    assert refusal(SIMPLE_FILE + "2026-11-27,1,1,B,JPY\n", simple()).field == "column 'Out'"


def test_the_maps_of_a_folder_are_read_at_the_start(tmp_path: Path) -> None:
    assert read_maps("") == ()
    (tmp_path / "bank.toml").write_text(
        "fixed = {account='A', currency='EUR'}\nbalances = false\n[columns]\nbooking_date = 'D'\namount = 'X'"
    )
    (made,) = read_maps(str(tmp_path))
    assert [line.amount_minor for line in lines("D,X\n2026-11-26,5\n", made)] == [500]
    (tmp_path / "other.toml").write_text("x = 1")
    with pytest.raises(BadMap, match=r"other.toml: 'x'"):
        read_maps(str(tmp_path))
    with pytest.raises(BadMap, match="no such folder"):
        read_maps(str(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x = [", "not TOML"),
        ("colour = 1", "'colour' is not a key"),
        ("[columns]\nbooking_date = 1", "columns.booking_date has to be a text"),
        ("[columns]\namount = 'A'", "columns.booking_date is missing"),
        ("[columns]\nbooking_date = 'D'\nwhen = 'W'", "columns.when: there is no such meaning"),
        ("[columns]\nbooking_date = 'D'\ncredit = 'C'", "columns.credit and columns.debit come together"),
        ("[columns]\nbooking_date = 'D'\namount = 'A'\ndebit = 'X'", "either columns.amount"),
        ("[columns]\nbooking_date = 'D'\namount = 'A'\naccount = 'X'", "give the currency"),
        (
            "fixed = {account='A', currency='EUR'}\n[columns]\nbooking_date = 'D'\namount = 'A'",
            "balances = false",
        ),
        (
            "delimiter = ';;'\nfixed = {account='A', currency='EUR'}\n[columns]\nbooking_date = 'D'\namount = 'A'",
            "one char",
        ),
    ],
)
def test_a_map_that_cannot_be_used_says_which_key(text: str, said: str) -> None:
    with pytest.raises(BadMap, match="bank.toml: .*" + said.replace(".", r"\.").replace("[", r"\[")):
        parse_map("bank.toml", text)
