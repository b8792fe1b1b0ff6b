"""The participants of a saga: how each step is asked for, and what its answer means.

A participant takes a set of due steps and answers each, in order. A failure of the whole call is every item's answer:
the keys make it safe to ask again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import grpc.aio
from opentelemetry.trace import Span

from paymesh.inventory.v1 import inventory_pb2, inventory_pb2_grpc
from paymesh.orchestrator.v1 import orchestrator_pb2 as pb
from paymesh.payment.v1 import payment_pb2, payment_pb2_grpc
from paymesh.shipping.v1 import shipping_pb2, shipping_pb2_grpc
from services.kit.deadline import Deadline
from services.kit.errors import Kind, PaymeshError
from services.kit.rpc.client import call
from services.kit.rpc.failures import from_failure
from services.kit.telemetry import traceparent_of
from services.orchestrator.domain import Outcome, Saga

LINES_PER_CALL_MAX = 20_000
"""Of one call to inventory: well below the message limit even with the longest skus, and few enough that the products
of one huge set are not locked for seconds."""


class Due(NamedTuple):
    """A step of a saga that is due."""

    saga: Saga
    order: pb.PlaceOrderRequest
    step: str
    span: Span | None

    @property
    def do_key(self) -> str:
        """Idempotency key of the do."""
        return f"{self.saga.saga_id}/{self.step}"

    @property
    def undo_key(self) -> str:
        """Idempotency key of the undo."""
        return f"{self.saga.saga_id}/{self.step}/undo"


class Result(NamedTuple):
    """What a participant answered."""

    outcome: Outcome
    reason: str = ""
    message: str = ""
    facts: Mapping[str, str] = {}
    retry_after_ms: int = 0


class Participant(Protocol):
    """Takes one kind of step, both ways."""

    async def do(self, due: Sequence[Due], deadline: Deadline) -> list[Result]:
        """Take the step for a set of sagas."""

    async def undo(self, due: Sequence[Due], deadline: Deadline) -> list[Result]:
        """Undo it, whether or not the do has arrived."""


class Inventory:
    """Step "reserve"."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = inventory_pb2_grpc.InventoryServiceStub(channel)

    async def do(self, due: Sequence[Due], deadline: Deadline) -> list[Result]:
        results: list[Result] = []
        for part in _by_weight(due, LINES_PER_CALL_MAX):
            results += await self._reserve(part, deadline)
        return results

    async def _reserve(self, due: Sequence[Due], deadline: Deadline) -> list[Result]:
        request = inventory_pb2.BatchReserveStockRequest()
        for one in due:
            item = request.items.add(idempotency_key=one.do_key, traceparent=traceparent_of(one.span))
            item.request.merchant_id = one.saga.merchant_id
            item.request.order_id = one.saga.order_id
            for line in one.order.lines:
                item.request.lines.add(sku=line.sku, quantity=line.quantity)
        return await _ask(self._stub.BatchReserveStock, request, due, deadline, _reserved)

    async def undo(self, due: Sequence[Due], deadline: Deadline) -> list[Result]:
        request = inventory_pb2.BatchReleaseStockRequest()
        for one in due:
            item = request.items.add(idempotency_key=one.undo_key, traceparent=traceparent_of(one.span))
            item.request.merchant_id = one.saga.merchant_id
            item.request.reserve_key = one.do_key
        return await _ask(self._stub.BatchReleaseStock, request, due, deadline, _undone)


