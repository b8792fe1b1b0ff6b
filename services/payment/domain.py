"""What may happen to a payment. Pure: a payment and a wish in, events out.

A payment is the fold of its events. The table of transitions is `apply`; nothing else changes a payment.

    (none) ─initiated─► AUTHORIZING ─authorized─► AUTHORIZED ─void requested─► VOIDING ─voided─► VOIDED
                          │  │  │                     ▲                        │  ▲
                          │  │  └─declined─► DECLINED └──────void refused──────┘  │
                          │  └─rejected─► REJECTED                                │
                          └─failed─► FAILED ─late approval found──────────────────┘

In AUTHORIZING and VOIDING the processor has been, or is about to be, asked; `outcome unknown` marks that its answer
was lost. A hold that was found after its payment had failed is let go at once, and only that: nobody may use it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Any, NamedTuple

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


class Event(NamedTuple):
    """One thing that happened. `data` holds JSON values only."""

    type: EventType
    data: Mapping[str, Any]


class Authorize(NamedTuple):
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


class Payment(NamedTuple):
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

    @property
    def found_late(self) -> bool:
        """Whether its hold was found after it had failed: only then it has both a hold and a reason for failing."""
        return self.state is State.VOIDING and self.decline_reason != ""


class Verdict(NamedTuple):
    """The fraud check's answer."""

    approved: bool
    score_milli: int
    reason: str


class Approved(NamedTuple):
    """The card's bank holds the amount."""

    reference: str
    auth_code: str


class Declined(NamedTuple):
    """The card's bank said no."""

    reference: str
    reason: str


@dataclass(frozen=True, slots=True)
class Gone:
    """Nothing is held: a hold was let go, or the authorization was cancelled before it arrived."""


@dataclass(frozen=True, slots=True)
class Absent:
    """The processor knows of no operation under the key."""


class Lost(NamedTuple):
    """The processor's answer did not arrive, or is still to come; the operation may have been carried out."""

    reason: str


class RefusedByProcessor(NamedTuple):
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
    data = event.data
    after = partial(payment._replace, version=payment.version + 1, unknown_outcome=UnknownOutcome.NONE)
    match (payment.state, event.type):
        case (State.AUTHORIZING, EventType.AUTHORIZED):
            return after(
                state=State.AUTHORIZED,
                auth_code=data["auth_code"],
                processor_reference=data["processor_reference"],
                fraud_score_milli=data["fraud_score_milli"],
            )
        case (State.AUTHORIZING, EventType.DECLINED):
            return after(
                state=State.DECLINED,
                decline_reason=data["reason"],
                processor_reference=data["processor_reference"],
                fraud_score_milli=data["fraud_score_milli"],
            )
        case (State.AUTHORIZING, EventType.REJECTED):
            return after(
                state=State.REJECTED,
                decline_reason=data["reason"],
                fraud_score_milli=data["fraud_score_milli"],
            )
        case (State.AUTHORIZING, EventType.FAILED):
            return after(state=State.FAILED, decline_reason=data["reason"])
        case (State.AUTHORIZING, EventType.OUTCOME_UNKNOWN):
            return after(unknown_outcome=UnknownOutcome.AUTHORIZATION)
        case (State.AUTHORIZED, EventType.VOID_REQUESTED):
            return after(state=State.VOIDING)
        case (State.VOIDING, EventType.OUTCOME_UNKNOWN):
            return after(unknown_outcome=UnknownOutcome.VOID)
        case (State.VOIDING, EventType.VOIDED):
            return after(state=State.VOIDED)
        case (State.VOIDING, EventType.VOID_REFUSED):
            return after(state=State.AUTHORIZED)
        case (State.FAILED, EventType.LATE_APPROVAL):
            return after(
                state=State.VOIDING,
                processor_reference=data["processor_reference"],
            )
    raise AssertionError(f"{event.type} cannot happen to a payment that is {payment.state}")


def fold(merchant_id: str, payment_id: str, created_at_ms: int, events: Sequence[Event]) -> Payment:
    """Rebuild a payment from all its events, oldest first."""
    first, *rest = events
    assert first.type is EventType.INITIATED, f"{payment_id} begins with {first.type}"
    wish = wish_of(merchant_id, first.data)
    payment = Payment(
        merchant_id, payment_id, wish.order_id, wish.amount, State.AUTHORIZING, 1, created_at_ms
    )
    for event in rest:
        payment = apply(payment, event)
    return payment


