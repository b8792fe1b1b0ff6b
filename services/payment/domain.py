"""What may happen to a payment. Pure: a payment and a wish in, events out.

A payment is the fold of its events. The table of transitions is `apply`; nothing else changes a payment.

    (none) ─initiated─► AUTHORIZING ─authorized─► AUTHORIZED ─void requested─► VOIDING ─voided─► VOIDED
                          │  │  │                     ▲                          │
                          │  │  └─declined─► DECLINED └────────void refused──────┘
                          │  └─rejected─► REJECTED
                          └─failed─► FAILED ─late approval found─► VOIDING

In AUTHORIZING and VOIDING the processor has been, or is about to be, asked; `outcome unknown` marks that its answer
was lost.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from services.kit.errors import InProgress, NotFound, PaymeshError, Refused
from services.kit.money import Money

PaymentKey = tuple[str, str]
"""(merchant, payment id)."""

RETRY_AFTER_MS = 250
"""A caller that meets an unknown outcome asks again after this: the resolver's first attempt is over by then."""


class State(StrEnum):
    """Where a payment stands."""

    AUTHORIZING = "AUTHORIZING"
    AUTHORIZED = "AUTHORIZED"
    DECLINED = "DECLINED"
    REJECTED = "REJECTED"
    FAILED = "FAILED"
    VOIDING = "VOIDING"
    VOIDED = "VOIDED"


class UnknownOutcome(StrEnum):
    """The operation whose outcome at the processor is not known."""

    NONE = ""
    AUTHORIZATION = "AUTHORIZATION"
    VOID = "VOID"


class EventType(StrEnum):
    """What can happen to a payment."""

    INITIATED = "PaymentInitiated"
    AUTHORIZED = "PaymentAuthorized"
    DECLINED = "PaymentDeclined"
    REJECTED = "PaymentRejected"
    FAILED = "PaymentFailed"
    OUTCOME_UNKNOWN = "PaymentOutcomeUnknown"
    VOID_REQUESTED = "PaymentVoidRequested"
    VOID_REFUSED = "PaymentVoidRefused"
    VOIDED = "PaymentVoided"
    LATE_APPROVAL = "PaymentLateApprovalFound"


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened. `data` holds JSON values only."""

    type: EventType
    data: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Authorize:
    """A wish to hold money on a card."""

    merchant_id: str
    order_id: str
    amount: Money
    card_token: str
    card_bin: str
    customer_id: str
    email: str
    ip_address: str
    billing_country: str


@dataclass(frozen=True, slots=True)
class ByKey:
    """Names a payment by the idempotency key of the call that makes it."""

    authorize_key: str


@dataclass(frozen=True, slots=True)
class Void:
    """A wish to let go of a hold."""

    merchant_id: str
    target: str | ByKey
    note: str


@dataclass(frozen=True, slots=True)
class Payment:
    """A payment as its events add up to it."""

    merchant_id: str
    payment_id: str
    order_id: str
    amount: Money
    state: State
    version: int
    created_at_ms: int
    unknown_outcome: UnknownOutcome = UnknownOutcome.NONE
    auth_code: str = ""
    processor_reference: str = ""
    decline_reason: str = ""
    fraud_score_milli: int = 0

    @property
    def key(self) -> PaymentKey:
        """What it is stored under."""
        return (self.merchant_id, self.payment_id)

    @property
    def held(self) -> Money:
        """What the card's bank holds for us, as far as is known."""
        holding = self.state in (State.AUTHORIZED, State.VOIDING)
        return self.amount if holding else Money(0, self.amount.currency)


@dataclass(frozen=True, slots=True)
class Verdict:
    """The fraud check's answer."""

    approved: bool
    score_milli: int
    reason: str


@dataclass(frozen=True, slots=True)
class Approved:
    """The card's bank holds the amount."""

    reference: str
    auth_code: str


@dataclass(frozen=True, slots=True)
class Declined:
    """The card's bank said no."""

    reference: str
    reason: str


@dataclass(frozen=True, slots=True)
class Gone:
    """Nothing is held: a hold was let go, or the authorization was cancelled before it arrived."""


@dataclass(frozen=True, slots=True)
class Absent:
    """The processor knows of no operation under the key."""


@dataclass(frozen=True, slots=True)
class Lost:
    """The processor's answer did not arrive, or is still to come; the operation may have been carried out."""

    reason: str


@dataclass(frozen=True, slots=True)
class RefusedByProcessor:
    """The processor will not do it, ever."""

    reason: str


Authorization = Approved | Declined | Gone | Lost | RefusedByProcessor
Letting = Gone | Lost | RefusedByProcessor


