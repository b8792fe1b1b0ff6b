"""What callers wish for, and whether it may begin: the events that record an intent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from services.kit.errors import PaymeshError, Refused
from services.kit.money import AMOUNT_MINOR_MAX, Money
from services.payment.domain.events import Event, EventType
from services.payment.domain.fees import FeePlan, fee_for
from services.payment.domain.payment import FIRST_PROCESSOR, WAITING, Authorize, Payment, State
from services.payment.domain.replies import in_progress

EVENTS_MAX = 1_000
"""Events of one payment. Whoever reads it reads them all; nobody ships an order in three hundred parcels. Letting go is
possible beyond it."""


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


class Move(NamedTuple):
    """A wish to hold more, to take what is held, or to give back what was taken."""

    merchant_id: str
    payment_id: str
    amount: Money | None
    """None for all there is: what is held, or what was captured and not given back."""
    final: bool
    """For a capture: let go of what it leaves."""
    note: str

    @property
    def key(self) -> tuple[str, str]:
        """The payment's."""
        return (self.merchant_id, self.payment_id)


def initiate(
    wish: Authorize, payment_id: str, caller: str, key: str, now_ms: int, processor: str = FIRST_PROCESSOR
) -> tuple[Payment, Event]:
    """The intent. The event holds all that is needed to finish the payment after a crash: where, and whom to answer."""
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
            "processor": processor,
        },
    )
    payment = Payment(
        wish.merchant_id,
        payment_id,
        wish.order_id,
        wish.amount,
        State.AUTHORIZING,
        1,
        now_ms,
        processor=processor,
    )
    return payment, event


def request_void(payment: Payment, note: str, caller: str, key: str) -> Event | Payment | PaymeshError:
    """Let go of a hold: an event to begin with, the payment where nothing is held or kept any more, or why not."""
    if payment.state in WAITING:
        return in_progress(payment)
    match payment.state:
        case State.AUTHORIZED | State.PARTIALLY_CAPTURED:
            return Event(EventType.VOID_REQUESTED, {"note": note, "caller": caller, "idempotency_key": key})
        case State.CAPTURED | State.SETTLED | State.PARTIALLY_REFUNDED:
            return _refused(
                payment,
                "PAYMENT_CAPTURED",
                "nothing is held any more, and money was taken: refund it instead",
            )
        case _:
            return payment


def request_expiry(payment: Payment, now_ms: int) -> Event | None:
    """Let go of what is still held at the end of the authorization; None when it is not time, or nothing is held."""
    if payment.state not in (State.AUTHORIZED, State.PARTIALLY_CAPTURED) or not _has_expired(payment, now_ms):
        return None
    return Event(EventType.EXPIRY_REQUESTED, {"expires_at_ms": payment.expires_at_ms})


def request_increment(
    payment: Payment, wish: Move, plan: FeePlan, caller: str, key: str, now_ms: int
) -> Event | PaymeshError:
    """Hold more."""
    assert wish.amount is not None
    if payment.state in WAITING:
        return in_progress(payment)
    if payment.state is not State.AUTHORIZED:
        return _refused(
            payment, "NOT_AUTHORIZED", f"it is {payment.state}; only an AUTHORIZED one can hold more"
        )
    if wish.amount.currency != payment.amount.currency:
        return _currency_mismatch(payment, wish.amount)
    if _has_expired(payment, now_ms):
        return _expired(payment)
    if payment.authorized_minor + wish.amount.amount_minor > AMOUNT_MINOR_MAX:
        return _refused(payment, "INCREMENT_TOO_LARGE", f"more than {AMOUNT_MINOR_MAX:,} would be held")
    if payment.version >= EVENTS_MAX:
        return _too_many_events(payment)
    return Event(EventType.INCREMENT_REQUESTED, _intent(wish.amount.amount_minor, wish, caller, key))


