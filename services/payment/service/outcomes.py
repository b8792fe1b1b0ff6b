"""Writes down what the processor answered: the second transaction of every operation, for handlers and resolver alike.

Lock, decide, save, announce, remember. Whoever comes second finds the payment changed and changes nothing: neither the
payment nor the answer that stands under its key.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

from opentelemetry.trace import Span
from prometheus_client import Counter

from paymesh.payment.v1 import payment_pb2 as pb
from services.kit.db import Database, Transaction
from services.kit.deadline import Deadline
from services.kit.errors import PaymeshError
from services.kit.idempotency import Identity, as_replay, identity, lasting, remember
from services.kit.outbox import Announcement, announce
from services.kit.rpc.failures import as_error
from services.kit.rpc.stored import Pack
from services.kit.sets import Answer, Command, Failed, M, Outcome
from services.kit.telemetry import traceparent_of
from services.payment import domain, ledger, store
from services.payment.domain import Event, Payment, PaymentKey, State
from services.payment.service.messages import ANNOUNCED, announcement_of, message_of

T = TypeVar("T")

log = logging.getLogger(__name__)

RECORD_SECONDS = 5.0
"""Time to write an answer down, whoever still waits for it: the money has moved already. A set takes some 10 ms."""

OUTCOMES = Counter(
    "paymesh_payment_outcomes_total",
    "Answers of the processor and of the fraud check that were written down, by the event they caused.",
    ("event",),
)


@dataclass(frozen=True, slots=True)
class Operation(Generic[M]):
    """An operation with an intent and an outcome: how its callers are answered."""

    method: str
    """Of the RPC; scope of its idempotency keys."""
    waits_in: State
    """Where a payment stands between the intent and the outcome."""
    pack: Pack[M]
    respond: Callable[[pb.Payment], M]
    answer: Callable[[Payment, Event | None], Payment | PaymeshError]

    def outcome(self, payment: Payment, event: Event | None, message: pb.Payment | None) -> Outcome[M]:
        """What the caller is told about `payment`, after the event that the processor's answer caused, if any.
        `message` is the payment on the wire, where somebody has made it already."""
        answer = self.answer(payment, event)
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
INCREMENT = Operation(
    "IncrementAuthorization",
    State.INCREMENTING,
    Pack(pb.IncrementAuthorizationResponse),
    lambda payment: pb.IncrementAuthorizationResponse(payment=payment),
    domain.answer_to_movement,
)
CAPTURE = Operation(
    "CapturePayment",
    State.CAPTURING,
    Pack(pb.CapturePaymentResponse),
    lambda payment: pb.CapturePaymentResponse(payment=payment),
    domain.answer_to_movement,
)
REFUND = Operation(
    "RefundPayment",
    State.REFUNDING,
    Pack(pb.RefundPaymentResponse),
    lambda payment: pb.RefundPaymentResponse(payment=payment),
    domain.answer_to_movement,
)
OPERATIONS: Mapping[State, Operation[Any]] = {
    operation.waits_in: operation for operation in (AUTHORIZE, VOID, INCREMENT, CAPTURE, REFUND)
}
"""By the state in which a payment waits for them."""


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
        authorizing = operation is AUTHORIZE
        lock = store.lock_authorizations if authorizing else store.lock_payments
        payments = await lock(tx, [t.key for t in told])
        changes: list[tuple[Payment, Payment]] = []
        records: list[store.Record] = []
        announcements: list[Announcement] = []
        outcomes: list[Outcome[M]] = []
        for one in told:
            before = after = payments[one.key]
            event = one.decide(before)
            message = None
            if event is not None:
                after = payments[one.key] = domain.apply(before, event)
                changes.append((before, after))
                records.append(store.record_of(after, event))
                if event.type in ANNOUNCED:
                    message = message_of(after)
                    told_others = announcement_of(event, message)
                    announcements.append(Announcement(*after.key, told_others, traceparent_of(one.span)))
            waited = before.state is operation.waits_in and domain.same_intent(one.payment, before)
            outcomes.append(
                operation.outcome(after, event, message)
                if waited
                else Failed(domain.settled_elsewhere(after))
            )
        if changes:
            save = store.save_authorizations if authorizing else store.save_payments
            save(tx, [after for _, after in changes], records)
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


def still_open(
    commands: Sequence[Command[Any]], outcomes: Sequence[Outcome[Any] | None], begun: Mapping[Identity, T]
) -> dict[Identity, T]:
    """Of what was begun, that which this set has to end. A transaction that was tried again may have begun more than
    its last attempt claimed; only a command without an outcome is ours."""
    return {
        identity(c): begun[identity(c)]
        for c, outcome in zip(commands, outcomes, strict=True)
        if outcome is None
    }


async def conclude(
    database: Database,
    operation: Operation[Any],
    commands: Sequence[Command[Any]],
    outcomes: Sequence[Outcome[Any] | None],
    told: Sequence[Told],
) -> list[Outcome[Any]]:
    """Write down the answers and put them where the set still waits for an outcome."""
    recorded: Sequence[Outcome[Any]]
    try:
        recorded = await record(database, operation, told)
    except PaymeshError as error:
        # The intent stands and the processor was asked: whatever the database says, it is not "nothing happened".
        recorded = [Failed(domain.not_written_down(t.payment, error)) for t in told]
    ended = {t.asker: outcome for t, outcome in zip(told, recorded, strict=True)}
    seen: set[Identity] = set()
    results: list[Outcome[Any]] = []
    for command, outcome in zip(commands, outcomes, strict=True):
        if outcome is None:
            key = identity(command)
            outcome = (as_replay(ended[key]) or ended[key]) if key in seen else ended[key]
            seen.add(key)
        results.append(outcome)
    return results
