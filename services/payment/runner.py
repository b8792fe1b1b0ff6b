"""The resolver: finishes what a crash, a lost answer or a slow bank has left open.

It takes payments that wait for the processor and are due, asks the processor by the payment's key, and writes down the
answer. An authorization that the processor has never heard of is sent again under the same key; one that cannot be made
known within the bounded number of attempts is cancelled by key, so that nothing can be held behind our back. A void is
simply repeated: the processor recognizes its key. An increment, a capture or a refund is looked up first, and sent
again under its key for as long as the processor does not know it: money that was asked to move is never given up on,
and a second movement never begins before the first is known. The call happens outside of any transaction; what it
tells is written down under the payment's lock, and only if the payment still waits for it.

The expiry runner begins the voids of authorizations that have come to their end; the resolver carries them out.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from prometheus_client import Gauge

from services.kit.backoff import Backoff
from services.kit.clock import now_ms
from services.kit.db import Database, Transaction
from services.kit.deadline import Deadline
from services.kit.idempotency import Identity
from services.payment import domain, store
from services.payment.clients import Asked, Processor
from services.payment.config import PaymentConfig
from services.payment.domain import (
    Absent,
    Authorization,
    Event,
    Lost,
    Movement,
    Payment,
    PaymentKey,
    State,
)
from services.payment.service import PaymentService
from services.payment.service.outcomes import AUTHORIZE, OPERATIONS, VOID, Told, record

log = logging.getLogger(__name__)

TAKE_MAX = 200
QUIET_POLLS = 10
"""While nothing is due, only every so-manieth time is looked: for what becomes due earlier than all there was."""
ROUND_SECONDS = 10.0
"""Time for one round; also for how long taken payments are left alone by other resolvers."""
WATCH_SECONDS = 5.0
"""How old the numbers about waiting payments may be; alerts look at minutes."""

WAITING = Gauge("paymesh_payment_waiting", "Payments that wait for the processor.")
WAITING_SECONDS = Gauge(
    "paymesh_payment_waiting_seconds_max", "How long the payment has waited that has waited longest."
)


@dataclass(frozen=True, slots=True)
class _Open:
    """A payment that was taken."""

    payment: Payment
    attempts: int
    """How often it has been taken, this time included."""
    again_seconds: float
    """When to try again, should this attempt not end it."""
    events: Sequence[Event]

    @property
    def asked(self) -> Asked:
        """What others were asked, and are to be asked again."""
        return Asked(self.payment, domain.wish_of(self.payment.merchant_id, self.events[0].data), None)

    @property
    def asker(self) -> Identity | None:
        """The key whose caller waits: the event that began the operation tells. None when nobody's does, as for the
        void of a hold that was found late, or of one that has come to its end."""
        data = self.events[domain.intent_number(self.payment) - 1].data
        if "idempotency_key" not in data:
            return None
        return (self.payment.merchant_id, data["caller"], data["idempotency_key"])


class Resolver:
    """One loop per process; several processes share the work by taking disjoint payments."""

    def __init__(
        self, database: Database, service: PaymentService, processor: Processor, config: PaymentConfig
    ) -> None:
        self._database = database
        self._service = service
        self._processor = processor
        self._poll_seconds = config.resolve_poll_ms / 1000
        self._backoff = Backoff(
            config.resolve_first_ms, 2, config.resolve_max_ms, config.resolve_attempts_max
        )

    async def run(self) -> None:
        """Resolve for ever."""
        while True:
            due_seconds = await store.find_next_due_seconds(self._database)
            if due_seconds > 0 or not await self.resolve_due():
                quiet = min(due_seconds, self._poll_seconds * QUIET_POLLS)
                await asyncio.sleep(max(quiet, self._poll_seconds))

    async def resolve_due(self) -> int:
        """One round: take what is due and try to finish it. Returns how many were taken."""
        taken = await self._database.transact(self._take)
        if not taken:
            return 0
        log.info("resolving %d payments", len(taken))
        deadline = Deadline.after(ROUND_SECONDS)
        await asyncio.gather(
            self._authorizations([t for t in taken if t.payment.state is State.AUTHORIZING], deadline),
            self._voids([t for t in taken if t.payment.state is State.VOIDING], deadline),
            *(
                self._movements(state, [t for t in taken if t.payment.state is state], deadline)
                for state in (State.INCREMENTING, State.CAPTURING, State.REFUNDING)
            ),
        )
        return len(taken)

    async def _take(self, tx: Transaction) -> list[_Open]:
        taken = await store.take_unresolved(tx, TAKE_MAX, ROUND_SECONDS)
        events: dict[PaymentKey, list[Event]] = {payment.key: [] for payment, _ in taken}
        for one in await store.list_events(tx, list(events)) if taken else []:
            events[(one.merchant_id, one.payment_id)].append(one.event)
        return [
            _Open(payment, attempts, self._backoff.delay_ms(attempts) / 1000, events[payment.key])
            for payment, attempts in taken
        ]

    async def _authorizations(self, taken: Sequence[_Open], deadline: Deadline) -> None:
        """What is known is written down at once; it does not wait for what has to be asked for again."""
        if not taken:
            return
        answers = await self._processor.look_up([t.asked for t in taken], deadline)
        known: list[tuple[_Open, Authorization]] = []
        hopeless: list[_Open] = []
        absent: list[_Open] = []
        for one, answer in zip(taken, answers, strict=True):
            if isinstance(answer, Absent | Lost) and self._backoff.exhausted(one.attempts):
                hopeless.append(one)
            elif isinstance(answer, Absent):
                absent.append(one)
            else:
                known.append((one, answer))
        await asyncio.gather(
            self._finish(known, deadline),
            self._cancel(hopeless, deadline),
            self._send_again(absent, deadline),
        )

    async def _finish(self, known: Sequence[tuple[_Open, Authorization]], deadline: Deadline) -> None:
        found = [one for one, answer in known if not isinstance(answer, Lost)]
        scores = await self._service.scores([one.asked for one in found], deadline)
        score_of = {one.payment.key: score for one, score in zip(found, scores, strict=True)}
        told = [
            self._told_of_authorization(one, answer, score_of.get(one.payment.key, 0))
            for one, answer in known
        ]
        await record(self._database, AUTHORIZE, told)

    async def _cancel(self, hopeless: Sequence[_Open], deadline: Deadline) -> None:
        if not hopeless:
            return
        answers = await self._processor.cancel([one.asked for one in hopeless], deadline)
        for one, answer in zip(hopeless, answers, strict=True):
            if not isinstance(answer, Lost):
                log.warning(
                    "cancelled %s at the processor after %d attempts", one.payment.payment_id, one.attempts
                )
        told = [
            self._told_of_authorization(one, answer, 0) for one, answer in zip(hopeless, answers, strict=True)
        ]
        await record(self._database, AUTHORIZE, told)

    async def _send_again(self, absent: Sequence[_Open], deadline: Deadline) -> None:
        asked = [one.asked for one in absent]
        askers = [one.asker for one in absent]
        waits = [one.again_seconds for one in absent]
        told = await self._service.ask_for_authorizations(asked, askers, waits, deadline)
        await record(self._database, AUTHORIZE, told)

    async def _voids(self, taken: Sequence[_Open], deadline: Deadline) -> None:
        if not taken:
            return
        answers = await self._processor.void([(t.payment, None) for t in taken], deadline)
        told = [
            _told(one, partial(domain.after_void, asked=one.payment, answer=answer))
            for one, answer in zip(taken, answers, strict=True)
        ]
        await record(self._database, VOID, told)

    async def _movements(self, state: State, taken: Sequence[_Open], deadline: Deadline) -> None:
        """Of increments, captures or refunds: what is known is written down at once."""
        if not taken:
            return
        answers = await self._processor.look_up_movements([one.payment for one in taken], deadline)
        known: list[tuple[_Open, Movement]] = []
        absent: list[_Open] = []
        for one, answer in zip(taken, answers, strict=True):
            if isinstance(answer, Absent):
                absent.append(one)
            else:
                known.append((one, answer))
        await asyncio.gather(self._moved(state, known), self._move_again(state, absent, deadline))

    async def _move_again(self, state: State, absent: Sequence[_Open], deadline: Deadline) -> None:
        if absent:
            asked = [(one.payment, None) for one in absent]
            answers = await self._processor.move(state, asked, deadline)
            await self._moved(state, list(zip(absent, answers, strict=True)))

    async def _moved(self, state: State, known: Sequence[tuple[_Open, Movement]]) -> None:
        told = [
            _told(one, partial(domain.after_movement, asked=one.payment, answer=answer))
            for one, answer in known
        ]
        await record(self._database, OPERATIONS[state], told)

    def _told_of_authorization(self, one: _Open, answer: Authorization, score_milli: int) -> Told:
        return _told(one, self._service.authorized(answer, score_milli))


def _told(one: _Open, decide: Callable[[Payment], Event | None]) -> Told:
    return Told(one.payment, decide, one.asker, None, one.again_seconds)


class Expiry:
    """One loop per process; several processes share the work by taking disjoint payments."""

    def __init__(self, database: Database, config: PaymentConfig) -> None:
        self._database = database
        self._poll_seconds = config.expire_poll_ms / 1000

    async def run(self) -> None:
        """Begin to let go of what has come to its end, for ever."""
        while True:
            if not await self._database.transact(self._expire_due):
                await asyncio.sleep(self._poll_seconds)

    async def _expire_due(self, tx: Transaction) -> int:
        """Record the intents, due at once. Returns how many there were."""
        now = now_ms()
        expiring: list[Payment] = []
        records: list[store.Record] = []
        for payment in await store.lock_expired(tx, TAKE_MAX):
            # The database's clock found it; should ours be behind, the next round finds it again.
            event = domain.request_expiry(payment, now)
            if event is not None:
                expiring.append(domain.apply(payment, event))
                records.append(store.record_of(expiring[-1], event))
        if expiring:
            log.info("%d authorizations have come to their end", len(expiring))
            store.save_payments(tx, expiring, records)
            store.insert_events(tx, records)
        return len(expiring)


async def watch_waiting(database: Database) -> None:
    """Keep the numbers about waiting payments up to date, for ever."""
    while True:
        count, seconds = await store.count_waiting(database)
        WAITING.set(count)
        WAITING_SECONDS.set(seconds)
        await asyncio.sleep(WATCH_SECONDS)