class Payment:
    """Step "authorize"."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = payment_pb2_grpc.PaymentServiceStub(channel)

    async def do(self, due: Sequence[Due], deadline: Deadline) -> list[Result]:
        request = payment_pb2.BatchAuthorizePaymentsRequest()
        for one in due:
            item = request.items.add(idempotency_key=one.do_key, traceparent=traceparent_of(one.span))
            item.request.merchant_id = one.saga.merchant_id
            item.request.order_id = one.saga.order_id
            item.request.amount.CopyFrom(one.order.amount)
            item.request.card.CopyFrom(one.order.card)
            item.request.customer.CopyFrom(one.order.customer)
        return await _ask(self._stub.BatchAuthorizePayments, request, due, deadline, _authorized)

    async def undo(self, due: Sequence[Due], deadline: Deadline) -> list[Result]:
        request = payment_pb2.BatchVoidPaymentsRequest()
        for one in due:
            item = request.items.add(idempotency_key=one.undo_key, traceparent=traceparent_of(one.span))
            item.request.merchant_id = one.saga.merchant_id
            item.request.authorize_key = one.do_key
            item.request.note = one.saga.reason.code[:200] if one.saga.reason else ""
        return await _ask(self._stub.BatchVoidPayments, request, due, deadline, _undone)


class Shipping:
    """Step "ship"."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = shipping_pb2_grpc.ShippingServiceStub(channel)

    async def do(self, due: Sequence[Due], deadline: Deadline) -> list[Result]:
        request = shipping_pb2.BatchCreateShipmentsRequest()
        for one in due:
            item = request.items.add(idempotency_key=one.do_key, traceparent=traceparent_of(one.span))
            item.request.merchant_id = one.saga.merchant_id
            item.request.order_id = one.saga.order_id
            item.request.address.CopyFrom(one.order.shipping_address)
        return await _ask(self._stub.BatchCreateShipments, request, due, deadline, _booked)

    async def undo(self, due: Sequence[Due], deadline: Deadline) -> list[Result]:
        request = shipping_pb2.BatchCancelShipmentsRequest()
        for one in due:
            item = request.items.add(idempotency_key=one.undo_key, traceparent=traceparent_of(one.span))
            item.request.merchant_id = one.saga.merchant_id
            item.request.create_key = one.do_key
        return await _ask(self._stub.BatchCancelShipments, request, due, deadline, _undone)


def _by_weight(due: Sequence[Due], lines_max: int) -> Iterator[list[Due]]:
    """The set in parts of at most so many order lines; a single order may have more."""
    part: list[Due] = []
    lines = 0
    for one in due:
        if part and lines + len(one.order.lines) > lines_max:
            yield part
            part, lines = [], 0
        part.append(one)
        lines += len(one.order.lines)
    if part:
        yield part


async def _ask(method: Any, request: Any, due: Sequence[Due], deadline: Deadline, read: Any) -> list[Result]:
    try:
        response = await call(method, request, deadline, spans=[one.span for one in due])
    except PaymeshError as error:
        return [_failed(error)] * len(due)
    return [
        read(result.response)
        if result.WhichOneof("outcome") == "response"
        else _failed(from_failure(result.failure))
        for result in response.results
    ]


def _failed(error: PaymeshError) -> Result:
    """Final noes are refusals; that nothing happened is worth a retry; everything else may have happened."""
    match error.kind:
        case Kind.REFUSED | Kind.INVALID | Kind.NOT_FOUND:
            outcome = Outcome.REFUSED
        case Kind.RETRYABLE:
            outcome = Outcome.RETRYABLE
        case _:
            outcome = Outcome.UNKNOWN
    return Result(outcome, error.reason, error.message, error.facts, error.retry_after_ms or 0)


def _reserved(response: inventory_pb2.ReserveStockResponse) -> Result:
    return Result(Outcome.DONE, facts={"reservation_id": response.reservation.reservation_id})


def _authorized(response: payment_pb2.AuthorizePaymentResponse) -> Result:
    payment = response.payment
    facts = {"payment_id": payment.payment_id}
    if payment.state == payment_pb2.PAYMENT_STATE_AUTHORIZED:
        return Result(Outcome.DONE, facts={**facts, "auth_code": payment.auth_code})
    state = payment_pb2.PaymentState.Name(payment.state).removeprefix("PAYMENT_STATE_").lower()
    reason = payment.decline_reason or state.upper()
    return Result(Outcome.REFUSED, reason, f"the payment was {state}: {reason}", facts)


def _booked(response: shipping_pb2.CreateShipmentResponse) -> Result:
    shipment = response.shipment
    return Result(
        Outcome.DONE,
        facts={"shipment_id": shipment.shipment_id, "tracking_number": shipment.tracking_number},
    )


def _undone(_: Any) -> Result:
    return Result(Outcome.DONE)
