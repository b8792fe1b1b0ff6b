"""The runner that settles: every night for the day that has ended, and whatever somebody asked for.

One loop per process; several processes share the work. Whichever is first makes a night's settlements, the others find
nothing left to make; those that are not COMPLETED are taken by one at a time.
"""

from __future__ import annotations

import asyncio
import logging
import time
from datetime import UTC, date, datetime, timedelta
from datetime import time as midnight

from prometheus_client import Gauge

from services.kit.db import Database
from services.payment import store
from services.payment.config import PaymentConfig
from services.payment.domain.settlement import SettlementState
from services.payment.service.settling import Clock, Settling

log = logging.getLogger(__name__)

TAKE_MAX = 8
"""Settlements that are carried on at once: most of their time is spent at the bank."""

OPEN = Gauge("paymesh_payment_settlements_open", "Settlements that are not completed.")
LAG_SECONDS = Gauge(
    "paymesh_payment_settlement_lag_seconds",
    "For how long the oldest day has been over whose captures and refunds are not all settled and paid out.",
)


class Settler:
    """Settles for ever."""

    def __init__(self, database: Database, settling: Settling, clock: Clock, config: PaymentConfig) -> None:
        self._database = database
        self._settling = settling
        self._clock = clock
        self._after = timedelta(seconds=config.settle_after_seconds)
        self._poll_seconds = config.settle_poll_ms / 1000
        self._night_seconds = config.settle_look_seconds
        self._woken = asyncio.Event()

    def wake(self) -> None:
        """There is work, or may be."""
        self._woken.set()

    async def run(self) -> None:
        """Settle for ever."""
        looked = -self._night_seconds
        while True:
            self._woken.clear()
            if time.monotonic() - looked >= self._night_seconds:
                looked = time.monotonic()
                await self.settle_ended_days()
            if not await self.carry_on():
                try:
                    async with asyncio.timeout(self._poll_seconds):
                        await self._woken.wait()
                except TimeoutError:
                    pass

    async def settle_ended_days(self) -> None:
        """Make the settlements of days that are over, once it is time for the last of them, and note how far behind we
        are."""
        await self._settling.sweep()
        last = (self._clock() - self._after).date() - timedelta(days=1)
        made = await self._settling.settle_missed(last)
        if made:
            log.info("%d settlements were made for days through %s", made, last)
        await self._measure()

    async def carry_on(self) -> int:
        """Take settlements that are due and go on with them. Returns how many came to their end or further."""
        taken = await self._settling.take_open(TAKE_MAX)
        if not taken:
            return 0
        results = await asyncio.gather(
            *(self._settling.carry_on(one) for one in taken), return_exceptions=True
        )
        further = 0
        for one, result in zip(taken, results, strict=True):
            if isinstance(result, BaseException):
                if not isinstance(result, Exception):
                    raise result
                log.error("settlement %s: %s", one.settlement.settlement_id, result, exc_info=result)
            else:
                further += result.version > one.settlement.version
                if result.state is SettlementState.COMPLETED:
                    log.info("settlement %s is completed", result.settlement_id)
        await self._measure()
        return further

    async def _measure(self) -> None:
        count, open_day = await store.find_oldest_open(self._database)
        days = [day for day in (open_day, await store.find_oldest_unsettled(self._database)) if day]
        OPEN.set(count)
        LAG_SECONDS.set(lag_seconds(min(days), self._clock()) if days else 0)


def lag_seconds(oldest: date, now: datetime) -> float:
    """How long that day has been over; 0 while it is not."""
    end = datetime.combine(oldest + timedelta(days=1), midnight(), UTC)
    return max(0.0, (now - end).total_seconds())
