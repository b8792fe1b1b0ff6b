"""Reads what Stripe says: objects and errors in, our three kinds of answer out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import stripe

from services.payment.clients.one_by_one import Unanswered
from services.payment.clients.stripe.amounts import Inexpressible, from_stripe
from services.payment.clients.stripe.cards import reason_of
from services.payment.domain import (
    Absent,
    Approved,
    Authorization,
    Declined,
    Done,
    Gone,
    Letting,
    Movement,
    Payment,
    RefusedByProcessor,
)


@contextmanager
def asking() -> Iterator[None]:
    """Around a call: whatever leaves its outcome unknown becomes Unanswered. A card's no (CardError) and a refusal of
    what was asked for (InvalidRequestError) remain. Raises Unanswered. Of an error only its kind is kept: its text and
    body may hold what nobody should log."""
    try:
        yield
    except (stripe.CardError, stripe.InvalidRequestError):
        raise
    except stripe.APIConnectionError:
        raise Unanswered("UNREACHABLE") from None
    except (stripe.AuthenticationError, stripe.PermissionError):
        raise Unanswered("KEY_REFUSED", alive=True) from None
    except stripe.RateLimitError:
        raise Unanswered("RATE_LIMITED", alive=True) from None
    except stripe.IdempotencyError:
        raise Unanswered("IDEMPOTENCY_KEY_REUSED", alive=True) from None
    except stripe.StripeError as error:
        if error.http_status == 409:
            # Another call under this key is being carried out.
            raise Unanswered("IN_PROGRESS", alive=True) from None
        raise Unanswered("INTERNAL_ERROR") from None


def authorization_of(intent: stripe.PaymentIntent) -> Authorization:
    """Where the authorization stands. Raises Unanswered."""
    match intent.status:
        case "requires_capture" | "succeeded":
            return Approved(intent.id, _auth_code(intent))
        case "canceled":
            return Gone()
        case "requires_payment_method" if intent.last_payment_error is not None:
            return Declined(intent.id, _decline_reason(intent.last_payment_error))
    raise Unanswered(f"STATUS_{intent.status.upper()}", alive=True)


def declined(error: stripe.CardError) -> Declined:
    """The card's bank said no."""
    intent = getattr(error.error, "payment_intent", None)
    return Declined("" if intent is None else intent.id, _decline_reason(error.error))


def letting_of(intent: stripe.PaymentIntent, payment: Payment) -> Letting:
    """Whether what was held is held no more, when Stripe would not cancel. Raises Unanswered: a hold is not taken for
    gone, nor is it given up, because Stripe will not cancel it."""
    match intent.status:
        case "canceled":
            return Gone()
        case "succeeded":
            # The last capture has let go of the rest; one that we know nothing of has taken it.
            return Gone() if payment.captured_minor else RefusedByProcessor("ALREADY_CAPTURED")
    raise Unanswered(f"STATUS_{intent.status.upper()}", alive=True)


def increment_of(intent: stripe.PaymentIntent, payment: Payment) -> Movement | Absent:
    """Whether as much is authorized as should be. An increment has no object of its own: the total tells."""
    if intent.status != "requires_capture":
        return RefusedByProcessor(f"STATUS_{intent.status.upper()}")
    more = _minor(intent.amount, payment) - payment.authorized_minor
    return Done(intent.id, more) if more else Absent()


def capture_of(intent: stripe.PaymentIntent, payment: Payment) -> Movement | Absent:
    """Whether the one capture that an intent can have was made."""
    match intent.status:
        case "succeeded":
            return Done(_charge_id(intent), _minor(intent.amount_received, payment))
        case "requires_capture":
            return Absent()
        case "canceled":
            return RefusedByProcessor("AUTHORIZATION_CANCELED")
    raise Unanswered(f"STATUS_{intent.status.upper()}", alive=True)


def refund_of(refund: stripe.Refund, payment: Payment) -> Movement:
    """What a refund came to. One that Stripe still works on is not known yet."""
    match refund.status:
        case "succeeded":
            return Done(refund.id, _minor(refund.amount, payment))
        case "failed" | "canceled":
            return RefusedByProcessor(reason_of(getattr(refund, "failure_reason", None), "REFUND_FAILED"))
    raise Unanswered("REFUND_PENDING", alive=True)


def refusal_of(error: stripe.StripeError) -> RefusedByProcessor:
    """The reason of a refusal."""
    return RefusedByProcessor(reason_of(_code(error), "REFUSED"))


def names_no_card(error: stripe.InvalidRequestError) -> bool:
    """Whether a payment method was named that does not exist."""
    return bool(error.param == "payment_method")


def _code(error: stripe.StripeError) -> str | None:
    decline_code: str | None = getattr(error.error, "decline_code", None)
    return decline_code or error.code


def _decline_reason(error: Any) -> str:
    return reason_of(getattr(error, "decline_code", None) or getattr(error, "code", None))


def _minor(amount: int, payment: Payment) -> int:
    try:
        return from_stripe(amount, payment.amount.currency)
    except Inexpressible as why:
        raise Unanswered(why.reason, alive=True) from None


def _charge_id(intent: stripe.PaymentIntent) -> str:
    charge = intent.latest_charge
    return charge if isinstance(charge, str) else charge.id if charge is not None else intent.id


def _auth_code(intent: stripe.PaymentIntent) -> str:
    """What the card's bank calls its approval; not every network says."""
    details = getattr(intent.latest_charge, "payment_method_details", None)
    return getattr(getattr(details, "card", None), "authorization_code", None) or ""
