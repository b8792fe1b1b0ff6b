"""Writes BAI version 2: one group a file, one account a statement. Pure.

Amounts are minor units, and the type code says whether they are credited or debited. References are written as they
are, without commas; the settlement stands in the text, behind BATCH=.
"""

from __future__ import annotations

import re
from datetime import date

from sandbox.bank.statements.statement import Entry, Head, Kind, one_line

TEXT_LENGTH_MAX = 100

_CREDIT_CODES = {
    Kind.CAPTURE: "165",
    Kind.SETTLEMENT: "142",
    Kind.PAYOUT: "195",
    Kind.REFUND: "255",
    Kind.OTHER: "399",
}
_DEBIT_CODES = {
    Kind.CAPTURE: "469",
    Kind.SETTLEMENT: "469",
    Kind.PAYOUT: "495",
    Kind.REFUND: "455",
    Kind.OTHER: "699",
}
_FOREIGN = re.compile(r"[^ -.0-~]")
"""All but ASCII, and the slash, which ends a record."""


class Bai2Writer:
    """See `Writer`."""

    def __init__(self) -> None:
        self._day = date.min
        self._head: Head | None = None
        self._records = self._account_records = self._accounts = 0
        self._total = self._account_total = 0

    def begin_file(self, day: date) -> bytes:
        self._day = day
        self._records = 2
        return _lines(
            f"01,PAYMESH,CUSTOMER,{day:%y%m%d},2359,{day:%y%m%d},,,2/",
            f"02,CUSTOMER,PAYMESH,1,{day:%y%m%d},2359,,2/",
        )

    def begin(self, head: Head) -> bytes:
        self._head = head
        self._accounts += 1
        self._account_records = 1
        self._account_total = head.opening_minor + head.closing_minor
        return _lines(
            f"03,{head.account},{head.currency},010,{head.opening_minor:+d},,,015,{head.closing_minor:+d},,/"
        )

    def entry(self, entry: Entry) -> bytes:
        whole = entry.whole
        codes = _CREDIT_CODES if whole.amount_minor >= 0 else _DEBIT_CODES
        amount_minor = abs(whole.amount_minor)
        self._account_records += 1
        self._account_total += amount_minor
        return _lines(
            f"16,{codes[whole.kind]},{amount_minor},V,{entry.value_on:%y%m%d},,"
            f"{whole.bank_reference},{whole.reference},{_text(entry)}/"
        )

    def end(self) -> bytes:
        self._account_records += 1
        self._records += self._account_records
        self._total += self._account_total
        return _lines(f"49,{self._account_total},{self._account_records}/")

    def end_file(self) -> bytes:
        # The group's count has its own header and trailer, the file's has everything.
        return _lines(
            f"98,{self._total},{self._accounts},{self._records}/",
            f"99,{self._total},1,{self._records + 2}/",
        )


def plain(text: str) -> str:
    """Text as a record can carry it."""
    return one_line(_FOREIGN.sub(".", one_line(text, TEXT_LENGTH_MAX)), TEXT_LENGTH_MAX)


def _text(entry: Entry) -> str:
    batch = f"BATCH={entry.whole.batch_reference}" if entry.whole.batch_reference else ""
    return " ".join(part for part in (batch, plain(entry.whole.text)) if part)


def _lines(*lines: str) -> bytes:
    return "".join(f"{line}\r\n" for line in lines).encode("ascii")
