"""What the bank's statements say: entries out of bookings, and errors in them on demand."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import date, datetime, timedelta
from enum import StrEnum
from typing import NamedTuple

from sandbox.bank.statements.statement import Entry, Kind, Part, is_printable_reference
from services.kit.errors import Refused

ERRORS_MAX = 1_000
"""Errors of one call."""
LATE_DAYS_MAX = 30
UNKNOWN_MINOR_MAX = 100_000
"""Largest amount of an invented booking."""


class ErrorKind(StrEnum):
    """What is wrong with a statement; see the contract."""

    MISSING = "MISSING"
    DOUBLE = "DOUBLE"
    WRONG_AMOUNT = "WRONG_AMOUNT"
    LATE = "LATE"
    UNKNOWN = "UNKNOWN"
    OTHER_CURRENCY = "OTHER_CURRENCY"

    @property
    def hides(self) -> bool:
        """Whether the booking is not shown as it is."""
        return self not in (ErrorKind.DOUBLE, ErrorKind.UNKNOWN)


class Booked(NamedTuple):
    """A capture or refund, settled and net of its fee, or a payout."""

    merchant_id: str
    currency: str
    line_id: str
    kind: Kind
    key: str
    batch_id: str
    """Empty for a payout."""
    batch_reference: str
    """The customer's name for the settlement or the payout."""
    amount_minor: int
    fee_minor: int
    booked_on: date
    value_on: date


class StatementError(NamedTuple):
    """An error in the statements of a day; it never changes."""

    merchant_id: str
    day: date
    seed: int
    number: int
    kind: ErrorKind
    line_id: str
    booked_minor: int
    currency: str
    shown_minor: int
    shown_currency: str
    shown_on: date
    created_at: datetime


def draw_errors(
    bookings: Sequence[Booked],
    counts: Mapping[ErrorKind, int],
    day: date,
    seed: int,
    late_days: int,
    at: datetime,
) -> list[StatementError]:
    """Errors drawn by a seed from what is booked on a day and has none yet, numbered from 1. Raises Refused."""
    dice = random.Random(seed)  # noqa: S311 - errors are to be repeatable, not secret
    wanted = [kind for kind in ErrorKind for _ in range(counts.get(kind, 0))]
    hit = sum(kind is not ErrorKind.UNKNOWN for kind in wanted)
    if hit > len(bookings) or (wanted and not bookings):
        raise Refused(
            "NOT_ENOUGH_ENTRIES",
            f"{day} has {len(bookings):,} bookings without an error, and {hit:,} are wanted",
            facts={"date": str(day), "available": str(len(bookings))},
        )
    drawn = iter(dice.sample(range(len(bookings)), hit))
    errors = []
    for number, kind in enumerate(wanted, start=1):
        invented = kind is ErrorKind.UNKNOWN
        booked = bookings[dice.randrange(len(bookings)) if invented else next(drawn)]
        errors.append(
            StatementError(
                booked.merchant_id,
                day,
                seed,
                number,
                kind,
                f"unk_{dice.getrandbits(120):030x}" if invented else booked.line_id,
                0 if invented else booked.amount_minor,
                booked.currency,
                _shown_minor(kind, booked.amount_minor, dice),
                _other(booked.currency) if kind is ErrorKind.OTHER_CURRENCY else booked.currency,
                day + timedelta(days=late_days) if kind is ErrorKind.LATE else day,
                at,
            )
        )
    return errors


def _shown_minor(kind: ErrorKind, booked_minor: int, dice: random.Random) -> int:
    if kind is ErrorKind.MISSING:
        return 0
    if kind is ErrorKind.UNKNOWN:
        return dice.randint(1, UNKNOWN_MINOR_MAX) * dice.choice((1, 1, -1))
    if kind is ErrorKind.WRONG_AMOUNT:
        more = dice.randint(1, max(9, abs(booked_minor) // 10))
        return booked_minor - more if booked_minor < 0 else booked_minor + more
    return booked_minor


def _other(currency: str) -> str:
    return "USD" if currency == "EUR" else "EUR"


def part_of(booked: Booked) -> Part:
    """A booking as a statement names it."""
    gross_minor = booked.amount_minor + booked.fee_minor
    text = f"{booked.kind.value.lower()} for {booked.batch_reference}"
    if booked.fee_minor:
        text = f"{text}, {gross_minor} less fee {booked.fee_minor}"
    return Part(
        booked.kind,
        booked.amount_minor,
        booked.fee_minor,
        booked.key if is_printable_reference(booked.key) else "",
        booked.line_id,
        booked.batch_id,
        text,
    )


def entries_one_by_one(bookings: Iterable[Booked]) -> Iterator[Entry]:
    """An entry for each booking."""
    for booked in bookings:
        yield Entry(part_of(booked), booked.booked_on, booked.value_on)


def entry_of_batch(bookings: Sequence[Booked]) -> Entry:
    """The entry of a settlement with its parts; of a payout the payout alone."""
    first = bookings[0]
    if not first.batch_id:
        return next(entries_one_by_one(bookings))
    reference = first.batch_reference
    whole = Part(
        Kind.SETTLEMENT,
        sum(booked.amount_minor for booked in bookings),
        sum(booked.fee_minor for booked in bookings),
        reference if is_printable_reference(reference) else "",
        first.batch_id,
        first.batch_id,
        f"settlement {reference} of {len(bookings):,} transactions, net of fees",
    )
    return Entry(whole, first.booked_on, first.value_on, tuple(part_of(booked) for booked in bookings))


def entry_of_error(error: StatementError, booked: Booked | None) -> Entry:
    """What an error shows; `booked` is what it is about, None for an UNKNOWN one."""
    if booked is None:
        part = Part(Kind.OTHER, error.shown_minor, 0, "", error.line_id, "", "miscellaneous")
        return Entry(part, error.shown_on, error.shown_on)
    part = part_of(booked)._replace(amount_minor=error.shown_minor)
    return Entry(part, error.shown_on, booked.value_on)
