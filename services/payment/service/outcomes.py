"""Writes down what the processor answered: the second transaction of every operation, for handlers and resolver alike.

Lock, decide, save, announce, remember. Whoever comes second finds the payment changed and changes nothing: neither the
payment nor the answer that stands under its key.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple

from opentelemetry.trace import Span
from prometheus_client import Counter

from paymesh.payment.v1 import events_pb2
from paymesh.payment.v1 import payment_pb2 as pb
from services.kit.db import Database, Transaction
from services.kit.deadline import Deadline
from services.kit.errors import PaymeshError
from services.kit.idempotency import Identity, lasting, remember
from services.kit.outbox import Announcement, announce
from services.kit.rpc.failures import as_error
from services.kit.rpc.stored import Pack
from services.kit.sets import Answer, Failed, M, Outcome
from services.kit.telemetry import traceparent_of
from services.payment import domain, ledger, store
from services.payment.domain import Event, EventType, Payment, PaymentKey, State
from services.payment.service.messages import message_of

log = logging.getLogger(__name__)

RECORD_SECONDS = 5.0
"""Time to write an answer down, whoever still waits for it: the money has moved already. A set takes some 10 ms."""

OUTCOMES = Counter(
    "paymesh_payment_outcomes_total",
    "Answers of the processor and of the fraud check that were written down, by the event they caused.",
    ("event",),
)

# By event and not by state: a refused void leads back to AUTHORIZED, which nobody needs to hear twice.
_ANNOUNCED: dict[EventType, Any] = {
    EventType.AUTHORIZED: events_pb2.PaymentAuthorized,
    EventType.DECLINED: events_pb2.PaymentDeclined,
    EventType.REJECTED: events_pb2.PaymentDeclined,
    EventType.FAILED: events_pb2.PaymentDeclined,
    EventType.VOIDED: events_pb2.PaymentVoided,
}


@dataclass(frozen=True, slots=True)
class Operation(Generic[M]):
    """An operation with an intent and an outcome: how its callers are answered."""

    method: str
    """Of the RPC; scope of its idempotency keys."""
    waits_in: State
    """Where a payment stands between the intent and the outcome."""
    pack: Pack[M]
    respond: Callable[[pb.Payment], M]
    answer: Callable[[Payment], Payment | PaymeshError]

    def outcome(self, payment: Payment, message: pb.Payment | None) -> Outcome[M]:
        """What the caller is told about `payment`; `message` is that payment, if it was built already."""
        answer = self.answer(payment)
        if isinstance(answer, PaymeshError):
            return Failed(answer)
        return Answer(self.respond(message or message_of(answer)))


async def _recall(
    tx: Transaction, keys: Sequence[PaymentKey]
) -> dict[PaymentKey, pb.AuthorizePaymentResponse]:
    """The answers of AuthorizePayment, whatever has become of the payments since: their events know."""
    records: dict[PaymentKey, list[store.Record]] = {}
    for one in await store.list_events(tx, keys):
        records.setdefault((one.merchant_id, one.payment_id), []).append(one)
    answers = {}
    for key, told in records.items():
        # Recorded in the transaction that made the row, so at the same moment.
        payment = domain.first_outcome(*key, told[0].recorded_at_ms, [one.event for one in told])
        if payment is not None:
            answers[key] = pb.AuthorizePaymentResponse(payment=message_of(payment))
    return answers


AUTHORIZE = Operation(
    "AuthorizePayment",
    State.AUTHORIZING,
    Pack(pb.AuthorizePaymentResponse, _recall),
    lambda payment: pb.AuthorizePaymentResponse(payment=payment),
    domain.answer_to_authorize,
)
VOID = Operation(
    "VoidPayment",
    State.VOIDING,
    Pack(pb.VoidPaymentResponse),
    lambda payment: pb.VoidPaymentResponse(payment=payment),
    domain.answer_to_void,
)


class Told(NamedTuple):
    """What is to be written down about one payment."""

    payment: Payment
    """As it was when the processor was asked."""
    decide: Callable[[Payment], Event | None]
    """The event that the answer causes, given the payment as it is under the lock."""
    asker: Identity | None
    """The idempotency key that waits for the outcome; None when nobody's does."""
    span: Span | None
    look_again_seconds: float
    """When the resolver asks again, should the outcome still be unknown."""

    @property
    def key(self) -> PaymentKey:
        """The payment's."""
        return self.payment.key


async def record(database: Database, operation: Operation[M], told: Sequence[Told]) -> list[Outcome[M]]:
    """Write down a set of answers, each about another payment. Returns what each asker is told, in order.

    Should the transaction break on a defect, the answers are written one by one, so that only the culprit is left to
    the resolver.
    """
    if not told:
        return []
    try:
        return await _record(database, operation, told)
    except PaymeshError:
        raise
    except Exception:
        log.exception("%s: a set of %d outcomes broke; trying them one by one", operation.method, len(told))
    outcomes: list[Outcome[M]] = []
    for one in told:
        try:
            outcomes += await _record(database, operation, [one])
        except Exception as error:
            log.exception("the outcome of %s could not be written down", one.payment.payment_id)
            outcomes.append(Failed(domain.not_written_down(one.payment, as_error(error))))
    return outcomes


async def _record(database: Database, operation: Operation[M], told: Sequence[Told]) -> list[Outcome[M]]:
    async def work(tx: Transaction) -> tuple[list[Outcome[M]], list[store.Record]]:
        payments = await store.lock_payments(tx, [t.key for t in told])
        changes: list[tuple[Payment, Payment]] = []
        records: list[store.Record] = []
        announcements: list[Announcement] = []
        outcomes: list[Outcome[M]] = []
        for one in told:
            before = after = payments[one.key]
            message: pb.Payment | None = None
            event = one.decide(before)
            if event is not None:
                after = payments[one.key] = domain.apply(before, event)
                changes.append((before, after))
                records.append(store.Record(*after.key, after.version, event))
                if (kind := _ANNOUNCED.get(event.type)) is not None:
                    message = message_of(after)
                    announced = Announcement(*after.key, kind(payment=message), traceparent_of(one.span))
                    announcements.append(announced)
            waited = before.state is operation.waits_in and domain.same_intent(one.payment, before)
            outcomes.append(
                operation.outcome(after, message) if waited else Failed(domain.settled_elsewhere(after))
            )
        if changes:
            store.save_payments(tx, [after for _, after in changes])
            store.insert_events(tx, records)
            store.insert_entries(tx, ledger.entries(changes))
        open_ = [(t.key, t.look_again_seconds) for t in told if payments[t.key].unknown_outcome]
        if open_:
            store.postpone(tx, open_)
        announce(tx, announcements)
        ended = [
            (t.asker, o) for t, o in zip(told, outcomes, strict=True) if t.asker is not None and lasting(o)
        ]
        remember(tx, operation.method, ended, operation.pack)
        return outcomes, records

    outcomes, records = await database.transact(work, Deadline.after(RECORD_SECONDS))
    for type_ in {one.event.type for one in records}:
        OUTCOMES.labels(type_.value).inc(sum(one.event.type is type_ for one in records))
    return outcomes
