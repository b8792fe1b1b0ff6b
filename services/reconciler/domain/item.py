"""What our books expect on a statement. Pure."""

from __future__ import annotations

from datetime import date
from enum import StrEnum
from typing import NamedTuple


class ItemKind(StrEnum):
    """What moved the money."""

    CAPTURE = "CAPTURE"
    REFUND = "REFUND"
    PAYOUT = "PAYOUT"


class Item(NamedTuple):
    """A capture, a refund or a payout that the bank has booked, as payment knows it. It never changes."""

    item_id: str
    """The key that the bank was asked under."""
    kind: ItemKind
    payment_id: str
    """Empty for a payout."""
    settlement_id: str
    bank_reference: str
    """The bank's identifier of the operation."""
    batch_reference: str
    """The bank's identifier of the settlement; empty for a payout."""
    amount_minor: int
    """Positive for what comes to us, negative for what leaves."""
    fee_minor: int
    """What the bank keeps of it."""
    currency: str
    booked_on: date
    value_on: date
