"""Double entry: what an event books. Pure.

Every account is a sum over what payments hold, have taken and have given back, so a journal is the change that an event
makes to these, and adds up to nothing by construction:

| | holds | holds_control | processor_receivable | merchant_payable | fees | cash | processor_fees | payouts |
|---|---|---|---|---|---|---|---|---|
| held | + | - | | | | | | |
| captured | | | + | - | | | | |
| fee of a capture | | | | + | - | | | |
| refunded | | | - | + | | | | |
| settled | | | - | | | + | | |
| the processor's fees | | | | | | - | + | |
| payout under way | | | | + | | | | - |
| paid out | | | | + | | - | | |

The first five are of payments, the others of settlements.

Debits are positive, credits negative. Nothing is ever changed: a hold that is let go is booked back, a refund
reverses its part of the capture, each as a journal of its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from services.kit.money import Money
from services.payment.domain import Payment
from services.payment.domain.settlement import PayoutState, Settlement, SettlementState

HOLDS = "holds"
HOLDS_CONTROL = "holds_control"
PROCESSOR_RECEIVABLE = "processor_receivable"
MERCHANT_PAYABLE = "merchant_payable"
FEES = "fees"
CASH = "cash"
PROCESSOR_FEES = "processor_fees"
PAYOUTS = "payouts"
SUSPENSE = "suspense"

ACCOUNTS = (
    HOLDS,
    HOLDS_CONTROL,
    PROCESSOR_RECEIVABLE,
    MERCHANT_PAYABLE,
    FEES,
    CASH,
    PROCESSOR_FEES,
    PAYOUTS,
    SUSPENSE,
)
"""The chart. `suspense` is for money whose reason is not known yet: nothing that happens by itself books on it."""


class Entry(NamedTuple):
    """One line of a journal: debits are positive, credits negative."""

    merchant_id: str
    journal_id: str
    line: int
    account: str
    amount: Money


def journal(before: Payment, after: Payment) -> list[Entry]:
    """What an event books; nothing when it moves nothing."""
    held = _booked(after) - _booked(before)
    lines: tuple[tuple[str, int], ...] = ((HOLDS, held), (HOLDS_CONTROL, -held))
    if after.captured_minor:
        captured = after.captured_minor - before.captured_minor
        refunded = after.refunded_minor - before.refunded_minor
        settled = after.settled_minor - before.settled_minor
        fee = after.fee_minor - before.fee_minor
        lines += (
            (PROCESSOR_RECEIVABLE, captured - refunded - settled),
            (MERCHANT_PAYABLE, fee + refunded - captured),
            (FEES, -fee),
            (CASH, settled),
        )
    elif not held:
        return []
    return _entries(after.merchant_id, f"{after.payment_id}/{after.version}", after.amount.currency, lines)


def _booked(payment: Payment) -> int:
    """A hold that was found late is no authorization of ours: it is let go without ever being booked."""
    return 0 if payment.found_late else payment.held_minor


def entries(changes: Iterable[tuple[Payment, Payment]]) -> list[Entry]:
    """The journals of a set of changes, (before, after) each."""
    return [entry for before, after in changes for entry in journal(before, after)]


def settlement_journal(before: Settlement, after: Settlement) -> list[Entry]:
    """What a step of a settlement books; nothing when it moves nothing. What its payments book is theirs."""
    was, now = settlement_sums(before), settlement_sums(after)
    lines = [(account, minor - was[account]) for account, minor in now.items()]
    return _entries(after.merchant_id, f"{after.settlement_id}/{after.version}", after.currency, lines)


def settlement_sums(settlement: Settlement) -> dict[str, int]:
    """What a settlement has in each account."""
    fee = 0 if settlement.state is SettlementState.SETTLING else settlement.processor_fee_minor
    under_way = settlement.payout_minor if settlement.payout_state is PayoutState.PAYING else 0
    paid = settlement.payout_minor if settlement.payout_state is PayoutState.PAID else 0
    return {
        PROCESSOR_FEES: fee,
        MERCHANT_PAYABLE: under_way + paid,
        PAYOUTS: -under_way,
        CASH: -fee - paid,
    }


def _entries(
    merchant_id: str, journal_id: str, currency: str, lines: Iterable[tuple[str, int]]
) -> list[Entry]:
    moved = [(account, amount_minor) for account, amount_minor in lines if amount_minor]
    return [
        Entry(merchant_id, journal_id, line, account, Money(amount_minor, currency))
        for line, (account, amount_minor) in enumerate(moved, start=1)
    ]
