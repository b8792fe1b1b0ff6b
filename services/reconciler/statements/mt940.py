"""Reads SWIFT MT940, the customer statement message, as a stream. Pure.

The `mt-940` package knows the dialects: its pattern of the statement line `:61:` and its reading of a structured `:86:`
are used. What it does with a file is not: it holds all of it. The file is cut into fields here, line by line, and the
package is given one field at a time.

What stands outside of a message, such as the headers of a bank's own envelope, is skipped: a message begins with
`:20:`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import date
from typing import BinaryIO, NamedTuple

from mt940.tags import Tags

from services.reconciler.domain.statement import Closed, Event, Line, Opened, Refusal
from services.reconciler.statements.exact import decimals, minor_units, quoted, six_digit_date
from services.reconciler.statements.mt940_details import Details, read_details
from services.reconciler.statements.text_lines import Rewound, text_lines

FIELD_LENGTH_MAX = 64 * 1024
"""Longest field, with its continuation lines. SWIFT allows 6 lines of 65 characters; banks' own files have more."""

_TAG = re.compile(r":(\d{2}[A-Z]?|NS):(.*)", re.DOTALL)
_KNOWN = {
    "13", "13D", "20", "21", "25", "25P", "28", "28C", "34F", "60", "60F", "60M", "61", "62", "62F", "62M", "64", "65",
    "86", "90C", "90D", "NS",
}  # fmt: skip
_HEADER_BLOCK = re.compile(r"(?:\{\d:[^{}]*(?:\{[^{}]*\})*\})*\{4:\s*")
_END = re.compile(r"-\}?(?:\{5:.*)?|-[A-Z]{3}|-?\x03")
_BALANCE = re.compile(r"([CD])(\d{6})([A-Z]{3})([\d,.]+)")
_LINE = Tags.STATEMENT.value.re
_NO_REFERENCE = {"NONREF", "N"}
_YEAR_TURN_DAYS = 180
"""An entry date has no year. It is the one that brings it nearest to the value date."""


class Field(NamedTuple):
    """A field of a message: `:61:` is "61"."""

    tag: str
    text: str
    line: int


END = "end"
"""Tag of what stands for the end of a message."""


def read_mt940(stream: BinaryIO | Rewound, *, name: str) -> Iterator[Event]:
    """The events of the messages in a file. Raises Refusal."""
    del name
    message: Message | None = None
    found = last = 0
    for field in fields(stream):
        last = field.line
        if field.tag == "20":
            if message is not None:
                yield from message.end(field.line)
            message = Message(field)
            found += 1
        elif message is None:
            if field.tag in {"60", "60F", "60M", "61", "62", "62F", "62M"}:
                raise Refusal(field.line, f":{field.tag}:", "stands before any :20:, which begins a message")
        elif field.tag == END:
            yield from message.end(field.line)
            message = None
        else:
            yield from message.take(field)
    if message is not None:
        yield from message.end(last)
    if not found:
        raise Refusal(last or 1, ":20:", "there is none: this is no MT940 message")


def fields(stream: BinaryIO | Rewound) -> Iterator[Field]:
    """The fields of a file, each with its continuation lines, and an `END` where a message ends."""
    tag, start = "", 0
    lines: list[str] = []
    length = 0
    for number, raw in text_lines(stream):
        text = _HEADER_BLOCK.sub("", raw.lstrip("\x01"), count=1) if raw[:1] in {"{", "\x01"} else raw
        match = _TAG.match(text) if text[:1] == ":" else None
        if match is not None and match[1] in _KNOWN:
            if tag:
                yield Field(tag, "\n".join(lines), start)
            tag, start, lines = match[1], number, [match[2]]
            length = len(match[2])
        elif text[:1] in {"-", "\x03"} and _END.fullmatch(text.rstrip()):
            if tag:
                yield Field(tag, "\n".join(lines), start)
                yield Field(END, "", number)
            tag, lines = "", []
        elif tag and text.strip():
            lines.append(text)
            length += len(text) + 1
            if length > FIELD_LENGTH_MAX:
                raise Refusal(
                    start, f":{tag}:", f"is longer than {FIELD_LENGTH_MAX:,} characters; is the file damaged?"
                )
    if tag:
        yield Field(tag, "\n".join(lines), start)


