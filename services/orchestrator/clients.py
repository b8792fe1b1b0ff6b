"""The participants of a saga: how each step is asked for, and what its answer means.

A participant takes a wave of due steps and answers each, in order. A failure of the whole call is every item's answer:
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


class Wave(NamedTuple):
    """Sagas that are due for the same step, column by column: an object per saga would cost more than the step."""

    step: str
    sagas: Sequence[Saga]
    orders: Sequence[pb.PlaceOrderRequest]
    """What each saga was begun with."""
    spans: Sequence[Span | None]
    """Of this attempt of each; None where it is not traced."""

    def do_keys(self) -> list[str]:
        """Idempotency keys of the dos."""
        return [f"{saga.saga_id}/{self.step}" for saga in self.sagas]

    def undo_keys(self) -> list[str]:
        """Idempotency keys of the undos."""
        return [f"{saga.saga_id}/{self.step}/undo" for saga in self.sagas]

    def part(self, start: int, end: int) -> Wave:
        """Some of them."""
        return Wave(self.step, self.sagas[start:end], self.orders[start:end], self.spans[start:end])


class Result(NamedTuple):
    """What a participant answered."""

    outcome: Outcome
    reason: str = ""
    message: str = ""
    facts: Mapping[str, str] = {}
    retry_after_ms: int = 0


class Participant(Protocol):
    """Takes one kind of step, both ways."""

    async def do(self, wave: Wave, deadline: Deadline) -> list[Result]:
        """Take the step for a wave of sagas."""

    async def undo(self, wave: Wave, deadline: Deadline) -> list[Result]:
        """Undo it, whether or not the do has arrived."""


class Inventory:
    """Step "reserve"."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = inventory_pb2_grpc.InventoryServiceStub(channel)

    async def do(self, wave: Wave, deadline: Deadline) -> list[Result]:
        results: list[Result] = []
        for part in _by_weight(wave, LINES_PER_CALL_MAX):
            results += await self._reserve(part, deadline)
        return results

    async def _reserve(self, wave: Wave, deadline: Deadline) -> list[Result]:
        batch = inventory_pb2.BatchReserveStockRequest()
        for item, saga, order in _items(batch, wave, wave.do_keys()):
            request = item.request
            request.merchant_id = saga.merchant_id
            request.order_id = saga.order_id
            add = request.lines.add
            for ordered in order.lines:
                line = add()
                line.sku, line.quantity = ordered.sku, ordered.quantity
        return await _ask(self._stub.BatchReserveStock, batch, wave, deadline, _reserved)

    async def undo(self, wave: Wave, deadline: Deadline) -> list[Result]:
        batch = inventory_pb2.BatchReleaseStockRequest()
        for (item, saga, _), do_key in zip(
            _items(batch, wave, wave.undo_keys()), wave.do_keys(), strict=True
        ):
            item.request.merchant_id = saga.merchant_id
            item.request.reserve_key = do_key
        return await _ask(self._stub.BatchReleaseStock, batch, wave, deadline, _undone)


