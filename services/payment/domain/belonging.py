"""Whose a payment is. The money of an order moves with the order, and by nothing else: otherwise it would be captured
of goods that have not left, or let go of while the order says that it is paid for.

An order's payment is told by how it was begun: by the orchestrator, under the key of the saga that places the order,
for the order of the same number. Whoever else names an order, by whatever reference, keeps their payment for
themselves."""

from __future__ import annotations

from services.kit.errors import Refused
from services.payment.domain.payment import Payment

CONDUCTOR = "orchestrator"
"""In whose name the steps of sagas are taken, whether it conducts them or the services dance."""
_ORDER, _SAGA = "ord_", "saga_"
_ORDER_ID_LENGTH = len(_ORDER) + 32
"""Of the orders that the orchestrator places: a UUID in hexadecimal digits."""


def moved_by_a_saga(caller: str, key: str) -> bool:
    """Whether a call is a step of a saga: `saga_…/capture`, `saga_…/authorize/undo`."""
    return caller == CONDUCTOR and key.startswith(_SAGA) and "/" in key


def may_be_of_an_order(payment: Payment) -> bool:
    """Whether the payment is for what looks like an order of the orchestrator: then its beginning has to tell."""
    return len(payment.order_id) == _ORDER_ID_LENGTH and payment.order_id.startswith(_ORDER)


def begun_by_a_saga(payment: Payment, caller: str, key: str) -> bool:
    """Whether a payment that was begun by this caller under this key is an order's."""
    number = payment.order_id.removeprefix(_ORDER)
    return caller == CONDUCTOR and key == f"{_SAGA}{number}/authorize"


def payment_of_an_order(payment: Payment) -> Refused:
    """Somebody wants to move an order's money without the order."""
    return Refused(
        "PAYMENT_OF_AN_ORDER",
        f"payment {payment.payment_id} has the money of order {payment.order_id}, and moves with it: use DispatchOrder,"
        " CancelOrder or ReturnOrder",
        facts={"payment_id": payment.payment_id, "order_id": payment.order_id},
    )
