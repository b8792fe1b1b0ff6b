"""Settles: decides what belongs together, asks the processor for it, tells the payments, and pays the merchant.

Every step is durable before the next one begins, and each may be repeated by anybody at any time:

1. *Sweep.* Events of captures and refunds become items, once each.
2. *Decide.* One transaction puts items of a merchant and currency into a new settlement, for ever.
3. *Ask.* The processor settles them under a key made from the settlement. What it answers is written down under the
   settlement's lock, item by item the same, or not at all.
4. *Post.* Payments learn of it, some hundred a transaction. One that has another operation under way has to wait.
5. *Pay out.* The intent is in what 3 has written; the bank is asked under another key, and its answer written down.

No call to the outside is made inside a transaction. A lost answer leaves a settlement where it was; it is looked up by
its key, and sent again under it for as long as the bank does not know it: as for captures and refunds, money that was
asked to move is never given up on.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta

from services.kit.backoff import Backoff
from services.kit.clock import now_ms
from services.kit.db import Database, Transaction
from services.kit.deadline import Deadline
from services.kit.errors import PaymeshError
from services.kit.ids import new_id
from services.kit.outbox import Announcement, announce
from services.payment import domain, ledger, store
from services.payment.clients import SettlementBank
from services.payment.config import PaymentConfig
from services.payment.domain import Payment, Share, settlement
from services.payment.domain.settlement import ITEMS_MAX, Batch, PayoutState, Settlement, SettlementState
from services.payment.service.messages import announcement_of, message_of

log = logging.getLogger(__name__)

SWEEP_LOOK_BACK_SECONDS = 600.0
"""A sweep begins so far behind the end of the last one: should the database's clock have been set back meanwhile, what
was recorded in between is found all the same."""
SWEEP_SETTLE_SECONDS = 5.0
"""How old an event must be to be counted as swept: a transaction that began before is seen by then."""
POST_PAYMENTS = 200
"""Payments that learn of their settlement in one transaction: some 50 ms, in which nobody else can move them."""


class Settling:
    """Makes settlements, and carries them on."""

    def __init__(self, database: Database, bank: SettlementBank, config: PaymentConfig) -> None:
        self._database = database
        self._bank = bank
        self._round_seconds = config.settle_round_seconds
        self._backoff = Backoff(
            config.resolve_first_ms, 2, config.resolve_max_ms, config.resolve_attempts_max
        )

    async def sweep(self) -> None:
        """Make the items of everything that was captured or given back up to now."""
        horizon_us = await store.find_horizon(self._database, SWEEP_SETTLE_SECONDS)
        swept_us = await store.find_swept(self._database)
        place: store.Place = (max(0, swept_us - int(SWEEP_LOOK_BACK_SECONDS * 1e6)), "", "", 0)
        count = store.SWEEP_EVENTS
        while count == store.SWEEP_EVENTS:
            after = place

            async def page(tx: Transaction, after: store.Place = after) -> tuple[int, store.Place]:
                return await store.sweep_items(tx, after, horizon_us)

            count, place = await self._database.transact(page)

    async def settle_day(self, merchant_id: str, day: date) -> int:
        """Make the settlements of a day, of one merchant or (empty) all: of everything that was swept, recorded up to
        its end, and is in none. Returns how many there were to make."""
        made = 0
        end = datetime.combine(day + timedelta(days=1), time(), UTC)
        for merchant, currency in await store.list_unsettled(self._database, merchant_id, end):
            while await self._decide(merchant, currency, day, end):
                made += 1
        return made

    async def settle_missed(self, last: date) -> int:
        """Make the settlements of every day up to `last` that have none yet. Returns how many there were to make."""
        made = 0
        day = await store.find_oldest_unsettled(self._database)
        while day is not None and day <= last:
            made += await self.settle_day("", day)
            oldest = await store.find_oldest_unsettled(self._database)
            day = oldest if oldest is None or oldest > day else day + timedelta(days=1)
        return made

    async def _decide(self, merchant_id: str, currency: str, day: date, end: datetime) -> bool:
        """Make one settlement; False when there is nothing to settle."""

        async def work(tx: Transaction) -> Settlement | None:
            carried_minor = await store.lock_balance(tx, merchant_id, currency)
            settlement_id = new_id("stl")
            sums = await store.gather_items(tx, merchant_id, currency, end, settlement_id, ITEMS_MAX)
            if not sums.items:
                return None
            number = await store.count_settlements(tx, merchant_id, currency, day) + 1
            made, carried_minor = settlement.decide(
                merchant_id, settlement_id, day, number, currency, sums, carried_minor
            )
            store.insert_settlement(tx, made)
            store.save_balance(tx, merchant_id, currency, carried_minor)
            return made

        made = await self._database.transact(work)
        if made is not None:
            log.info("settlement %s: %d items of %s for %s", made.settlement_id, made.items, merchant_id, day)
        return made is not None

    async def take_open(self, limit: int) -> list[store.Taken]:
        """Settlements that are due to be carried on. Nobody else gets them for a while."""

        async def take(tx: Transaction) -> list[store.Taken]:
            return await store.take_open(tx, limit, self._round_seconds)

        return await self._database.transact(take)

    async def carry_on(self, taken: store.Taken) -> Settlement:
        """Go as far with a settlement as one can at the moment; returns it as it stands then."""
        deadline = Deadline.after(self._round_seconds)
        current = taken.settlement
        wait_seconds = self._backoff.delay_ms(taken.attempts) / 1000
        if current.state is SettlementState.SETTLING:
            current = await self._ask(current, taken.attempts, wait_seconds, deadline)
        if current.state is SettlementState.POSTING:
            await self._post(current, deadline)
            if current.payout_state is PayoutState.PAYING:
                current = await self._pay_out(current, wait_seconds, deadline)
            current = await self._complete(current, wait_seconds)
        return current

    async def _ask(
        self, asked: Settlement, attempts: int, wait_seconds: float, deadline: Deadline
    ) -> Settlement:
        items = await store.list_items(self._database, asked.key)
        found = await self._bank.look_up(asked, deadline) if attempts > 1 else None
        told = found or await self._bank.settle(asked, items, deadline)

        async def work(tx: Transaction) -> Settlement:
            before = await store.lock_settlement(tx, asked.key)
            after = settlement.after_batch(before, told, items)
            if after.version > before.version and isinstance(told, Batch):
                fees = {reference: fee for reference, (_, _, fee) in told.operations.items()}
                store.save_processor_fees(tx, after.key, fees)
            return self._saved(tx, before, after, wait_seconds)

        return await self._database.transact(work)

    async def _pay_out(self, asked: Settlement, wait_seconds: float, deadline: Deadline) -> Settlement:
        answer = await self._bank.pay_out(asked, deadline)

        async def work(tx: Transaction) -> Settlement:
            before = await store.lock_settlement(tx, asked.key)
            after = settlement.after_payout(before, answer)
            if back_minor := settlement.carried_back(before, after):
                carried_minor = await store.lock_balance(tx, after.merchant_id, after.currency)
                store.save_balance(tx, after.merchant_id, after.currency, carried_minor + back_minor)
            return self._saved(tx, before, after, wait_seconds)

        return await self._database.transact(work)

    async def _complete(self, asked: Settlement, wait_seconds: float) -> Settlement:
        async def work(tx: Transaction) -> Settlement:
            before = await store.lock_settlement(tx, asked.key)
            waiting = await store.count_unposted(tx, before.key)
            return self._saved(tx, before, settlement.completed(before, waiting, now_ms()), wait_seconds)

        return await self._database.transact(work)

    def _saved(
        self, tx: Transaction, before: Settlement, after: Settlement, wait_seconds: float
    ) -> Settlement:
        """Write a locked settlement and what its step books. It is looked at again after a while, should it not have
        come to its end."""
        if after.waits_for and after.waits_for != before.waits_for:
            log.warning("settlement %s waits: %s", after.settlement_id, after.waits_for)
        if after.version > before.version:
            store.insert_entries(tx, ledger.settlement_journal(before, after))
        # One that came further is still in our hands.
        further = after.version > before.version
        store.save_settlement(tx, after, self._round_seconds if further else wait_seconds)
        return after

    async def _post(self, posting: Settlement, deadline: Deadline) -> None:
        """Tell the payments, a transaction for POST_PAYMENTS of them."""
        after_id: str | None = ""
        while after_id is not None and not deadline.expired():
            start = after_id

            async def page(tx: Transaction, start: str = start) -> str | None:
                return await self._post_page(tx, posting, start)

            after_id = await self._database.transact(page)

    async def _post_page(self, tx: Transaction, posting: Settlement, after_id: str) -> str | None:
        """Tell payments behind `after_id`; returns the last of them, or None when there are no more. The settlement's
        lock keeps others from telling them, too."""
        locked = await store.lock_settlement(tx, posting.key)
        portions = await store.list_unposted(tx, posting.key, after_id, POST_PAYMENTS)
        if not portions:
            return None
        payments = await store.lock_payments(tx, [(posting.merchant_id, one.payment_id) for one in portions])
        changes: list[tuple[Payment, Payment]] = []
        records: list[store.Record] = []
        announcements: list[Announcement] = []
        for one in portions:
            before = payments[(posting.merchant_id, one.payment_id)]
            share = Share(
                locked.settlement_id,
                locked.processor_reference,
                one.captured_minor,
                one.refunded_minor,
                locked.currency,
            )
            decision = domain.settle(before, share)
            if isinstance(decision, PaymeshError):
                # It has another operation under way, or an earlier settlement has to be told first.
                log.debug("payment %s is told of its settlement later: %s", one.payment_id, decision.reason)
                continue
            after = domain.apply(before, decision)
            changes.append((before, after))
            records.append(store.record_of(after, decision))
            announcements.append(Announcement(*after.key, announcement_of(decision, message_of(after))))
        if changes:
            told = [after for _, after in changes]
            store.save_payments(tx, told, records)
            store.insert_events(tx, records)
            store.insert_entries(tx, ledger.entries(changes))
            store.save_posted(tx, posting.key, [(one.payment_id, one.version) for one in told])
            announce(tx, announcements)
        return portions[-1].payment_id if len(portions) == POST_PAYMENTS else None


Clock = Callable[[], datetime]
"""The time of day by which days end."""


def clock_of(config: PaymentConfig) -> Clock:
    """The clock of the configuration: the real one, or one that goes ahead of it."""
    ahead = timedelta(seconds=config.settle_clock_ahead_seconds)
    return lambda: datetime.now(UTC) + ahead
