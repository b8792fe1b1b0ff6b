"""Keeps a merchant's items as payment has them.

A day of settlements changes until all of them are COMPLETED, so what is copied is everything from the first day that
was not complete the last time, page by page. A page and the place behind it are one transaction: whoever is killed goes
on with the next page. An item that is there already is not touched, so that it does no harm to ask twice.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from functools import partial

from services.kit.db import Database, Transaction
from services.reconciler.clients import PaymentClient
from services.reconciler.domain.item import Item
from services.reconciler.store import items as store

ONE_DAY = timedelta(days=1)
BEGINNING = date(1970, 1, 1)


class ItemCopy:
    """Copies items, merchant by merchant."""

    def __init__(self, database: Database, payment: PaymentClient, reach_back_days: int) -> None:
        self._database = database
        self._payment = payment
        self._reach_back = timedelta(days=reach_back_days)

    async def copy(self, merchant_id: str, told: Callable[[int], None] = lambda _: None) -> int:
        """Copy what is new; returns how many items that were. `told` hears how many were looked at so far."""
        place = await store.find_place(self._database, merchant_id)
        copied = 0
        if place.page_from is not None:
            # Whoever began this did not end it. What was added meanwhile may stand before its cursor, so this copy
            # proves nothing complete; the next one does.
            copied += await self._pages(merchant_id, place.page_from, place.page_cursor, told)
        reach = self._reach_back if place.complete_until > BEGINNING else timedelta(0)
        # Asked before the items: what is complete then cannot have changed when they are read.
        open_day = await self._payment.earliest_open(merchant_id, place.complete_until + ONE_DAY)
        today = datetime.now(UTC).date()
        copied += await self._pages(merchant_id, place.complete_until + ONE_DAY - reach, "", told)
        complete = max(min(open_day or today, today) - ONE_DAY, BEGINNING)
        await self._database.transact(partial(_complete, merchant_id=merchant_id, until=complete))
        return copied

    async def _pages(self, merchant_id: str, from_day: date, cursor: str, told: Callable[[int], None]) -> int:
        copied, looked_at, more = 0, 0, True
        while more:
            page = await self._payment.list_items(merchant_id, from_day, cursor)
            cursor, more = page.cursor, page.more
            save = partial(_save, merchant_id=merchant_id, page=page.items, from_day=from_day, cursor=cursor)
            copied += await self._database.transact(save)
            looked_at += len(page.items)
            told(looked_at)
        return copied


async def _save(tx: Transaction, *, merchant_id: str, page: list[Item], from_day: date, cursor: str) -> int:
    return await store.insert_page(tx, merchant_id, page, from_day, cursor)


async def _complete(tx: Transaction, *, merchant_id: str, until: date) -> None:
    store.save_complete(tx, merchant_id, until)
