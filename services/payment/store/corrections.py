"""Corrections, as two people have agreed on them."""

from __future__ import annotations

from collections.abc import Mapping

from services.kit.db import Transaction
from services.payment.domain.correction import Correction


def insert_corrections(tx: Transaction, corrections: Mapping[str, Correction]) -> None:
    """Record corrections by identifier; their journals are posted in the same transaction."""
    if not corrections:
        return
    rows = sorted(corrections.items())
    tx.later(
        """
        INSERT INTO corrections (merchant_id, correction_id, debit_account, credit_account, amount_minor, currency,
                                 reference, reason, proposed_by, approved_by)
        SELECT * FROM unnest(%(merchants)s::text[], %(ids)s::text[], %(debits)s::text[], %(credits)s::text[],
                             %(amounts)s::bigint[], %(currencies)s::text[], %(references)s::text[], %(reasons)s::text[],
                             %(proposers)s::text[], %(approvers)s::text[])
        """,
        {
            "merchants": [c.merchant_id for _, c in rows],
            "ids": [identifier for identifier, _ in rows],
            "debits": [c.debit_account for _, c in rows],
            "credits": [c.credit_account for _, c in rows],
            "amounts": [c.amount.amount_minor for _, c in rows],
            "currencies": [c.amount.currency for _, c in rows],
            "references": [c.reference for _, c in rows],
            "reasons": [c.reason for _, c in rows],
            "proposers": [c.proposed_by for _, c in rows],
            "approvers": [c.approved_by for _, c in rows],
        },
    )