def initiate(wish: Authorize, payment_id: str, caller: str, key: str, now_ms: int) -> tuple[Payment, Event]:
    """The intent. The event holds all that is needed to finish the payment after a crash, and whom to answer."""
    event = Event(
        EventType.INITIATED,
        {
            "order_id": wish.order_id,
            "amount_minor": wish.amount.amount_minor,
            "currency": wish.amount.currency,
            "card_token": wish.card_token,
            "card_bin": wish.card_bin,
            "customer_id": wish.customer_id,
            "email": wish.email,
            "ip_address": wish.ip_address,
            "billing_country": wish.billing_country,
            "caller": caller,
            "idempotency_key": key,
        },
    )
    payment = Payment(wish.merchant_id, payment_id, wish.order_id, wish.amount, State.AUTHORIZING, 1, now_ms)
    return payment, event


def wish_of(merchant_id: str, initiated: Mapping[str, Any]) -> Authorize:
    """The wish that an initiated event was made from."""
    return Authorize(
        merchant_id,
        initiated["order_id"],
        Money(initiated["amount_minor"], initiated["currency"]),
        initiated["card_token"],
        initiated["card_bin"],
        initiated["customer_id"],
        initiated["email"],
        initiated["ip_address"],
        initiated["billing_country"],
    )


def apply(payment: Payment, event: Event) -> Payment:
    """The payment after one more event. Raises AssertionError for an event that cannot follow."""
    after = replace(payment, version=payment.version + 1, unknown_outcome=UnknownOutcome.NONE)
    data = event.data
    match (payment.state, event.type):
        case (State.AUTHORIZING, EventType.AUTHORIZED):
            return replace(
                after,
                state=State.AUTHORIZED,
                auth_code=data["auth_code"],
                processor_reference=data["processor_reference"],
                fraud_score_milli=data["fraud_score_milli"],
            )
        case (State.AUTHORIZING, EventType.DECLINED):
            return replace(
                after,
                state=State.DECLINED,
                decline_reason=data["reason"],
                processor_reference=data["processor_reference"],
                fraud_score_milli=data["fraud_score_milli"],
            )
        case (State.AUTHORIZING, EventType.REJECTED):
            return replace(
                after,
                state=State.REJECTED,
                decline_reason=data["reason"],
                fraud_score_milli=data["fraud_score_milli"],
            )
        case (State.AUTHORIZING, EventType.FAILED):
            return replace(after, state=State.FAILED, decline_reason=data["reason"])
        case (State.AUTHORIZING, EventType.OUTCOME_UNKNOWN):
            return replace(after, unknown_outcome=UnknownOutcome.AUTHORIZATION)
        case (State.AUTHORIZED, EventType.VOID_REQUESTED):
            return replace(after, state=State.VOIDING)
        case (State.VOIDING, EventType.OUTCOME_UNKNOWN):
            return replace(after, unknown_outcome=UnknownOutcome.VOID)
        case (State.VOIDING, EventType.VOIDED):
            return replace(after, state=State.VOIDED)
        case (State.VOIDING, EventType.VOID_REFUSED):
            return replace(after, state=State.AUTHORIZED)
        case (State.FAILED, EventType.LATE_APPROVAL):
            return replace(after, state=State.VOIDING, processor_reference=data["processor_reference"])
    raise AssertionError(f"{event.type} cannot happen to a payment that is {payment.state}")


def fold(merchant_id: str, payment_id: str, created_at_ms: int, events: Sequence[Event]) -> Payment:
    """Rebuild a payment from all its events, oldest first."""
    first, *rest = events
    assert first.type is EventType.INITIATED, f"{payment_id} begins with {first.type}"
    wish = wish_of(merchant_id, first.data)
    payment = Payment(merchant_id, payment_id, wish.order_id, wish.amount, State.AUTHORIZING, 1, created_at_ms)
    for event in rest:
        payment = apply(payment, event)
    return payment


def after_fraud(verdict: Verdict) -> Event | None:
    """The event that a fraud check causes; None to go on."""
    if verdict.approved:
        return None
    return Event(EventType.REJECTED, {"reason": verdict.reason, "fraud_score_milli": verdict.score_milli})


