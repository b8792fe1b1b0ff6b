"""BAI2: records, signs, value dates, and totals that have to agree."""

from __future__ import annotations

from datetime import date

import pytest
from bai2 import bai2

from services.reconciler.domain.statement import Closed, Line, Opened
from tests.statements import BAI2, lines, read, refusal


def test_an_account_is_a_section() -> None:
    day = date(2026, 11, 26)
    assert read(BAI2) == [
        Opened("PAYMESH-20261126", "123456789", "USD", 10_000, day, 3),
        Line(1, day, date(2026, 11, 27), 3000, "USD", "pay_1", "B1", "", "195", "first text, with a comma goes on",
             False, 5),
        Line(2, day, day, 2000, "USD", "pay_2", "B2", "", "195", "", False, 7),
        Line(3, day, day, -2500, "USD", "pay_3", "B3", "batch_7", "495", "BATCH=batch_7 text", False, 8),
        Closed(12_500, day, 3, 3),
    ]  # fmt: skip


def test_the_bai2_package_sees_the_same_amounts() -> None:
    (group,) = bai2.parse_from_string(BAI2).children
    (account,) = group.children
    theirs = [-t.amount if t.type_code.transaction.value == "debit" else t.amount for t in account.children]
    assert [line.amount_minor for line in lines(BAI2)] == theirs
    assert [line.reference for line in lines(BAI2)] == [t.customer_reference for t in account.children]


@pytest.mark.parametrize(
    "change",
    [("\n", "\r\n"), ("\n88, goes on", "\n88, goes on/"), ("99,37500,1,11/", "99,37500,1,11/\n\x1a")],
)
def test_banks_write_it_in_several_ways(change: tuple[str, str]) -> None:
    assert [line.amount_minor for line in lines(BAI2.replace(*change))] == [3000, 2000, -2500]


@pytest.mark.parametrize(
    ("funds", "value"),
    [
        ("0,", date(2026, 11, 26)),
        ("Z,", date(2026, 11, 26)),
        (",", date(2026, 11, 26)),
        ("V,261201,1200,", date(2026, 12, 1)),
        ("V,,,", date(2026, 11, 26)),
        ("S,0,2000,0,", date(2026, 11, 26)),
        ("D,2,0,1000,1,1000,", date(2026, 11, 26)),
    ],
)
def test_the_fields_of_every_funds_type_are_passed_over(funds: str, value: date) -> None:
    line = lines(BAI2.replace("16,195,2000,0,", f"16,195,2000,{funds}"))[1]
    assert (line.reference, line.counterpart_reference, line.value_date) == ("pay_2", "B2", value)


def test_without_an_opening_balance_the_totals_of_credits_and_debits_prove_it() -> None:
    opened = read(BAI2.replace("010,+10000,,,", "040,+10000,,,"))[0]
    assert isinstance(opened, Opened)
    assert opened.opening_minor == 10_000
    wrong = BAI2.replace("010,+10000,,,", "040,+10000,,,").replace("100,5000,2,", "100,4000,2,")
    assert refusal(wrong.replace("37500", "36500")).field == "closing balance"


WRONG = {
    "no header": ("01,PAYMESH,SHOP,261126,2359,1,80,,2/\n", "", 1, "file"),
    "version": (",,2/", ",,3/", 1, "record 01, version"),
    "test file": ("02,SHOP,PAYMESH,1,", "02,SHOP,PAYMESH,4,", 2, "record 02, status"),
    "date": ("1,261126,2359,USD", "1,261326,2359,USD", 2, "record 02"),
    "currency": (",USD,2/", ",US$,2/", 2, "record 02"),
    "amount": ("16,195,2000", "16,195,20.00", 7, "record 16, amount"),
    "unknown code": ("16,195,2000", "16,999,2000", 7, "record 16, type code"),
    "funds type": ("2000,0,", "2000,X,", 7, "record 16, funds type"),
    "account total": ("49,37500,7", "49,37501,7", 9, "record 49, control total"),
    "account count": ("49,37500,7", "49,37500,8", 9, "record 49, number of records"),
    "group count": ("98,37500,1,9", "98,37500,2,9", 10, "record 98, number of accounts"),
    "file count": ("99,37500,1,11", "99,37500,1,12", 11, "record 99, number of records"),
    "cut off": ("99,37500,1,11/\n", "", 10, "record 99"),
    "cut off in an account": ("49,37500,7/\n", "", 9, "record 98"),
    "not a record": ("16,195,2000", "xx,195,2000", 7, "record"),
    "balance": ("015,+12500", "015,+12600", 3, "closing balance"),
    "no balance": ("015,+12500", "045,+12500", 3, "closing balance"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_file_that_is_not_whole_or_not_exact_is_refused_with_its_place(what: str) -> None:
    old, new, line, field = WRONG[what]
    data = BAI2.replace(old, new)
    if what == "balance":
        data = data.replace("37500", "37600")
    refused = refusal(data)
    assert (refused.line, refused.field) == (line, field)
