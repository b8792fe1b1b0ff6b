"""Payment without its ledger and without the chain of hashes: to measure what they cost, and for nothing else.

It cannot be had where money is. The setting has to name a secret that stands in the description of the database itself,
which `paymesh bench` writes into one that it has just made, and which the role that payment works under cannot write;
and nothing may ever have been written there in the ordinary way. Otherwise the process does not start.

What is measured has no question in it whether this is on: the two functions are replaced.
"""

from __future__ import annotations

import hmac
import logging
from collections.abc import Iterable

from services.kit.db import Database
from services.payment import ledger, store
from services.payment.domain import Payment
from services.payment.store import payments

log = logging.getLogger(__name__)

UNCHAINED = b"-"
"""Stands where a hash would."""


async def forgo_history(database: Database, secret: str) -> None:
    """Write no ledger entries and make no hashes from now on. Raises RuntimeError where that is not allowed."""
    mark = await store.find_mark(database)
    if not mark or not hmac.compare_digest(mark.encode(), secret.encode()):
        raise RuntimeError(
            "BENCH_WITHOUT_HISTORY is for databases that `paymesh bench` has made, and this is none: unset it"
        )
    if await store.has_history(database, UNCHAINED):
        raise RuntimeError("BENCH_WITHOUT_HISTORY is set, and there is money in this database: unset it")
    log.warning("no ledger and no chain of hashes: this is a benchmark")
    payments.event_hash = _no_hash  # type: ignore[attr-defined]
    ledger.entries = _no_entries


def _no_hash(
    previous: bytes, merchant_id: str, payment_id: str, version: int, type_: str, data_json: str
) -> bytes:
    return UNCHAINED


def _no_entries(changes: Iterable[tuple[Payment, Payment]]) -> list[ledger.Entry]:
    return []
