"""What people may post when a bank statement says something else than our books. Pure."""

from __future__ import annotations

from typing import NamedTuple

from services.kit.errors import Refused
from services.kit.money import Money

CORRECTABLE = ("suspense", "processor_receivable", "processor_fees", "cash", "payouts")
"""Accounts that a correction may book on: those between us and the bank. What is held, what merchants are owed and what
they were charged follows from payments alone."""


class Correction(NamedTuple):
    """A journal of two entries that one person has proposed and another one approved."""

    merchant_id: str
    debit_account: str
    credit_account: str
    amount: Money
    reference: str
    reason: str
    proposed_by: str
    approved_by: str


def post(correction: Correction) -> Refused | None:
    """None when it may be posted, else why not."""
    if correction.proposed_by.strip().lower() == correction.approved_by.strip().lower():
        return Refused(
            "SAME_PERSON", f"{correction.approved_by} has proposed it: another person has to approve it"
        )
    return None
