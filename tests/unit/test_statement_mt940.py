"""MT940: fields, dialects, and what is refused instead of being guessed."""

from __future__ import annotations

from datetime import date

import mt940
import pytest

from services.reconciler.domain.statement import Closed, Line, Opened
from services.reconciler.statements.exact import minor_units
from services.reconciler.statements.mt940_details import Details, read_details
from tests.statements import MT940, REAL_FILES, lines, read, refusal


def message(*body: str, opening: str = "C261125EUR0,", closing: str) -> str:
    return "\n".join([":20:X", ":25:A1", ":28C:1/1", f":60F:{opening}", *body, f":62F:{closing}", "-", ""])


def test_a_message_is_a_section() -> None:
    assert read(MT940) == [
        Opened("330/1@2026-11-25", "GB00PAYM00000001", "EUR", 100_000, date(2026, 11, 25), 2),
        Line(1, date(2026, 11, 26), date(2026, 11, 27), 1234, "EUR", "pay_1", "B1", "batch_7", "NTRF",
             "Order 17, two mugs", False, 6),
        Line(2, date(2026, 11, 26), date(2026, 11, 26), -234, "EUR", "fee-1", "B2", "", "NCHG", "take back; free text",
             True, 9),
        Closed(101_000, date(2026, 11, 26), 2, 12),
    ]  # fmt: skip


def test_ends_of_lines_and_encodings_do_not_matter() -> None:
    wanted = read(MT940)
    for data in (
        MT940.replace("\n", "\r\n").encode(),
        MT940.replace("\n", "\r").encode(),
        MT940.encode("utf-16"),
        MT940.encode("utf-16-le"),
        b"\xef\xbb\xbf" + MT940.encode(),
    ):
        assert read(data) == wanted


def test_text_in_latin_1_is_read() -> None:
    (line,) = lines(message(":61:261126C1,NTRFR1", ":86:Grüße", closing="C261126EUR1,").encode("latin-1"))
    assert line.text == "Grüße"


@pytest.mark.parametrize(
    ("field", "amount_minor", "reversal"),
    [
        ("2611261126C1,NTRFR", 100, False),
        ("261126D1,5NTRFR", -150, False),
        ("2611261126RC1,05NTRFR", -105, True),
        ("261126RD,99NTRFR", 99, True),
        ("2611261126CR1,00NTRFR", 100, False),
        ("2611261126CN0,01NTRFR//B\nmore", 1, False),
        ("2611261126CR\n30,00N062NONREF", 3000, False),
        ("261126    d000000000025,00N102EREF\nNL70ABNA0987654321", -2500, False),
    ],
)
def test_statement_lines_in_the_dialects_of_banks(field: str, amount_minor: int, reversal: bool) -> None:
    closing = (
        f"{'C' if amount_minor > 0 else 'D'}261126EUR{abs(amount_minor) // 100},{abs(amount_minor) % 100:02d}"
    )
    (line,) = lines(message(f":61:{field}", closing=closing))
    assert (line.amount_minor, line.reversal) == (amount_minor, reversal)


@pytest.mark.parametrize(
    ("dates", "booking"),
    [
        ("2612310101", date(2027, 1, 1)),
        ("2701011231", date(2026, 12, 31)),
        ("2602300301", date(2026, 3, 1)),
        ("2611271126", date(2026, 11, 26)),
        ("991126", date(1999, 11, 26)),
    ],
)
def test_an_entry_date_is_in_the_year_that_brings_it_near_the_value_date(dates: str, booking: date) -> None:
    assert lines(message(f":61:{dates}C0,NTRFR", closing="C261126EUR0,"))[0].booking_date == booking


def test_the_thirtieth_of_february_is_its_last_day_and_the_thirty_first_is_none() -> None:
    assert lines(message(":61:260230C0,NTRFR", closing="C261126EUR0,"))[0].value_date == date(2026, 2, 28)
    assert refusal(message(":61:260231C0,NTRFR", closing="C261126EUR0,")).field == ":61:"


@pytest.mark.parametrize(
    ("text", "details"),
    [
        (
            "166?00GUTSCHRIFT?20EREF+pay_1?21SVWZ+Order 17?32SHOP",
            Details("pay_1", "", "", "GUTSCHRIFT; SHOP; Order 17"),
        ),
        ("/EREF/pay_1/PREF/b-7/REMI/a/b", Details("pay_1", "", "b-7", "a/b")),
        ("/EREF/NOTPROVIDED/BENM//NAME/J. DOE/REMI/x", Details("", "", "", "J. DOE; x")),
        ("SEPA EREF+pay_1 SVWZ+Order", Details("pay_1", "", "", "SEPA EREF+pay_1 SVWZ+Order")),
        ("two\nlines", Details("", "", "", "two lines")),
        ("", Details("", "", "", "")),
        ("///", Details("", "", "", "///")),
    ],
)
def test_details_in_three_ways_of_writing(text: str, details: Details) -> None:
    assert read_details(text) == details


def test_details_of_the_statement_belong_to_no_line() -> None:
    assert lines(message(":86:of all", closing="C261126EUR0,").replace("-\n", ":86:of all\n-\n")) == []


def test_pages_are_sections_of_their_own() -> None:
    one = message(":61:261126C1,NTRFR", closing="C261126EUR1,").replace(":62F:", ":62M:")
    two = message(":61:261126C1,NTRFR", opening="C261126EUR1,", closing="C261126EUR2,").replace(
        ":60F:", ":60M:"
    )
    assert [e.statement_id for e in read(one + two) if isinstance(e, Opened)] == [
        "1/1@2026-11-25",
        "1/1@2026-11-26",
    ]


WRONG = {
    "line before opening": (":60F:", ":61:261126C1,NTRFR", 4, ":61:"),
    "amount": ("C0,NTRF", "CxNTRF", 5, ":61:"),
    "decimals": ("C0,NTRF", "C0,001NTRF", 5, ":61:"),
    "value date": (":61:261126", ":61:261326", 5, ":61:"),
    "mark": ("C0,NTRF", "X0,NTRF", 5, ":61:"),
    "balance": ("C261126EUR0,", "C261126EUR", 6, ":62F:"),
    "currency": ("C261126EUR0,", "C261126XYZ0,", 6, ":62F:"),
    "other currency": ("C261126EUR0,", "C261126USD0,", 6, ":62F:"),
    "closing missing": (":62F:", ":64:", 7, ":62F:"),
    "account missing": (":25:A1\n", "", 3, ":25:"),
    "opening twice": (":61:", ":60F:C261125EUR0,\n:61:", 5, ":60F:"),
    "sum": ("C261126EUR0,", "C261126EUR1,", 6, "closing balance"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_message_that_cannot_be_read_exactly_is_refused_with_its_place(what: str) -> None:
    old, new, line, field = WRONG[what]
    refused = refusal(message(":61:261126C0,NTRFR", closing="C261126EUR0,").replace(old, new, 1))
    assert (refused.line, refused.field) == (line, field)


@pytest.mark.skipif(not REAL_FILES.is_dir(), reason="the real bank statements are not at hand")
@pytest.mark.parametrize("name", ["cmxl-mt940", "jejik-generic", "jejik-rabobank-iban", "mBank-mt940"])
def test_the_mt_940_package_sees_the_same_amounts(name: str) -> None:
    data = (REAL_FILES / "mt940" / f"{name}.sta").read_bytes()
    theirs = [
        minor_units(str(line.data["amount"].amount), 2)
        for statement in mt940.parse_statements(data.decode(), options=mt940.Options.all())
        for line in statement.transactions
    ]
    assert [line.amount_minor for line in lines(data)] == theirs