class Payment:
    """Step "authorize"."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = payment_pb2_grpc.PaymentServiceStub(channel)

    async def do(self, wave: Wave, deadline: Deadline) -> list[Result]:
        batch = payment_pb2.BatchAuthorizePaymentsRequest()
        for item, saga, order in _items(batch, wave, wave.do_keys()):
            request = item.request
            request.merchant_id = saga.merchant_id
            request.order_id = saga.order_id
            request.amount.CopyFrom(order.amount)
            request.card.CopyFrom(order.card)
            request.customer.CopyFrom(order.customer)
        return await _ask(self._stub.BatchAuthorizePayments, batch, wave, deadline, _authorized)

    async def undo(self, wave: Wave, deadline: Deadline) -> list[Result]:
        batch = payment_pb2.BatchVoidPaymentsRequest()
        for (item, saga, _), do_key in zip(
            _items(batch, wave, wave.undo_keys()), wave.do_keys(), strict=True
        ):
            item.request.merchant_id = saga.merchant_id
            item.request.authorize_key = do_key
            item.request.note = saga.reason.code[:200] if saga.reason else ""
        return await _ask(self._stub.BatchVoidPayments, batch, wave, deadline, _undone)


class Shipping:
    """Step "ship"."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = shipping_pb2_grpc.ShippingServiceStub(channel)

    async def do(self, wave: Wave, deadline: Deadline) -> list[Result]:
        batch = shipping_pb2.BatchCreateShipmentsRequest()
        for item, saga, order in _items(batch, wave, wave.do_keys()):
            request = item.request
            request.merchant_id = saga.merchant_id
            request.order_id = saga.order_id
            request.address.CopyFrom(order.shipping_address)
        return await _ask(self._stub.BatchCreateShipments, batch, wave, deadline, _booked)

    async def undo(self, wave: Wave, deadline: Deadline) -> list[Result]:
        batch = shipping_pb2.BatchCancelShipmentsRequest()
        for (item, saga, _), do_key in zip(
            _items(batch, wave, wave.undo_keys()), wave.do_keys(), strict=True
        ):
            item.request.merchant_id = saga.merchant_id
            item.request.create_key = do_key
        return await _ask(self._stub.BatchCancelShipments, batch, wave, deadline, _undone)


def _items(batch: Any, wave: Wave, keys: Sequence[str]) -> Iterator[tuple[Any, Saga, pb.PlaceOrderRequest]]:
    """A new item of `batch` for each saga, with its key and its trace. Filled field by field, here and by the callers:
    the arguments of a message's constructor, or of `add`, take twice as long."""
    add = batch.items.add
    for saga, order, span, key in zip(wave.sagas, wave.orders, wave.spans, keys, strict=True):
        item = add()
        item.idempotency_key = key
        if span is not None:
            item.traceparent = traceparent_of(span)
        yield item, saga, order


def _by_weight(wave: Wave, lines_max: int) -> Iterator[Wave]:
    """The wave in parts of at most so many order lines; a single order may have more."""
    start = lines = 0
    for place, order in enumerate(wave.orders):
        weight = len(order.lines)
        if place > start and lines + weight > lines_max:
            yield wave.part(start, place)
            start, lines = place, 0
        lines += weight
    if start < len(wave.orders):
        yield wave.part(start, len(wave.orders)) if start else wave


async def _ask(method: Any, batch: Any, wave: Wave, deadline: Deadline, read: Any) -> list[Result]:
    try:
        response = await call(method, batch, deadline, spans=wave.spans)
    except PaymeshError as error:
        return [_failed(error)] * len(wave.sagas)
    return [
        read(result.response) if result.HasField("response") else _failed(from_failure(result.failure))
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
    return Result(Outcome.DONE, "", "", {"reservation_id": response.reservation.reservation_id})


def _authorized(response: payment_pb2.AuthorizePaymentResponse) -> Result:
    payment = response.payment
    if payment.state == payment_pb2.PAYMENT_STATE_AUTHORIZED:
        facts = {"payment_id": payment.payment_id, "auth_code": payment.auth_code}
        return Result(Outcome.DONE, "", "", facts)
    state = payment_pb2.PaymentState.Name(payment.state).removeprefix("PAYMENT_STATE_").lower()
    reason = payment.decline_reason or state.upper()
    facts = {"payment_id": payment.payment_id}
    return Result(Outcome.REFUSED, reason, f"the payment was {state}: {reason}", facts)


def _booked(response: shipping_pb2.CreateShipmentResponse) -> Result:
    shipment = response.shipment
    facts = {"shipment_id": shipment.shipment_id, "tracking_number": shipment.tracking_number}
    return Result(Outcome.DONE, "", "", facts)


def _undone(_: Any) -> Result:
    return Result(Outcome.DONE)
