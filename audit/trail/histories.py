"""Puts the rows of payments and the rows of their events together, payment by payment, in bounded memory.

Where they come from, a database or an archive, is nothing to it. It is on the path of every event there is, so it does
without a general merge: half a microsecond an event instead of five.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TypeAlias

from audit.merge import Key
from audit.report import AuditError
from audit.snapshot import Row
from audit.trail.payments import EPOCH_US, History, StoredEvent

Batches: TypeAlias = AsyncIterator[list[Row]]


class OutOfOrder(AuditError):
    """A row stands behind one that it comes before."""

    def __init__(self, merchant_id: str, payment_id: str) -> None:
        super().__init__(f"{payment_id} of {merchant_id} comes too late: not the order of bytes")
        self.merchant_id = merchant_id
        self.payment_id = payment_id


async def read_histories(payments: Batches, events: Batches) -> AsyncIterator[list[History]]:
    """All that is known of every payment of either side, by merchant and id. `payments` are rows that begin with these;
    `events` are rows of `payments.EVENTS`. Raises OutOfOrder when one is not in the order of bytes."""
    int_from = int.from_bytes
    rows = _Rows(payments)
    await rows.open()
    merchant_id = payment_id = ""
    told: list[StoredEvent] = []
    async for batch in events:
        found: list[History] = []
        for merchant, payment, version, type_, data_json, sent, hashed in batch:
            if payment != payment_id or merchant != merchant_id:
                if told:
                    found += await rows.until((merchant_id, payment_id), told)
                if (merchant, payment) < (merchant_id, payment_id):
                    raise OutOfOrder(merchant, payment)
                merchant_id, payment_id, told = merchant, payment, []
            recorded_us = int_from(sent, "big", signed=True) + EPOCH_US
            told.append(StoredEvent(version, type_, data_json, recorded_us, hashed))
        yield found
    yield [*(await rows.until((merchant_id, payment_id), told) if told else ()), *await rows.rest()]


class _Rows:
    """The payments' rows, with a view to the next one."""

    def __init__(self, batches: Batches) -> None:
        self._batches = batches
        self._batch: list[Row] = []
        self._place = 0
        self._head: Key | None = None

    async def open(self) -> None:
        """Go to the first row."""
        await self._fill()

    async def until(self, key: Key, events: list[StoredEvent]) -> list[History]:
        """The history of a payment that has events, behind those of payments before it, which have none."""
        found = []
        while self._head is not None and self._head < key:
            found.append(History(*self._head, await self._take(), []))
        row = await self._take() if self._head == key else None
        found.append(History(*key, row, events))
        return found

    async def rest(self) -> list[History]:
        """Those that are left, without events."""
        found = []
        while self._head is not None:
            found.append(History(*self._head, await self._take(), []))
        return found

    async def _take(self) -> Row:
        row = self._batch[self._place]
        self._place += 1
        if self._place < len(self._batch):
            following = self._batch[self._place]
            self._head = (following[0], following[1])
        else:
            await self._fill()
        if self._head is not None and self._head <= (row[0], row[1]):
            raise OutOfOrder(*self._head)
        return row

    async def _fill(self) -> None:
        self._batch = await anext(self._batches, [])
        self._place = 0
        self._head = (self._batch[0][0], self._batch[0][1]) if self._batch else None
