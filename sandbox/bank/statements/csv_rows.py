"""Writes CSV, a row each for the opening balance, every entry and the closing balance. Pure."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from datetime import date
from io import StringIO

from sandbox.bank.statements.statement import Entry, Head, decimal_text, one_line
from services.kit.money import exponent

TEXT_LENGTH_MAX = 140
HEADINGS = (
    "record", "statement", "account", "currency", "booking date", "value date", "amount", "reference",
    "bank reference", "batch reference", "kind", "text",
)  # fmt: skip


class CsvWriter:
    """See `Writer`."""

    def __init__(self) -> None:
        self._head: Head | None = None

    def begin_file(self, day: date) -> bytes:
        del day
        return _row(HEADINGS)

    def begin(self, head: Head) -> bytes:
        self._head = head
        return self._balance("opening", head, head.opened_on, head.opening_minor)

    def entry(self, entry: Entry) -> bytes:
        assert self._head is not None
        whole, head = entry.whole, self._head
        return _row((
            "line", head.statement_id, head.account, head.currency, str(entry.booked_on), str(entry.value_on),
            _amount(whole.amount_minor, head.currency), whole.reference, whole.bank_reference, whole.batch_reference,
            whole.kind, one_line(whole.text, TEXT_LENGTH_MAX),
        ))  # fmt: skip

    def end(self) -> bytes:
        assert self._head is not None
        return self._balance("closing", self._head, self._head.day, self._head.closing_minor)

    def end_file(self) -> bytes:
        return b""

    @staticmethod
    def _balance(record: str, head: Head, day: date, amount_minor: int) -> bytes:
        amount = _amount(amount_minor, head.currency)
        return _row((record, head.statement_id, head.account, head.currency, str(day), "", amount, *[""] * 5))


def _amount(amount_minor: int, currency: str) -> str:
    return f"{'-' if amount_minor < 0 else ''}{decimal_text(amount_minor, exponent(currency), '.')}"


def _row(cells: Sequence[str]) -> bytes:
    text = StringIO()
    csv.writer(text, lineterminator="\r\n").writerow(cells)
    return text.getvalue().encode()
