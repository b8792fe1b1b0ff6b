"""What can happen to a payment, and what it makes of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from functools import partial
from typing import Any, NamedTuple

from services.kit.money import Money
from services.payment.domain.payment import (
    FIRST_PROCESSOR,
    WAITING,
    Authorize,
    Payment,
    State,
    UnknownOutcome,
)


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
    INCREMENT_REQUESTED = "PaymentIncrementRequested"
    INCREMENT_REFUSED = "PaymentIncrementRefused"
    INCREMENTED = "PaymentAuthorizationIncremented"
    CAPTURE_REQUESTED = "PaymentCaptureRequested"
    CAPTURE_REFUSED = "PaymentCaptureRefused"
    CAPTURED = "PaymentCaptured"
    REFUND_REQUESTED = "PaymentRefundRequested"
    REFUND_REFUSED = "PaymentRefundRefused"
    REFUNDED = "PaymentRefunded"
    EXPIRY_REQUESTED = "PaymentExpiryRequested"
    EXPIRED = "PaymentExpired"
    SETTLED = "PaymentSettled"


class Event(NamedTuple):
    """One thing that happened. `data` holds JSON values only."""

    type: EventType
    data: Mapping[str, Any]


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
    moved = _authorizing(payment, event) if payment.state is State.AUTHORIZING else _later(payment, event)
    if moved is None:
        raise AssertionError(f"{event.type} cannot happen to a payment that is {payment.state}")
    return moved


def _authorizing(payment: Payment, event: Event) -> Payment | None:
    """What the end of an authorization makes of a payment that is AUTHORIZING. It is copied once: this happens to every
    payment."""
    data = event.data
    after = partial(payment._replace, version=payment.version + 1, unknown_outcome=UnknownOutcome.NONE)
    match event.type:
        case EventType.AUTHORIZED:
            return after(
                state=State.AUTHORIZED,
                auth_code=data["auth_code"],
                processor_reference=data["processor_reference"],
                fraud_score_milli=data["fraud_score_milli"],
                # Events from before there was an expiry do not tell one.
                expires_at_ms=data.get("expires_at_ms", 0),
            )
        case EventType.DECLINED:
            return after(
                state=State.DECLINED,
                decline_reason=data["reason"],
                processor_reference=data["processor_reference"],
                fraud_score_milli=data["fraud_score_milli"],
            )
        case EventType.REJECTED:
            return after(
                state=State.REJECTED,
                decline_reason=data["reason"],
                fraud_score_milli=data["fraud_score_milli"],
            )
        case EventType.FAILED:
            return after(state=State.FAILED, decline_reason=data["reason"])
        case EventType.OUTCOME_UNKNOWN:
            return after(unknown_outcome=UnknownOutcome.AUTHORIZATION)
    return None


def _later(payment: Payment, event: Event) -> Payment | None:
    """What an event makes of a payment whose authorization has ended."""
    after = payment._replace(version=payment.version + 1, unknown_outcome=UnknownOutcome.NONE)
    match (payment.state, event.type):
        case (State.FAILED, EventType.LATE_APPROVAL):
            return after._replace(state=State.VOIDING, processor_reference=event.data["processor_reference"])
        case (state, EventType.OUTCOME_UNKNOWN) if state in WAITING:
            return after._replace(unknown_outcome=WAITING[state])
        case (state, _):
            return _ended(after, event) if state in WAITING else _begun(after, event)


def _begun(after: Payment, event: Event) -> Payment | None:
    """What an intent makes of a payment that waits for nothing."""
    data = event.data
    match (after.state, event.type):
        case (State.AUTHORIZED | State.PARTIALLY_CAPTURED, EventType.VOID_REQUESTED):
            return after._replace(state=State.VOIDING)
        case (State.AUTHORIZED | State.PARTIALLY_CAPTURED, EventType.EXPIRY_REQUESTED):
            return after._replace(state=State.VOIDING, expiring=True)
        case (State.AUTHORIZED, EventType.INCREMENT_REQUESTED):
            return after._replace(state=State.INCREMENTING, pending_minor=data["amount_minor"])
        case (State.AUTHORIZED | State.PARTIALLY_CAPTURED, EventType.CAPTURE_REQUESTED):
            return after._replace(
                state=State.CAPTURING,
                pending_minor=data["amount_minor"],
                pending_fee_minor=data["fee_minor"],
                pending_final=data["final"],
            )
        case (
            State.PARTIALLY_CAPTURED | State.CAPTURED | State.SETTLED | State.PARTIALLY_REFUNDED,
            EventType.REFUND_REQUESTED,
        ):
            return after._replace(state=State.REFUNDING, pending_minor=data["amount_minor"])
        case (
            State.PARTIALLY_CAPTURED | State.CAPTURED | State.PARTIALLY_REFUNDED | State.REFUNDED,
            EventType.SETTLED,
        ):
            return after._replace(settled_minor=after.settled_minor + data["amount_minor"]).at_rest()
    return None


def _ended(after: Payment, event: Event) -> Payment | None:
    """What the end of an operation makes of a payment that waits for it."""
    data = event.data
    match (after.state, event.type):
        case (State.INCREMENTING, EventType.INCREMENTED):
            incremented = after.incremented_minor + data["amount_minor"]
            return after._replace(incremented_minor=incremented).at_rest()
        case (State.CAPTURING, EventType.CAPTURED):
            return after._replace(
                captured_minor=after.captured_minor + data["amount_minor"],
                fee_minor=after.fee_minor + data["fee_minor"],
                rest_released=data["final"],
            ).at_rest()
        case (State.REFUNDING, EventType.REFUNDED):
            return after._replace(refunded_minor=after.refunded_minor + data["amount_minor"]).at_rest()
        case (State.VOIDING, EventType.VOIDED | EventType.EXPIRED):
            if after.captured_minor:
                return after._replace(rest_released=True).at_rest()
            expired = event.type is EventType.EXPIRED
            return after._replace(state=State.EXPIRED if expired else State.VOIDED, expiring=False)
        case (
            (State.INCREMENTING, EventType.INCREMENT_REFUSED)
            | (State.CAPTURING, EventType.CAPTURE_REFUSED)
            | (State.REFUNDING, EventType.REFUND_REFUSED)
            | (State.VOIDING, EventType.VOID_REFUSED)
        ):
            return after.at_rest()
    return None


def fold(merchant_id: str, payment_id: str, created_at_ms: int, events: Sequence[Event]) -> Payment:
    """Rebuild a payment from all its events, oldest first."""
    first, *rest = events
    assert first.type is EventType.INITIATED, f"{payment_id} begins with {first.type}"
    wish = wish_of(merchant_id, first.data)
    payment = Payment(
        merchant_id,
        payment_id,
        wish.order_id,
        wish.amount,
        State.AUTHORIZING,
        1,
        created_at_ms,
        processor=first.data.get("processor", FIRST_PROCESSOR),
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
