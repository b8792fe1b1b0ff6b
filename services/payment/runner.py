"""The resolver: finishes what a crash, a lost answer or a slow bank has left open.

It takes payments that wait for the processor and are due, asks the processor by the payment's key, and writes down the
answer. An authorization that the processor has never heard of is sent again under the same key; one that cannot be made
known within the bounded number of attempts is cancelled by key, so that nothing can be held behind our back. A void is
simply repeated: the processor recognizes its key. The call happens outside of any transaction; what it tells is written
down under the payment's lock, and only if the payment still waits for it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from functools import partial

from services.kit.backoff import Backoff
from services.kit.db import Connection, Database
from services.kit.deadline import Deadline
from services.kit.idempotency import Identity
from services.payment import domain, store
from services.payment.clients import Asked, Processor
from services.payment.config import PaymentConfig
from services.payment.domain import Absent, Event, EventType, Payment, PaymentKey, State
from services.payment.outcomes import AUTHORIZE, VOID, Told, record
from services.payment.service import PaymentService

log = logging.getLogger(__name__)

TAKE_MAX = 200
ROUND_SECONDS = 10.0
"""Time for one round; also for how long taken payments are left alone by other resolvers."""


class Resolver:
    """One loop per process; several processes share the work by taking disjoint payments."""

    def __init__(
        self, database: Database, service: PaymentService, processor: Processor, config: PaymentConfig
    ) -> None:
        self._database = database
        self._service = service
        self._processor = processor
        self._poll_seconds = config.resolve_poll_ms / 1000
        self._backoff = Backoff(config.resolve_first_ms, 2, config.resolve_max_ms, config.resolve_attempts_max)

    async def run(self) -> None:
        """Resolve for ever."""
        while True:
            if not await self.resolve_due():
                await asyncio.sleep(self._poll_seconds)

    async def resolve_due(self) -> int:
        """One round: take what is due and try to finish it. Returns how many were taken."""

        async def take(tx: Connection) -> tuple[list[tuple[Payment, int]], dict[PaymentKey, list[Event]]]:
            taken = await store.take_unresolved(tx, TAKE_MAX, ROUND_SECONDS)
            events: dict[PaymentKey, list[Event]] = {}
            if taken:
                for one in await store.list_events(tx, [payment.key for payment, _ in taken]):
                    events.setdefault((one.merchant_id, one.payment_id), []).append(one.event)
            return taken, events

        taken, events = await self._database.transact(take)
        if not taken:
            return 0
        log.info("resolving %d payments", len(taken))
        deadline = Deadline.after(ROUND_SECONDS)
        await asyncio.gather(
            self._authorizations([t for t in taken if t[0].state is State.AUTHORIZING], events, deadline),
            self._voids([t for t in taken if t[0].state is State.VOIDING], events, deadline),
        )
        return len(taken)

    async def _authorizations(
        self,
        taken: Sequence[tuple[Payment, int]],
        events: dict[PaymentKey, list[Event]],
        deadline: Deadline,
    ) -> None:
        if not taken:
            return
        answers = await self._processor.look_up([payment for payment, _ in taken], deadline)
        told: list[Told] = []
        resend: list[tuple[Asked, Identity, float]] = []
        for (payment, attempts), answer in zip(taken, answers, strict=True):
            initiated = events[payment.key][0].data
            asker = (payment.merchant_id, initiated["caller"], initiated["idempotency_key"])
            again = self._backoff.delay_ms(attempts) / 1000
            if not isinstance(answer, Absent | domain.Lost):
                decide = partial(domain.after_authorization, answer=answer, score_milli=payment.fraud_score_milli)
            elif self._backoff.exhausted(attempts):
                cancelled = await self._processor.cancel(payment, deadline)
                log.warning("cancelled %s at the processor after %d attempts", payment.payment_id, attempts)
                decide = partial(domain.after_authorization, answer=cancelled, score_milli=payment.fraud_score_milli)
            elif isinstance(answer, Absent):
                wish = domain.wish_of(payment.merchant_id, initiated)
                resend.append((Asked(payment, wish, None), asker, again))
                continue
            else:
                decide = partial(domain.after_authorization, answer=answer, score_milli=payment.fraud_score_milli)
            told.append(Told(payment.key, decide, asker, None, again))
        resent = await self._service.ask_for_authorizations([r[0] for r in resend], [r[1] for r in resend], deadline)
        told += [_postponed(one, again) for one, (_, _, again) in zip(resent, resend, strict=True)]
        await record(self._database, AUTHORIZE, told, deadline)

    async def _voids(
        self,
        taken: Sequence[tuple[Payment, int]],
        events: dict[PaymentKey, list[Event]],
        deadline: Deadline,
    ) -> None:
        if not taken:
            return
        answers = await self._processor.void([(payment, None) for payment, _ in taken], deadline)
        told = []
        for (payment, attempts), answer in zip(taken, answers, strict=True):
            requested = [e.data for e in events[payment.key] if e.type is EventType.VOID_REQUESTED]
            asker = (
                (payment.merchant_id, requested[-1]["caller"], requested[-1]["idempotency_key"]) if requested else None
            )
            again = self._backoff.delay_ms(attempts) / 1000
            told.append(Told(payment.key, partial(domain.after_void, answer=answer), asker, None, again))
        await record(self._database, VOID, told, deadline)


def _postponed(told: Told, seconds: float) -> Told:
    return Told(told.key, told.decide, told.asker, told.span, seconds)
