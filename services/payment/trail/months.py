"""Sees to it that the months to come have a place in the tables of history.

A month whose part is missing is no accident for money: its rows go to where everything goes that has no part. They only
cannot be taken away as a month later.
"""

from __future__ import annotations

import asyncio
import logging

from prometheus_client import Gauge

from services.kit.db import Database
from services.kit.errors import PaymeshError
from services.payment import store

log = logging.getLogger(__name__)

MONTHS_AHEAD = 3
"""Months that are made beforehand: a quarter of a year to find out why it does not work any more."""
MONTHS_PAUSE_SECONDS = 3_600.0
"""How often they are looked at; all but once a month there is nothing to do."""

AHEAD = Gauge(
    "paymesh_payment_history_months_ahead", "Months to come that have a part in the tables of history."
)
ELSEWHERE = Gauge("paymesh_payment_history_elsewhere", "Events that lie outside of their month.")


async def keep_months(database: Database) -> None:
    """Make what is missing, for ever. One loop per process; who comes second finds nothing to do."""
    while True:
        try:
            ahead = await store.create_months(database, MONTHS_AHEAD)
            AHEAD.set(ahead)
            ELSEWHERE.set(await store.count_elsewhere(database))
            if ahead < MONTHS_AHEAD:
                log.warning("there are parts for %d months to come, not %d", ahead, MONTHS_AHEAD)
        except PaymeshError as error:
            log.error("no months were made: %s", error)  # noqa: TRY400 - it says what is wrong
        await asyncio.sleep(MONTHS_PAUSE_SECONDS)
