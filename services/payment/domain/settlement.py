"""A settlement: which captures and refunds the processor pays out together, and what of it the merchant is paid.

SETTLING ──the processor has paid──► POSTING ──every payment knows, the payout has ended──► COMPLETED

PLANNED ──► PAYING ──► PAID
   │           └─────► REFUSED     what was due is part of the next payout
(nothing due) ───────► CARRIED     so is what the merchant owes, with the other sign
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date
from enum import StrEnum
from typing import NamedTuple

ITEMS_MAX = 10_000
"""Items of one settlement: as many as the bank takes in one call. A day with more has several settlements."""


class SettlementState(StrEnum):
    """Where a settlement stands."""

    SETTLING = "SETTLING"
    POSTING = "POSTING"
    COMPLETED = "COMPLETED"


class PayoutState(StrEnum):
    """What becomes of what is due to the merchant."""

    PLANNED = "PLANNED"
    PAYING = "PAYING"
    PAID = "PAID"
    REFUSED = "REFUSED"
    CARRIED = "CARRIED"


PAYOUT_ENDED = frozenset({PayoutState.PAID, PayoutState.REFUSED, PayoutState.CARRIED})


class ItemKind(StrEnum):
    """What an item is."""

    CAPTURE = "CAPTURE"
    REFUND = "REFUND"


class Item(NamedTuple):
    """A capture or a refund, in a settlement or in none yet. Amounts are in the currency of the payment."""

    merchant_id: str
    payment_id: str
    version: int
    """Of the event that tells it."""
    kind: ItemKind
    amount_minor: int
    fee_minor: int
    """What the merchant is charged for it."""
    bank_reference: str
    """The bank's name for the operation."""


class Sums(NamedTuple):
    """What items add up to."""

    items: int
    captured_minor: int
    refunded_minor: int
    fee_minor: int


class Settlement(NamedTuple):
    """A settlement. Amounts are in minor units of `currency`."""

    merchant_id: str
    settlement_id: str
    day: date
    number: int
    """1 for the first one of the day, merchant and currency."""
    currency: str
    state: SettlementState
    version: int
    """Counts the steps; each may book a journal of its number."""
    waits_for: str
    """Why the bank's answer to what is under way is not known, UPPER_SNAKE; empty before it was asked."""
    items: int
    captured_minor: int
    refunded_minor: int
    fee_minor: int
    """What the merchant is charged."""
    brought_forward_minor: int
    """What the merchant was owed (or owed, if negative) when it was made."""
    payout_minor: int
    payout_state: PayoutState
    payout_reference: str = ""
    payout_refusal: str = ""
    payout_booked_on: date | None = None
    payout_value_on: date | None = None
    processor_reference: str = ""
    processor_fee_minor: int = 0
    booked_on: date | None = None
    value_on: date | None = None
    created_at_ms: int = 0
    completed_at_ms: int = 0

    @property
    def key(self) -> tuple[str, str]:
        """What it is stored under."""
        return (self.merchant_id, self.settlement_id)

    @property
    def due_minor(self) -> int:
        """What is due to the merchant for its items."""
        return self.captured_minor - self.refunded_minor - self.fee_minor

    @property
    def net_minor(self) -> int:
        """What the processor has paid: negative when more was given back than taken."""
        return self.captured_minor - self.refunded_minor - self.processor_fee_minor


class Batch(NamedTuple):
    """The processor's answer: it has paid."""

    reference: str
    operations: Mapping[str, tuple[ItemKind | None, int, int]]
    """By its name of the operation: kind (None for one that we do not know), amount and its fee, in minor
    units."""
    net_minor: int
    booked_on: date
    value_on: date


class PaidOut(NamedTuple):
    """The bank's answer: the merchant was paid."""

    reference: str
    booked_on: date
    value_on: date


class NotPaid(NamedTuple):
    """The bank's answer: it will not pay the merchant, not under this key."""

    reference: str
    reason: str


