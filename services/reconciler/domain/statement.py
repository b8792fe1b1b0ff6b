"""A bank statement as a stream of values, whatever the format it came in. Pure.

A file is a sequence of sections, one for each statement, account and currency: `Opened`, then its `Line`s in the order
of the file, then `Closed`. Sections do not overlap. A reader of a format yields these as it reads (`Read`), so that a
file of any size needs the memory of one line; it raises `Refusal` at the first thing that it cannot read for certain.
`checked` proves the rest while the values pass through: that every section adds up.

Amounts are whole minor units of the section's currency, positive for money that comes to us (a credit of the account),
negative for money that goes. Nothing is rounded: an amount with more decimals than its currency has is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date
from typing import BinaryIO, NamedTuple, Protocol, TypeAlias

BALANCE_MINOR_MAX = 1_000_000_000_000_000_000
"""Largest balance or amount of a line, in minor units, either way: what adds up still fits into 64 bits."""


class Refusal(Exception):
    """A file cannot be imported. Nothing of it is kept."""

    def __init__(self, line: int, field: str, reason: str) -> None:
        super().__init__(f"line {line}, {field}: {reason}" if line else f"{field}: {reason}")
        self.line = line
        """Line of the file, from 1; 0 when it is not about one line."""
        self.field = field
        """What is wrong, in the words of the format: "Ntry/Amt", ":61:", "record 16, amount", "column amount"."""
        self.reason = reason
        """Why, and what was found; a sentence for a person, without the line and the field."""


class Unproved(Refusal):
    """A section may lack lines: its balances are missing, or contradict what it has."""


class Opened(NamedTuple):
    """A section begins."""

    statement_id: str
    """As the bank numbers it; with the account and the currency it names a statement for good."""
    account: str
    """The bank's number of the account: an IBAN without spaces, or whatever the format has."""
    currency: str
    """ISO 4217 code of the section: every line has it."""
    opening_minor: int
    opening_date: date | None
    """None where the format does not say."""
    line: int
    """Where it stands in the file, from 1."""


class Line(NamedTuple):
    """One booking on the account."""

    number: int
    """Its place in its section, from 1, without gaps."""
    booking_date: date
    value_date: date
    """The booking date where the format has no other."""
    amount_minor: int
    """Positive: credited to us; negative: debited. Never zero, except where the bank says zero."""
    currency: str
    """That of the section."""
    reference: str
    """Ours, as the bank gives it back: the end-to-end id, the customer reference; empty when there is none."""
    counterpart_reference: str
    """The bank's own for this booking; empty when there is none."""
    batch_reference: str
    """What several bookings, or the parts of one, have in common: the id of a payout; empty when there is none."""
    kind: str
    """The bank's code of the transaction as the format has it: "PMNT.RCDT.ESCT", "NTRF", "195"; may be empty."""
    text: str
    """For people: remittance information, names; may be empty."""
    reversal: bool
    """Whether the bank says that it takes an earlier booking back. The sign of the amount has it in already."""
    line: int
    """Where it stands in the file, from 1."""


class Closed(NamedTuple):
    """A section ends."""

    closing_minor: int
    closing_date: date | None
    """None where the format does not say."""
    lines: int
    """How many lines the section has: as the file says where it does, else as the reader counted."""
    line: int
    """Where it stands in the file, from 1."""
    unproved: str = ""
    """Why the file does not prove that the section is whole, such as a missing balance; then `closing_minor` and the
    opening are what the file says, or nothing. Empty where opening + lines = closing is to hold. The second half of a
    sentence about the closing balance."""


Event: TypeAlias = Opened | Line | Closed


class Read(Protocol):
    """A reader of one format. `stream` is read from where it stands, once, and need not seek; `name` is for messages.
    Raises Refusal."""

    def __call__(self, stream: BinaryIO, *, name: str) -> Iterator[Event]: ...


def checked(events: Iterator[Event], *, accept_unproved: bool = False) -> Iterator[Event]:
    """The same events, and the proof that they are whole: sections are opened and closed in turn, lines are numbered
    without a gap and have the section's currency, and opening + lines = closing. Raises Refusal.

    With `accept_unproved`, a section whose balances are missing or contradict its lines passes: its `Closed` says so in
    `unproved`, and closes with what opening and lines add up to. A person has to ask for that."""
    opened: Opened | None = None
    sum_minor = count = last = 0
    for event in events:
        last = event.line
        if isinstance(event, Line):
            if opened is None:
                raise Refusal(event.line, "line", "stands outside of any statement")
            count += 1
            sum_minor += event.amount_minor
            _check_line(event, opened, count)
        elif isinstance(event, Opened):
            if opened is not None:
                raise Refusal(event.line, "statement", f"begins before {opened.statement_id!r} has ended")
            _check_amount(event.line, "opening balance", event.opening_minor)
            opened, sum_minor, count = event, event.opening_minor, 0
        else:
            if opened is None:
                raise Refusal(event.line, "closing balance", "stands outside of any statement")
            try:
                _check_closed(event, opened, sum_minor, count)
            except Unproved as why:
                if not accept_unproved:
                    raise
                event = event._replace(closing_minor=sum_minor, unproved=why.reason)
            opened = None
        yield event
    if opened is not None:
        raise Refusal(last, "closing balance", f"is missing: {opened.statement_id!r} does not end")
    if not last:
        raise Refusal(0, "statement", "the file has none")


def _check_line(line: Line, opened: Opened, count: int) -> None:
    if line.number != count:
        raise Refusal(line.line, "number", f"is {line.number}, but this is line {count} of the statement")
    if line.currency != opened.currency:
        raise Refusal(line.line, "currency", f"is {line.currency}, but the statement is in {opened.currency}")
    _check_amount(line.line, "amount", line.amount_minor)


def _check_closed(closed: Closed, opened: Opened, sum_minor: int, count: int) -> None:
    if closed.lines != count:
        raise Refusal(
            closed.line, "number of lines", f"the statement says {closed.lines:,}, but has {count:,}"
        )
    _check_amount(closed.line, "closing balance", closed.closing_minor)
    if closed.unproved:
        raise Unproved(closed.line, "closing balance", closed.unproved)
    if closed.closing_minor != sum_minor:
        raise Unproved(
            closed.line,
            "closing balance",
            f"of {opened.statement_id!r} is {closed.closing_minor:,} minor units of {opened.currency}, but the opening "
            f"balance of {opened.opening_minor:,} and {count:,} lines add up to {sum_minor:,}: lines are missing, or "
            "the file was changed; ask the bank for a whole one",
        )


def _check_amount(line: int, field: str, amount_minor: int) -> None:
    if abs(amount_minor) > BALANCE_MINOR_MAX:
        raise Refusal(line, field, f"{amount_minor:,} minor units are more than any account can hold")
