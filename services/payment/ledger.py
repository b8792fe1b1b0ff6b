"""Double entry: what an event books. Pure.

Every account is a sum over what payments hold, have taken and have given back, so a journal is the change that an event
makes to these, and adds up to nothing by construction:

| | holds | holds_control | processor_receivable | merchant_payable | fees | cash |
|---|---|---|---|---|---|---|
| held | + | - | | | | |
| captured | | | + | - | | |
| fee of a capture | | | | + | - | |
| refunded | | | - | + | | |
| settled | | | - | | | + |

Debits are positive, credits negative. Nothing is ever changed: a hold that is let go is booked back, a refund
reverses its part of the capture, each as a journal of its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from services.kit.money import Money
from services.payment.domain import Payment

HOLDS = "holds"
HOLDS_CONTROL = "holds_control"
PROCESSOR_RECEIVABLE = "processor_receivable"
MERCHANT_PAYABLE = "merchant_payable"
FEES = "fees"
CASH = "cash"
SUSPENSE = "suspense"

ACCOUNTS = (HOLDS, HOLDS_CONTROL, PROCESSOR_RECEIVABLE, MERCHANT_PAYABLE, FEES, CASH, SUSPENSE)
"""The chart. `suspense` is for money whose reason is not known yet: no event of a payment books on it."""


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
    number, currency = f"{after.payment_id}/{after.version}", after.amount.currency
    moved = [(account, amount_minor) for account, amount_minor in lines if amount_minor]
    return [
        Entry(after.merchant_id, number, line, account, Money(amount_minor, currency))
        for line, (account, amount_minor) in enumerate(moved, start=1)
    ]


def _booked(payment: Payment) -> int:
    """A hold that was found late is no authorization of ours: it is let go without ever being booked."""
    return 0 if payment.found_late else payment.held_minor


def entries(changes: Iterable[tuple[Payment, Payment]]) -> list[Entry]:
    """The journals of a set of changes, (before, after) each."""
    return [entry for before, after in changes for entry in journal(before, after)]
