"""Double entry: what an event books. Pure.

A hold is booked when the card's bank gives it and booked back when it is let go, each time against the control account,
so that every journal adds up to nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from services.kit.money import Money
from services.payment.domain import Payment

HOLDS = "holds"
HOLDS_CONTROL = "holds_control"


class Entry(NamedTuple):
    """One line of a journal: debits are positive, credits negative."""

    merchant_id: str
    journal_id: str
    line: int
    account: str
    amount: Money


def journal(before: Payment, after: Payment) -> list[Entry]:
    """What an event books: the change of what is held."""
    change = _booked(after) - _booked(before)
    if not change:
        return []
    number = f"{after.payment_id}/{after.version}"
    amount = Money(change, after.amount.currency)
    return [
        Entry(after.merchant_id, number, 1, HOLDS, amount),
        Entry(after.merchant_id, number, 2, HOLDS_CONTROL, -amount),
    ]


def _booked(payment: Payment) -> int:
    """A hold that was found late is no authorization of ours: it is let go without ever being booked."""
    return 0 if payment.found_late else payment.held.amount_minor


def entries(changes: Iterable[tuple[Payment, Payment]]) -> list[Entry]:
    """The journals of a set of changes, (before, after) each."""
    return [entry for before, after in changes for entry in journal(before, after)]