def request_capture(
    payment: Payment, wish: Move, plan: FeePlan, caller: str, key: str, now_ms: int
) -> Event | PaymeshError:
    """Take what is held. A capture of all of it is final: nothing is left to be let go."""
    if payment.state in WAITING:
        return in_progress(payment)
    held = payment.held_minor
    if not held:
        return _refused(payment, "NOTHING_TO_CAPTURE", f"it is {payment.state} and holds nothing")
    if wish.amount is not None and wish.amount.currency != payment.amount.currency:
        return _currency_mismatch(payment, wish.amount)
    if _has_expired(payment, now_ms):
        return _expired(payment)
    amount_minor = held if wish.amount is None else wish.amount.amount_minor
    if amount_minor > held:
        return _refused(
            payment,
            "CAPTURE_EXCEEDS_HOLD",
            f"{amount_minor} cannot be captured of the {held} that are held",
            held_minor=str(held),
        )
    if payment.version >= EVENTS_MAX:
        return _too_many_events(payment)
    fee_minor = fee_for(plan, payment.captured_minor, payment.fee_minor, amount_minor)
    final = {"fee_minor": fee_minor, "final": wish.final or amount_minor == held}
    return Event(EventType.CAPTURE_REQUESTED, _intent(amount_minor, wish, caller, key) | final)


def request_refund(
    payment: Payment, wish: Move, plan: FeePlan, caller: str, key: str, now_ms: int
) -> Event | PaymeshError:
    """Give back what was captured."""
    if payment.state in WAITING:
        return in_progress(payment)
    refundable = payment.refundable_minor
    if not refundable:
        return _refused(payment, "NOTHING_TO_REFUND", f"it is {payment.state}; nothing captured is left")
    if wish.amount is not None and wish.amount.currency != payment.amount.currency:
        return _currency_mismatch(payment, wish.amount)
    amount_minor = refundable if wish.amount is None else wish.amount.amount_minor
    if amount_minor > refundable:
        return _refused(
            payment,
            "REFUND_EXCEEDS_CAPTURED",
            f"{amount_minor} cannot be given back of the {refundable} that are left of what was captured",
            refundable_minor=str(refundable),
        )
    if payment.version >= EVENTS_MAX:
        return _too_many_events(payment)
    return Event(EventType.REFUND_REQUESTED, _intent(amount_minor, wish, caller, key))


class Share(NamedTuple):
    """What a settlement has of one payment."""

    settlement_id: str
    reference: str
    """The processor's name of the settlement."""
    captured_minor: int
    refunded_minor: int
    currency: str


def settle(payment: Payment, share: Share) -> Event | PaymeshError:
    """Captures and refunds of the payment were settled by the processor: it has paid the difference out, or taken it
    off where more was given back. While an operation is under way it has to wait, and so has a refund whose capture is
    in a settlement that the payment does not know of yet."""
    if payment.state in WAITING:
        return in_progress(payment)
    if share.currency != payment.amount.currency:
        return _currency_mismatch(payment, Money(share.captured_minor, share.currency))
    amount_minor = share.captured_minor - share.refunded_minor
    known = share.captured_minor <= payment.captured_minor and share.refunded_minor <= payment.refunded_minor
    if not known or not 0 <= payment.settled_minor + amount_minor <= payment.captured_minor:
        return _refused(
            payment,
            "SETTLEMENT_EXCEEDS_CAPTURED",
            f"{share.captured_minor} and {share.refunded_minor} back were settled, on top of"
            f" {payment.settled_minor}; {payment.captured_minor} were captured and {payment.refunded_minor} given back",
        )
    data = {
        "amount_minor": amount_minor,
        "captured_minor": share.captured_minor,
        "refunded_minor": share.refunded_minor,
        "settlement_id": share.settlement_id,
        "processor_reference": share.reference,
    }
    return Event(EventType.SETTLED, data)


def _intent(amount_minor: int, wish: Move, caller: str, key: str) -> dict[str, Any]:
    return {"amount_minor": amount_minor, "note": wish.note, "caller": caller, "idempotency_key": key}


def _has_expired(payment: Payment, now_ms: int) -> bool:
    return 0 < payment.expires_at_ms <= now_ms


def _refused(payment: Payment, reason: str, why: str, **facts: str) -> Refused:
    about = {"payment_id": payment.payment_id, "state": str(payment.state)}
    return Refused(reason, f"payment {payment.payment_id}: {why}", facts=about | facts)


def _expired(payment: Payment) -> Refused:
    return _refused(payment, "AUTHORIZATION_EXPIRED", "its authorization has come to its end")


def _currency_mismatch(payment: Payment, amount: Money) -> Refused:
    return _refused(
        payment, "CURRENCY_MISMATCH", f"it is in {payment.amount.currency}, not in {amount.currency}"
    )


def _too_many_events(payment: Payment) -> Refused:
    return _refused(payment, "TOO_MANY_EVENTS", f"it has had {payment.version:,} events")
