"""Writes down what the processor answered: the second transaction of every operation, for handlers and resolver alike.

Lock, decide, save, announce, remember. Whoever comes second finds the payment changed and changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic

from opentelemetry.trace import Span
from paymesh.money.v1 import money_pb2
from paymesh.payment.v1 import events_pb2
from paymesh.payment.v1 import payment_pb2 as pb

from services.kit.db import Connection, Database
from services.kit.deadline import Deadline
from services.kit.errors import PaymeshError
from services.kit.idempotency import Identity, lasting, remember
from services.kit.outbox import Announcement, announce
from services.kit.rpc.stored import Pack
from services.kit.sets import Answer, Failed, M, Outcome
from services.kit.telemetry import traceparent_of
from services.payment import domain, store
from services.payment.domain import Event, Payment, PaymentKey, State, UnknownOutcome

_STATES = {
    State.AUTHORIZING: pb.PAYMENT_STATE_AUTHORIZING,
    State.AUTHORIZED: pb.PAYMENT_STATE_AUTHORIZED,
    State.DECLINED: pb.PAYMENT_STATE_DECLINED,
    State.REJECTED: pb.PAYMENT_STATE_REJECTED,
    State.FAILED: pb.PAYMENT_STATE_FAILED,
    State.VOIDING: pb.PAYMENT_STATE_VOIDING,
    State.VOIDED: pb.PAYMENT_STATE_VOIDED,
}
_UNKNOWN = {
    UnknownOutcome.NONE: pb.UNKNOWN_OUTCOME_UNSPECIFIED,
    UnknownOutcome.AUTHORIZATION: pb.UNKNOWN_OUTCOME_AUTHORIZATION,
    UnknownOutcome.VOID: pb.UNKNOWN_OUTCOME_VOID,
}
_ANNOUNCED: dict[State, Any] = {
    State.AUTHORIZED: events_pb2.PaymentAuthorized,
    State.DECLINED: events_pb2.PaymentDeclined,
    State.REJECTED: events_pb2.PaymentDeclined,
    State.FAILED: events_pb2.PaymentDeclined,
    State.VOIDED: events_pb2.PaymentVoided,
}


@dataclass(frozen=True, slots=True)
class Operation(Generic[M]):
    """An operation with an intent and an outcome: how its callers are answered."""

    method: str
    """Of the RPC; scope of its idempotency keys."""
    pack: Pack[M]
    respond: Callable[[pb.Payment], M]
    answer: Callable[[Payment], Payment | PaymeshError]

    def outcome(self, payment: Payment) -> Outcome[M]:
        """What the caller is told about `payment`."""
        answer = self.answer(payment)
        return Failed(answer) if isinstance(answer, PaymeshError) else Answer(self.respond(render(answer)))


AUTHORIZE = Operation(
    "AuthorizePayment",
    Pack(pb.AuthorizePaymentResponse),
    lambda payment: pb.AuthorizePaymentResponse(payment=payment),
    domain.answer_to_authorize,
)
VOID = Operation(
    "VoidPayment",
    Pack(pb.VoidPaymentResponse),
    lambda payment: pb.VoidPaymentResponse(payment=payment),
    domain.answer_to_void,
)


@dataclass(frozen=True, slots=True)
class Told:
    """What is to be written down about one payment."""

    key: PaymentKey
    decide: Callable[[Payment], Event | None]
    """The event that the answer causes, given the payment as it is under the lock."""
    asker: Identity | None
    """The idempotency key that waits for the outcome; None when nobody's does."""
    span: Span | None
    look_again_seconds: float
    """When the resolver asks again, should the outcome still be unknown."""


async def record(
    database: Database, operation: Operation[M], told: Sequence[Told], deadline: Deadline
) -> list[Outcome[M]]:
    """Write down a set of answers. Returns what each asker is told, in order."""

    async def work(tx: Connection) -> list[Outcome[M]]:
        payments = await store.lock_payments(tx, [t.key for t in told])
        changes: list[tuple[Payment, Payment]] = []
        records: list[store.Record] = []
        announcements: list[Announcement] = []
        for one in told:
            before = payments[one.key]
            event = one.decide(before)
            if event is None:
                continue
            after = payments[one.key] = domain.apply(before, event)
            changes.append((before, after))
            records.append(store.Record(*after.key, after.version, event))
            if (kind := _ANNOUNCED.get(after.state)) is not None:
                message = kind(payment=render(after))
                announcements.append(
                    Announcement(after.merchant_id, after.payment_id, message, traceparent_of(one.span))
                )
        if records:
            await store.save_payments(tx, [after for _, after in changes])
            await store.insert_events(tx, records)
            await store.insert_entries(tx, domain.entries(changes))
        open_ = [(t.key, t.look_again_seconds) for t in told if payments[t.key].unknown_outcome]
        if open_:
            await store.postpone(tx, open_)
        await announce(tx, announcements)
        outcomes = [operation.outcome(payments[t.key]) for t in told]
        ended = [(t.asker, o) for t, o in zip(told, outcomes, strict=True) if t.asker is not None and lasting(o)]
        await remember(tx, operation.method, ended, operation.pack)
        return outcomes

    return await database.transact(work, deadline)


def render(payment: Payment) -> pb.Payment:
    """The payment on the wire."""
    held = payment.held
    message = pb.Payment(
        merchant_id=payment.merchant_id,
        payment_id=payment.payment_id,
        order_id=payment.order_id,
        amount=money_pb2.Money(amount_minor=payment.amount.amount_minor, currency=payment.amount.currency),
        held=money_pb2.Money(amount_minor=held.amount_minor, currency=held.currency),
        state=_STATES[payment.state],
        unknown_outcome=_UNKNOWN[payment.unknown_outcome],
        auth_code=payment.auth_code,
        processor_reference=payment.processor_reference,
        decline_reason=payment.decline_reason,
        fraud_score_milli=payment.fraud_score_milli,
        version=payment.version,
    )
    if payment.created_at_ms:
        message.created_at.FromMilliseconds(payment.created_at_ms)
    return message