class Message:
    """One message while it is read: a section of its own, also where a bank sends a statement on several pages."""

    def __init__(self, reference: Field) -> None:
        self._reference = reference.text.strip()
        self._line = reference.line
        self._account = self._number = ""
        self._opened: Opened | None = None
        self._closed: Closed | None = None
        self._places = 0
        self._pending: Line | None = None
        self._lines = 0
        self._details: list[str] = []

    def take(self, field: Field) -> Iterator[Event]:
        """What a field completes."""
        tag = field.tag
        if tag == "86":
            if self._pending is not None:
                self._details.append(field.text)
            return
        if tag == "NS":
            return
        yield from self._flush()
        if tag == "61":
            self._pending = self._statement_line(field)
        elif tag in {"25", "25P"}:
            self._account = "".join(field.text.split("\n")[0].split())
        elif tag in {"28", "28C"}:
            self._number = "".join(field.text.split())
        elif tag in {"60", "60F", "60M"}:
            yield self._open(field)
        elif tag in {"62", "62F", "62M"}:
            self._closed = self._close(field)

    def end(self, line: int) -> Iterator[Event]:
        """The message is over."""
        yield from self._flush()
        if self._opened is None:
            raise Refusal(self._line, ":60F:", "is missing: the message has no opening balance")
        if self._closed is None:
            raise Refusal(
                line, ":62F:", f"is missing: the message that begins in line {self._line} does not end"
            )
        yield self._closed

    def _flush(self) -> Iterator[Event]:
        """The line that was waiting for its details."""
        if self._pending is None:
            return
        line, self._pending = self._pending, None
        if self._details:
            details = read_details("\n".join(self._details))
            self._details = []
            line = _with_details(line, details)
        yield line

    def _open(self, field: Field) -> Opened:
        if self._opened is not None:
            raise Refusal(field.line, f":{field.tag}:", "is the second opening balance of its message")
        if not self._account:
            raise Refusal(
                field.line, ":25:", "is missing: the message does not say which account it is about"
            )
        amount_minor, currency, day = _balance(field)
        self._places = decimals(currency)
        number = self._number or self._reference
        self._opened = Opened(
            f"{number}@{day.isoformat()}", self._account, currency, amount_minor, day, self._line
        )
        return self._opened

    def _close(self, field: Field) -> Closed:
        if self._opened is None:
            raise Refusal(field.line, f":{field.tag}:", "stands before the opening balance :60F:")
        if self._closed is not None:
            raise Refusal(field.line, f":{field.tag}:", "is the second closing balance of its message")
        amount_minor, currency, day = _balance(field)
        if currency != self._opened.currency:
            raise Refusal(
                field.line,
                f":{field.tag}:",
                f"is in {currency}, but the message opens in {self._opened.currency}",
            )
        return Closed(amount_minor, day, self._lines, field.line)

    def _statement_line(self, field: Field) -> Line:
        opened = self._opened
        if opened is None:
            raise Refusal(field.line, ":61:", "stands before the opening balance :60F:")
        if self._closed is not None:
            raise Refusal(field.line, ":61:", "stands behind the closing balance :62F:")
        match = _LINE.match(field.text)
        if match is None:
            raise Refusal(field.line, ":61:", _why_no_line(field.text))
        said = match.groupdict()
        try:
            value = six_digit_date(said["year"] + said["month"] + said["day"], thirty_day_months=True)
            booking = _entry_date(value, said["entry_month"], said["entry_day"])
            amount_minor = minor_units(said["amount"], self._places)
        except ValueError as error:
            raise Refusal(field.line, ":61:", str(error)) from None
        mark = said["status"].upper()
        if mark in {"D", "RC"}:
            amount_minor = -amount_minor
        self._lines += 1
        reference = said["customer_reference"].strip()
        return Line(
            self._lines, booking, value, amount_minor, opened.currency,
            "" if reference.upper() in _NO_REFERENCE else reference,
            (said["bank_reference"] or "").strip(),
            "", (said["id"] or "").strip(), " ".join((said["extra_details"] or "").split()),
            mark.startswith("R"), field.line,
        )  # fmt: skip


def _with_details(line: Line, details: Details) -> Line:
    text = details.text
    if line.text:
        text = f"{line.text}; {text}" if text else line.text
    return line._replace(
        reference=details.reference or line.reference,
        counterpart_reference=details.bank_reference or line.counterpart_reference,
        batch_reference=details.batch_reference,
        text=text[:500],
    )


def _balance(field: Field) -> tuple[int, str, date]:
    """Amount, currency and day of a balance. Raises Refusal."""
    match = _BALANCE.fullmatch(field.text.strip())
    if match is None:
        raise Refusal(
            field.line,
            f":{field.tag}:",
            f"{quoted(field.text)} is not a balance like C261126EUR1234,56",
        )
    try:
        day = six_digit_date(match[2], thirty_day_months=True)
        amount_minor = minor_units(match[4], decimals(match[3]))
    except ValueError as error:
        raise Refusal(field.line, f":{field.tag}:", str(error)) from None
    return (amount_minor if match[1] == "C" else -amount_minor), match[3], day


def _entry_date(value: date, month: str | None, day: str | None) -> date:
    if not (month and day and month.strip() and day.strip()):
        return value
    entry = six_digit_date(f"{value.year % 100:02d}{month}{day}", thirty_day_months=True)
    for year in (value.year, value.year - 1, value.year + 1):
        if not date.min.year <= year <= date.max.year:
            continue
        try:
            candidate = entry.replace(year=year)
        except ValueError:
            continue
        if abs((candidate - value).days) <= _YEAR_TURN_DAYS:
            return candidate
    return entry


_STEPS = (
    (re.compile(r"\d{6}"), "a value date of six digits"),
    (re.compile(r"\d{6}(?:\d{4}|\s{4})?R?[CD]", re.IGNORECASE), "one of C, D, RC and RD after the dates"),
    (
        re.compile(r"\d{6}(?:\d{4}|\s{4})?R?[CD][A-Z]?[\n ]?[\d,]{1,15}", re.IGNORECASE),
        "an amount like 12,34",
    ),
)


def _why_no_line(text: str) -> str:
    for pattern, wanted in _STEPS:
        if not pattern.match(text):
            return f"{quoted(text)} lacks {wanted}"
    return f"{quoted(text)} is not a statement line like 2611261126D12,34NTRFNONREF//B12345"