def after_authorization(payment: Payment, answer: Authorization, score_milli: int) -> Event | None:
    """The event that the processor's answer causes; None when it changes nothing any more."""
    if payment.state is State.FAILED and isinstance(answer, Approved):
        return Event(EventType.LATE_APPROVAL, {"processor_reference": answer.reference})
    if payment.state is not State.AUTHORIZING:
        return None
    match answer:
        case Approved(reference, auth_code):
            data = {"auth_code": auth_code, "processor_reference": reference, "fraud_score_milli": score_milli}
            return Event(EventType.AUTHORIZED, data)
        case Declined(reference, reason):
            data = {"reason": reason, "processor_reference": reference, "fraud_score_milli": score_milli}
            return Event(EventType.DECLINED, data)
        case Gone():
            return Event(EventType.FAILED, {"reason": "CANCELLED_AT_PROCESSOR"})
        case RefusedByProcessor(reason):
            return Event(EventType.FAILED, {"reason": reason})
        case Lost(reason):
            return _unknown(payment, UnknownOutcome.AUTHORIZATION, reason)


def after_void(payment: Payment, answer: Letting) -> Event | None:
    """The event that the processor's answer causes; None when it changes nothing any more."""
    if payment.state is not State.VOIDING:
        return None
    match answer:
        case Gone():
            return Event(EventType.VOIDED, {})
        case RefusedByProcessor(reason):
            return Event(EventType.VOID_REFUSED, {"reason": reason})
        case Lost(reason):
            return _unknown(payment, UnknownOutcome.VOID, reason)


def _unknown(payment: Payment, which: UnknownOutcome, reason: str) -> Event | None:
    """Told once; further lost answers add nothing to the story."""
    if payment.unknown_outcome is which:
        return None
    return Event(EventType.OUTCOME_UNKNOWN, {"operation": str(which), "reason": reason})


def request_void(payment: Payment, note: str, caller: str, key: str) -> Event | Payment | PaymeshError:
    """Let go of a hold: an event to begin with, the payment where nothing is held any more, or why not now."""
    match payment.state:
        case State.AUTHORIZED:
            return Event(EventType.VOID_REQUESTED, {"note": note, "caller": caller, "idempotency_key": key})
        case State.AUTHORIZING | State.VOIDING:
            return in_progress(payment)
        case _:
            return payment


def answer_to_authorize(payment: Payment) -> Payment | PaymeshError:
    """What the caller of AuthorizePayment is told."""
    return in_progress(payment) if payment.state is State.AUTHORIZING else payment


def answer_to_void(payment: Payment) -> Payment | PaymeshError:
    """What the caller of VoidPayment is told after the processor was asked."""
    if payment.state is State.AUTHORIZED:
        return Refused(
            "VOID_REFUSED", "the processor will not let go of the hold", facts={"payment_id": payment.payment_id}
        )
    return in_progress(payment) if payment.state is State.VOIDING else payment


def in_progress(payment: Payment) -> InProgress:
    """The processor's answer is still to come."""
    return InProgress(
        "OUTCOME_UNKNOWN" if payment.unknown_outcome else "IN_PROGRESS",
        f"payment {payment.payment_id} waits for the processor; ask again with the same key",
        facts={"payment_id": payment.payment_id},
        retry_after_ms=RETRY_AFTER_MS,
    )


def order_already_paid(order_id: str) -> Refused:
    """Another key has a live payment for this order."""
    return Refused("ORDER_ALREADY_PAID", f"order {order_id!r} has a live payment under another idempotency key")


def no_payment(payment_id: str) -> NotFound:
    """A payment was named that does not exist."""
    return NotFound("UNKNOWN_PAYMENT", f"there is no payment {payment_id!r}")


def nothing_authorized(merchant_id: str) -> Payment:
    """What a void by key returns when there never was a payment, and never will be."""
    return Payment(merchant_id, "", "", Money(0, ""), State.VOIDED, 0, 0)


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of a journal: debits are positive, credits negative."""

    merchant_id: str
    journal_id: str
    line: int
    account: str
    amount: Money


HOLDS = "holds"
HOLDS_CONTROL = "holds_control"


def journal(before: Payment, after: Payment) -> list[Entry]:
    """What an event books: the change of what is held, against the control account."""
    change = _booked(after) - _booked(before)
    if not change:
        return []
    number = f"{after.payment_id}/{after.version}"
    amount = Money(change, after.amount.currency)
    return [
        Entry(after.merchant_id, number, 1, HOLDS, amount),
        Entry(after.merchant_id, number, 2, HOLDS_CONTROL, -amount),
    ]


def _booked(payment: Payment) -> int:
    """A hold that was found late was never booked and is let go at once: only what has an authorization code counts."""
    return payment.held.amount_minor if payment.auth_code else 0


def entries(changes: Iterable[tuple[Payment, Payment]]) -> list[Entry]:
    """The journals of a set of changes, (before, after) each."""
    return [entry for before, after in changes for entry in journal(before, after)]
