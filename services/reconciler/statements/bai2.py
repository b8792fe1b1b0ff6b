"""Reads BAI version 2, the cash management format of banks in the United States, as a stream. Pure.

The `bai2` package knows the codes: which of them are credits and which are debits. Its parser holds a whole file and
stops at codes that it does not list, so records are read here, one at a time; a test compares the two.

The format proves itself thrice: the account's ledger balances, the control totals and the counts of records on every
level. All three are checked.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import date
from typing import BinaryIO, NamedTuple

from bai2.constants import TypeCodes, TypeCodeTransaction

from services.reconciler.domain.statement import Closed, Event, Line, Opened, Refusal
from services.reconciler.statements.exact import currency_code, quoted, six_digit_date
from services.reconciler.statements.text_lines import Rewound, text_lines

RECORD_LENGTH_MAX = 256 * 1024
"""Longest record, continuations included. Accounts with hundreds of summaries have some kilobytes."""

_OPENING, _CLOSING, _CREDITS, _DEBITS = "010", "015", "100", "400"
_CODES = {"01", "02", "03", "16", "49", "88", "98", "99"}
_WHOLE = re.compile(r"[+-]?\d{1,19}", re.ASCII)
_BATCH = re.compile(r"\bBATCH[=:] ?(\S{1,128})")
_SUMMARY_FIELDS = 4
_DELETION, _TEST = "2", "4"
_NO_MONEY = "890"
"""Type code of a record that carries text only."""


class Record(NamedTuple):
    """A record with its continuations. `fields` lacks the code; the last field of a 16 is text and may hold commas."""

    code: str
    fields: list[str]
    line: int
    physical: int
    """How many lines of the file it takes; control counts are of these."""


def read_bai2(stream: BinaryIO | Rewound, *, name: str) -> Iterator[Event]:
    """The events of the accounts in a file. Raises Refusal."""
    del name
    file = File()
    for record in records(stream):
        yield from file.take(record)
    file.end()


def records(stream: BinaryIO | Rewound) -> Iterator[Record]:
    """The records of a file. A slash ends the fields of a line; text may go without, and goes on as it is."""
    code, start, physical = "", 0, 0
    parts: list[str] = []
    length = 0
    for number, raw in text_lines(stream):
        text = raw.strip("\x1a ") if not code else raw.rstrip("\x1a ")
        if not text.strip():
            continue
        new = text[:2]
        if new not in _CODES or text[2:3] not in {",", "/", ""}:
            raise Refusal(number, "record", f"{quoted(text)} does not begin with a record code of BAI2")
        body = text[3:]
        if new == "88":
            if not code:
                raise Refusal(number, "record 88", "continues nothing: it is the first record")
            parts.append(body)
            physical += 1
            length += len(body)
            if length > RECORD_LENGTH_MAX:
                raise Refusal(start, f"record {code}", f"is longer than {RECORD_LENGTH_MAX:,} characters")
            continue
        if code:
            yield Record(code, _fields(code, parts), start, physical)
        code, start, physical, parts, length = new, number, 1, [body], len(body)
    if code:
        yield Record(code, _fields(code, parts), start, physical)


def _fields(code: str, parts: list[str]) -> list[str]:
    text = ""
    for index, part in enumerate(parts):
        last = index == len(parts) - 1
        if not part.endswith("/"):
            text += part if last else f"{part} "
            continue
        part = part[:-1]
        text += part
        # The slash stands for the comma behind the last field; of a whole group of summaries, some banks write both.
        if not last and not (code == "03" and (part.count(",") - (0 if index else 2)) % _SUMMARY_FIELDS == 0):
            text += ","
    return text.split(",")


class File:
    """A file while it is read: where in its three levels we are, and what should come out on each."""

    def __init__(self) -> None:
        self._group: Record | None = None
        self._group_day = date.min
        self._group_currency = ""
        self._skipped = False
        self._account: Account | None = None
        self._seen = self._ended = False
        self._last = 0
        self._totals = [0, 0]
        """Control totals of the file and the group, so far."""
        self._counts = [0, 0]
        """Records of the file and the group, so far."""
        self._children = [0, 0]
        """Groups of the file and accounts of the group, so far."""

    def take(self, record: Record) -> Iterator[Event]:
        self._last = record.line
        if record.code != "01" and not self._seen:
            raise Refusal(record.line, "record 01", "is missing: a BAI2 file begins with it")
        if self._ended:
            raise Refusal(record.line, f"record {record.code}", "stands behind the file trailer 99")
        self._counts = [count + record.physical for count in self._counts]
        if record.code == "01":
            self._begin(record)
        elif record.code == "02":
            self._begin_group(record)
        elif record.code == "03":
            yield from self._begin_account(record)
        elif record.code == "16":
            yield from self._transaction(record)
        elif record.code == "49":
            yield from self._end_account(record)
        elif record.code == "98":
            self._end_group(record)
        else:
            self._end_file(record)

    def end(self) -> None:
        if not self._seen:
            raise Refusal(1, "record 01", "is missing: a BAI2 file begins with it")
        if not self._ended:
            raise Refusal(self._last, "record 99", "is missing: the file is not whole")

    def _begin(self, record: Record) -> None:
        if self._seen:
            raise Refusal(record.line, "record 01", "stands here for the second time")
        version = _field(record, 7)
        if version and version != "2":
            raise Refusal(record.line, "record 01, version", f"is {quoted(version)}; only version 2 is read")
        self._seen = True

    def _begin_group(self, record: Record) -> None:
        if self._group is not None:
            raise Refusal(record.line, "record 02", "begins a group before record 98 has ended the last one")
        status = _field(record, 2)
        if status in {_DELETION, _TEST}:
            raise Refusal(
                record.line,
                "record 02, status",
                f"is {status}: a deletion or a test, and nothing to be imported",
            )
        try:
            self._group_day = six_digit_date(_field(record, 3))
            self._group_currency = currency_code(_field(record, 5) or "USD")
        except ValueError as error:
            raise Refusal(record.line, "record 02", str(error)) from None
        self._group = record
        self._totals[1] = self._children[1] = 0
        self._counts[1] = record.physical

    def _begin_account(self, record: Record) -> Iterator[Event]:
        if self._group is None:
            raise Refusal(record.line, "record 03", "stands outside of any group 02")
        if self._account is not None:
            raise Refusal(
                record.line, "record 03", "begins an account before record 49 has ended the last one"
            )
        self._account = Account(record, self._group_day, self._group_currency, _field(self._group, 1))
        yield self._account.opened

    def _transaction(self, record: Record) -> Iterator[Event]:
        if self._account is None:
            raise Refusal(record.line, "record 16", "stands outside of any account 03")
        yield from self._account.transaction(record)

    def _end_account(self, record: Record) -> Iterator[Event]:
        if self._account is None:
            raise Refusal(record.line, "record 49", "ends no account")
        closed = self._account.end(record)
        self._totals[1] += self._account.control_minor
        self._children[1] += 1
        self._account = None
        yield closed

    def _end_group(self, record: Record) -> None:
        if self._group is None or self._account is not None:
            raise Refusal(record.line, "record 98", "ends a group while an account is open, or none")
        _agree(record, "control total", 0, self._totals[1])
        _agree(record, "number of accounts", 1, self._children[1])
        _agree(record, "number of records", 2, self._counts[1])
        self._totals[0] += self._totals[1]
        self._children[0] += 1
        self._group = None

    def _end_file(self, record: Record) -> None:
        if self._group is not None:
            raise Refusal(record.line, "record 99", "ends the file while a group is open")
        _agree(record, "control total", 0, self._totals[0])
        _agree(record, "number of groups", 1, self._children[0])
        _agree(record, "number of records", 2, self._counts[0])
        self._ended = True


class Account:
    """An account while it is read: a section."""

    def __init__(self, record: Record, day: date, currency: str, originator: str) -> None:
        self._day = day
        self._line = record.line
        self._lines = 0
        self._records = record.physical
        number = "".join(_field(record, 0).split())
        if not number:
            raise Refusal(record.line, "record 03, account", "is missing")
        try:
            self._currency = currency_code(_field(record, 1) or currency)
        except ValueError as error:
            raise Refusal(record.line, "record 03, currency", str(error)) from None
        amounts, self.control_minor = _summaries(record)
        """Balances and sums by type code, and the sum of all: what record 49 has to state."""
        self._closing_minor = amounts.get(_CLOSING)
        self._unproved = ""
        opening_minor = amounts.get(_OPENING)
        if self._closing_minor is None:
            self._unproved = "is missing: record 03 has no closing ledger balance (015)"
        elif opening_minor is None and _CREDITS in amounts and _DEBITS in amounts:
            opening_minor = self._closing_minor - amounts[_CREDITS] + amounts[_DEBITS]
        if opening_minor is None and not self._unproved:
            self._unproved = "cannot be checked: record 03 has no opening ledger balance (010)"
        identity = f"{originator}-{day:%Y%m%d}" if originator else f"{day:%Y%m%d}"
        self.opened = Opened(identity, number, self._currency, opening_minor or 0, day, record.line)

    def transaction(self, record: Record) -> Iterator[Line]:
        self._records += record.physical
        code, text_amount = _field(record, 0), _field(record, 1)
        if code == _NO_MONEY and not text_amount.strip("0"):
            return
        amount_minor = _whole(record, "amount", text_amount)
        self.control_minor += amount_minor
        value, rest = _availability(record, self._day)
        text = ",".join(rest[2:]).strip() if len(rest) > 2 else ""
        match = _BATCH.search(text)
        self._lines += 1
        yield Line(
            self._lines,
            self._day,
            value,
            -amount_minor if _is_debit(record, code) else amount_minor,
            self._currency,
            rest[1].strip() if len(rest) > 1 else "",
            rest[0].strip() if rest else "",
            match[1] if match else "",
            code,
            " ".join(text.split())[:500],
            False,
            record.line,
        )

    def end(self, record: Record) -> Closed:
        self._records += record.physical
        _agree(record, "control total", 0, self.control_minor)
        _agree(record, "number of records", 1, self._records)
        return Closed(self._closing_minor or 0, self._day, self._lines, self._line, self._unproved)


def _field(record: Record, index: int) -> str:
    return record.fields[index].strip() if index < len(record.fields) else ""


def _whole(record: Record, name: str, text: str) -> int:
    """An amount: digits of minor units, without a decimal mark."""
    if not _WHOLE.fullmatch(text):
        raise Refusal(
            record.line,
            f"record {record.code}, {name}",
            f"{quoted(text)} is not an amount in minor units, digits only",
        )
    return int(text)


def _agree(record: Record, name: str, index: int, counted: int) -> None:
    stated = _whole(record, name, _field(record, index))
    if stated != counted:
        raise Refusal(
            record.line,
            f"record {record.code}, {name}",
            f"is {stated:,}, but what was read comes to {counted:,}: the file is not whole, or was changed",
        )


def _summaries(record: Record) -> tuple[dict[str, int], int]:
    """Amounts by type code of a record 03, and their sum."""
    amounts: dict[str, int] = {}
    total_minor = 0
    rest = record.fields[2:]
    while any(field.strip() for field in rest):
        code = rest[0].strip()
        text = rest[1].strip() if len(rest) > 1 else ""
        if code and text:
            amount_minor = _whole(record, f"amount of type {quoted(code)}", text)
            amounts.setdefault(code, amount_minor)
            total_minor += amount_minor
        funds = rest[3].strip() if len(rest) > 3 else ""
        rest = rest[4 + _distributed(record, funds, rest[4:]) :]
    return amounts, total_minor


def _distributed(record: Record, funds: str, rest: list[str]) -> int:
    """How many fields behind a funds type belong to it."""
    if funds == "S":
        return 3
    if funds == "V":
        return 2
    if funds == "D":
        count = rest[0].strip() if rest else ""
        if not count.isdecimal() or len(count) > 3:
            raise Refusal(
                record.line, f"record {record.code}, funds type D", "lacks its number of distributions"
            )
        return 1 + 2 * int(count)
    if funds in {"", "0", "1", "2", "Z"}:
        return 0
    raise Refusal(
        record.line, f"record {record.code}, funds type", f"{quoted(funds)} is none of 0, 1, 2, S, V, D, Z"
    )


def _availability(record: Record, day: date) -> tuple[date, list[str]]:
    """The value date of a transaction, and the fields behind it: bank reference, customer reference, text."""
    funds = _field(record, 2).upper()
    skipped = _distributed(record, funds, record.fields[3:])
    if funds == "V" and (stated := _field(record, 3)):
        try:
            day = six_digit_date(stated)
        except ValueError as error:
            raise Refusal(record.line, "record 16, value date", str(error)) from None
    return day, record.fields[3 + skipped :]


def _is_debit(record: Record, code: str) -> bool:
    """By the standard's list, and for codes that a bank has added by their range."""
    known = TypeCodes.get(code)
    if known is not None and known.transaction is TypeCodeTransaction.debit:
        return True
    if known is not None and known.transaction is TypeCodeTransaction.credit:
        return False
    if code.isdecimal() and "100" <= code <= "399":
        return False
    if code.isdecimal() and "400" <= code <= "699":
        return True
    raise Refusal(
        record.line,
        "record 16, type code",
        f"{quoted(code)} is no transaction of BAI2: nobody can tell whether it is a credit or a debit",
    )
