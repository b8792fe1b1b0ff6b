"""What callers are told."""

from __future__ import annotations

from services.kit.errors import InProgress, NotFound, PaymeshError, Refused
from services.kit.money import Money
from services.payment.domain.events import Event, EventType
from services.payment.domain.payment import WAITING, Payment, State

RETRY_AFTER_MS = 250
"""A caller that meets an unknown outcome asks again after this: the resolver's first attempt is over by then."""

_REFUSALS = {
    EventType.VOID_REFUSED: ("VOID_REFUSED", "the processor will not let go of the hold"),
    EventType.INCREMENT_REFUSED: ("INCREMENT_DECLINED", "the card's bank will not hold more"),
    EventType.CAPTURE_REFUSED: ("CAPTURE_REFUSED", "the processor will not take the money"),
    EventType.REFUND_REFUSED: ("REFUND_REFUSED", "the processor will not give the money back"),
}


def answer_to_authorize(payment: Payment, event: Event | None) -> Payment | PaymeshError:
    """What the caller of AuthorizePayment is told."""
    return in_progress(payment) if payment.state is State.AUTHORIZING else payment


def answer_to_movement(payment: Payment, event: Event | None) -> Payment | PaymeshError:
    """What the caller of a capture, refund, increment or void is told after the processor was asked: `event` is what
    its answer caused, None when that was nothing new."""
    if payment.state in WAITING:
        return in_progress(payment)
    refusal = _REFUSALS.get(event.type) if event is not None else None
    if event is None or refusal is None:
        return payment
    reason, message = refusal
    facts = {"payment_id": payment.payment_id, "decline_reason": event.data["reason"]}
    return Refused(reason, f"{message}: {event.data['reason']}", facts=facts)


answer_to_void = answer_to_movement


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
