"""The methods under load, in their single and batch forms: how a call is encoded and what a good answer is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from bench.movements import Movers
from bench.orders import Buyers
from bench.phases import What
from paymesh.orchestrator.v1 import orchestrator_pb2
from paymesh.payment.v1 import payment_pb2

Fill = Callable[[Any, Any], str]


@dataclass(frozen=True, kw_only=True)
class Method:
    """One mutating method."""

    single_path: str
    batch_path: str
    request: Any
    response: Any
    batch_request: Any
    batch_response: Any
    fill: Fill
    """Writes the next request of whoever draws them, buyers or movers, and returns its key."""
    state_of: Callable[[Any], int]
    """Of what a response is about."""
    wanted: int
    """The state that counts."""
    states: Any
    """The enum of states, for their names."""

    def build_single(self, source: Buyers | Movers) -> tuple[str, bytes]:
        """Key and encoded request of the next single call."""
        request = self.request()
        key = self.fill(source, request)
        return key, request.SerializeToString()

    def build_batch(self, source: Buyers | Movers, size: int) -> tuple[str, bytes]:
        """The next batch call, encoded. The keys are inside, the first of the pair is empty."""
        batch = self.batch_request()
        for _ in range(size):
            item = batch.items.add()
            item.idempotency_key = self.fill(source, item.request)
        return "", batch.SerializeToString()

    def state_name(self, response: Any) -> str:
        """For a person."""
        name: str = self.states.Name(self.state_of(response))
        return name


_ORDERS = Method(
    single_path="/paymesh.orchestrator.v1.OrchestratorService/PlaceOrder",
    batch_path="/paymesh.orchestrator.v1.OrchestratorService/BatchPlaceOrders",
    request=orchestrator_pb2.PlaceOrderRequest,
    response=orchestrator_pb2.PlaceOrderResponse,
    batch_request=orchestrator_pb2.BatchPlaceOrdersRequest,
    batch_response=orchestrator_pb2.BatchPlaceOrdersResponse,
    fill=Buyers.fill_order,
    state_of=lambda response: response.order.state,
    wanted=orchestrator_pb2.SAGA_STATE_COMPLETED,
    states=orchestrator_pb2.SagaState,
)

METHODS = {
    What.ORDERS: _ORDERS,
    What.CHOREOGRAPHED_ORDERS: replace(_ORDERS, fill=Buyers.fill_choreographed),
    What.AUTHORIZATIONS: Method(
        single_path="/paymesh.payment.v1.PaymentService/AuthorizePayment",
        batch_path="/paymesh.payment.v1.PaymentService/BatchAuthorizePayments",
        request=payment_pb2.AuthorizePaymentRequest,
        response=payment_pb2.AuthorizePaymentResponse,
        batch_request=payment_pb2.BatchAuthorizePaymentsRequest,
        batch_response=payment_pb2.BatchAuthorizePaymentsResponse,
        fill=Buyers.fill_authorization,
        state_of=lambda response: response.payment.state,
        wanted=payment_pb2.PAYMENT_STATE_AUTHORIZED,
        states=payment_pb2.PaymentState,
    ),
    What.CAPTURES: Method(
        single_path="/paymesh.payment.v1.PaymentService/CapturePayment",
        batch_path="/paymesh.payment.v1.PaymentService/BatchCapturePayments",
        request=payment_pb2.CapturePaymentRequest,
        response=payment_pb2.CapturePaymentResponse,
        batch_request=payment_pb2.BatchCapturePaymentsRequest,
        batch_response=payment_pb2.BatchCapturePaymentsResponse,
        fill=Movers.fill_capture,
        state_of=lambda response: response.payment.state,
        wanted=payment_pb2.PAYMENT_STATE_CAPTURED,
        states=payment_pb2.PaymentState,
    ),
    What.REFUNDS: Method(
        single_path="/paymesh.payment.v1.PaymentService/RefundPayment",
        batch_path="/paymesh.payment.v1.PaymentService/BatchRefundPayments",
        request=payment_pb2.RefundPaymentRequest,
        response=payment_pb2.RefundPaymentResponse,
        batch_request=payment_pb2.BatchRefundPaymentsRequest,
        batch_response=payment_pb2.BatchRefundPaymentsResponse,
        fill=Movers.fill_refund,
        state_of=lambda response: response.payment.state,
        wanted=payment_pb2.PAYMENT_STATE_REFUNDED,
        states=payment_pb2.PaymentState,
    ),
}