def first_outcome(
    merchant_id: str, payment_id: str, created_at_ms: int, events: Sequence[Event]
) -> Payment | None:
    """The payment as it was when its authorization had ended; None when it has not."""
    for place, event in enumerate(events):
        if event.type in _AUTHORIZATION_ENDS:
            return fold(merchant_id, payment_id, created_at_ms, events[: place + 1])
    return None


_AUTHORIZATION_ENDS = (EventType.AUTHORIZED, EventType.DECLINED, EventType.REJECTED, EventType.FAILED)


def after_fraud(payment: Payment, verdict: Verdict) -> Event | None:
    """The event that a fraud check causes; None to go on, or when it changes nothing any more."""
    if verdict.approved or payment.state is not State.AUTHORIZING:
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
            data = {
                "auth_code": auth_code,
                "processor_reference": reference,
                "fraud_score_milli": score_milli,
            }
            return Event(EventType.AUTHORIZED, data)
        case Declined(reference, reason):
            data = {"reason": reason, "processor_reference": reference, "fraud_score_milli": score_milli}
            return Event(EventType.DECLINED, data)
        case Gone():
            return Event(EventType.FAILED, {"reason": "CANCELLED_AT_PROCESSOR"})
        case RefusedByProcessor(reason):
            return Event(EventType.FAILED, {"reason": reason or "REFUSED"})
        case Lost(reason):
            return _unknown(payment, UnknownOutcome.AUTHORIZATION, reason)


def same_intent(asked: Payment, now: Payment) -> bool:
    """Whether a payment still waits for the very operation that the processor was asked for: nothing has happened since
    but, at most, that the outcome was marked unknown. After a refused void another may have begun."""
    return now.version == asked.version or (now.version == asked.version + 1 and bool(now.unknown_outcome))


def void_number(payment: Payment) -> int:
    """The version of the event that began the void under way: tells a second void from a first that was refused."""
    return payment.version - 1 if payment.unknown_outcome else payment.version


def after_void(payment: Payment, asked: Payment, answer: Letting) -> Event | None:
    """The event that the processor's answer to the void of `asked` causes; None when it changes nothing any more."""
    if payment.state is not State.VOIDING or not same_intent(asked, payment):
        return None
    match answer:
        case Gone():
            return Event(EventType.VOIDED, {})
        case RefusedByProcessor(reason) if not payment.found_late:
            return Event(EventType.VOID_REFUSED, {"reason": reason})
        case RefusedByProcessor(reason) | Lost(reason):
            # A hold that was found late has no AUTHORIZED to go back to; it waits, in sight, and is asked for again.
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
            "VOID_REFUSED",
            "the processor will not let go of the hold",
            facts={"payment_id": payment.payment_id},
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


def settled_elsewhere(payment: Payment) -> InProgress:
    """Somebody else wrote the outcome down while this asker waited. The answer that stands under the key is the first
    one, and the payment may have moved on since: the asker is sent to it."""
    return InProgress(
        "IN_PROGRESS",
        f"payment {payment.payment_id} was settled by another process; ask again with the same key for the answer",
        facts={"payment_id": payment.payment_id},
        retry_after_ms=1,
    )


def not_written_down(payment: Payment, why: PaymeshError) -> InProgress:
    """The processor was asked, but its answer could not be stored."""
    return InProgress(
        "OUTCOME_UNKNOWN",
        f"what became of payment {payment.payment_id} could not be written down ({why.reason}); ask again with the"
        " same key",
        facts={"payment_id": payment.payment_id},
        retry_after_ms=RETRY_AFTER_MS,
    )


def order_already_paid(order_id: str) -> Refused:
    """Another key has a live payment for this order."""
    return Refused(
        "ORDER_ALREADY_PAID", f"order {order_id!r} has a live payment under another idempotency key"
    )


def no_payment(payment_id: str) -> NotFound:
    """A payment was named that does not exist."""
    return NotFound("UNKNOWN_PAYMENT", f"there is no payment {payment_id!r}")


def nothing_authorized(merchant_id: str) -> Payment:
    """What a void by key returns when there never was a payment, and never will be."""
    return Payment(merchant_id, "", "", Money(0, ""), State.VOIDED, 0, 0)