class Waits(NamedTuple):
    """There is no answer yet, or none that can be taken for one."""

    reason: str


def decide(
    merchant_id: str,
    settlement_id: str,
    day: date,
    number: int,
    currency: str,
    sums: Sums,
    carried_minor: int,
) -> tuple[Settlement, int]:
    """A settlement of items that add up to `sums`, and what is carried to the next one, when `carried_minor` were
    carried to this one. Nobody is paid less than nothing: what a merchant owes is taken off his next payouts."""
    due_minor = sums.captured_minor - sums.refunded_minor - sums.fee_minor + carried_minor
    payout_minor = max(0, due_minor)
    settlement = Settlement(
        merchant_id,
        settlement_id,
        day,
        number,
        currency,
        SettlementState.SETTLING,
        1,
        "",
        sums.items,
        sums.captured_minor,
        sums.refunded_minor,
        sums.fee_minor,
        carried_minor,
        payout_minor,
        PayoutState.PLANNED if payout_minor else PayoutState.CARRIED,
    )
    return settlement, due_minor - payout_minor


def after_batch(settlement: Settlement, answer: Batch | Waits, items: Sequence[Item]) -> Settlement:
    """The settlement after the processor's answer, or as it is when that changes nothing any more. `items` are all of
    its items. An answer that is not about exactly these is none: a person has to look before anything is booked."""
    if settlement.state is not SettlementState.SETTLING:
        return settlement
    if isinstance(answer, Waits):
        return settlement._replace(waits_for=answer.reason)
    asked = {one.bank_reference: (one.kind, one.amount_minor) for one in items}
    told = {
        reference: (kind, amount_minor) for reference, (kind, amount_minor, _) in answer.operations.items()
    }
    fee_minor = sum(fee for _, _, fee in answer.operations.values())
    if asked != told or answer.net_minor != settlement.captured_minor - settlement.refunded_minor - fee_minor:
        return settlement._replace(waits_for="BANK_SAYS_OTHERWISE")
    pays = settlement.payout_state is PayoutState.PLANNED
    return settlement._replace(
        state=SettlementState.POSTING,
        version=settlement.version + 1,
        waits_for="",
        payout_state=PayoutState.PAYING if pays else settlement.payout_state,
        processor_reference=answer.reference,
        processor_fee_minor=fee_minor,
        booked_on=answer.booked_on,
        value_on=answer.value_on,
    )


def after_payout(settlement: Settlement, answer: PaidOut | NotPaid | Waits) -> Settlement:
    """The settlement after the bank's answer to its payout, or as it is when that changes nothing any more."""
    if settlement.payout_state is not PayoutState.PAYING:
        return settlement
    after = settlement._replace(version=settlement.version + 1, waits_for="")
    match answer:
        case PaidOut(reference, booked_on, value_on):
            return after._replace(
                payout_state=PayoutState.PAID,
                payout_reference=reference,
                payout_booked_on=booked_on,
                payout_value_on=value_on,
            )
        case NotPaid(reference, reason):
            return after._replace(
                payout_state=PayoutState.REFUSED, payout_reference=reference, payout_refusal=reason
            )
        case Waits(reason):
            return settlement._replace(waits_for=reason)


def carried_back(before: Settlement, after: Settlement) -> int:
    """What goes back to what is carried to the next settlement, because it could not be paid."""
    refused = before.payout_state is PayoutState.PAYING and after.payout_state is PayoutState.REFUSED
    return after.payout_minor if refused else 0


def completed(settlement: Settlement, items_waiting: int, now_ms: int) -> Settlement:
    """The settlement once every payment knows and its payout has ended; as it is before that."""
    ended = settlement.payout_state in PAYOUT_ENDED and not items_waiting
    if settlement.state is not SettlementState.POSTING or not ended:
        return settlement
    return settlement._replace(
        state=SettlementState.COMPLETED, version=settlement.version + 1, completed_at_ms=now_ms
    )
