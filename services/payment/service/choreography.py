"""Payment's part in a choreographed order: it authorizes when the stock is reserved, and lets go when no carrier
goes."""

from __future__ import annotations

from paymesh.choreography.v1 import choreography_pb2
from paymesh.payment.v1 import payment_pb2 as pb
from services.kit.events.choreography import Part, Said, Way, Ways
from services.payment.service.rpcs import PaymentService

BY_ORCHESTRATOR: Ways = {choreography_pb2.SagaTimedOut: Way.UNDO}
BY_INVENTORY: Ways = {choreography_pb2.StepDone: Way.DO}
BY_SHIPPING: Ways = {choreography_pb2.StepRefused: Way.UNDO}
SECONDS = 9.0
"""For a set: fraud, the processor, and two transactions."""


def part_of(service: PaymentService) -> Part:
    """Step "authorize"."""
    return Part(
        "authorize",
        service.authorizing,
        service.voiding,
        request=_authorize,
        undo_request=lambda slip, key: pb.VoidPaymentRequest(
            merchant_id=slip.merchant_id, authorize_key=key, note="NOT_PLACED"
        ),
        read=_said,
        seconds=SECONDS,
    )


def _authorize(slip: choreography_pb2.Slip) -> pb.AuthorizePaymentRequest:
    order = slip.order
    return pb.AuthorizePaymentRequest(
        merchant_id=slip.merchant_id,
        order_id=slip.order_id,
        amount=order.amount,
        card=order.card,
        customer=order.customer,
    )


def _said(response: pb.AuthorizePaymentResponse) -> Said:
    payment = response.payment
    if payment.state == pb.PAYMENT_STATE_AUTHORIZED:
        return Said({"payment_id": payment.payment_id, "auth_code": payment.auth_code})
    state = pb.PaymentState.Name(payment.state).removeprefix("PAYMENT_STATE_").lower()
    reason = payment.decline_reason or state.upper()
    return Said({"payment_id": payment.payment_id}, reason, f"the payment was {state}: {reason}")
