"""The participants that place an order: each does its part, and undoes it."""

from __future__ import annotations

import grpc.aio

from paymesh.inventory.v1 import inventory_pb2, inventory_pb2_grpc
from paymesh.payment.v1 import payment_pb2, payment_pb2_grpc
from paymesh.shipping.v1 import shipping_pb2, shipping_pb2_grpc
from services.kit.deadline import Deadline
from services.orchestrator.clients.waves import (
    LINES_PER_CALL_MAX,
    Result,
    Wave,
    ask,
    by_weight,
    done,
    items_of,
    undos_of,
)
from services.orchestrator.domain import Outcome


class Inventory:
    """Step "reserve"."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = inventory_pb2_grpc.InventoryServiceStub(channel)

    async def do(self, wave: Wave, deadline: Deadline) -> list[Result]:
        results: list[Result] = []
        for part in by_weight(wave, LINES_PER_CALL_MAX):
            results += await self._reserve(part, deadline)
        return results

    async def _reserve(self, wave: Wave, deadline: Deadline) -> list[Result]:
        batch = inventory_pb2.BatchReserveStockRequest()
        for item, saga, order in items_of(batch, wave, wave.do_keys()):
            request = item.request
            request.merchant_id = saga.merchant_id
            request.order_id = saga.order_id
            add = request.lines.add
            for ordered in order.lines:
                line = add()
                line.sku, line.quantity = ordered.sku, ordered.quantity
        return await ask(self._stub.BatchReserveStock, batch, wave, deadline, _reserved)

    async def undo(self, wave: Wave, deadline: Deadline) -> list[Result]:
        batch = inventory_pb2.BatchReleaseStockRequest()
        for item, saga, do_key in undos_of(batch, wave):
            item.request.merchant_id = saga.merchant_id
            item.request.reserve_key = do_key
        return await ask(self._stub.BatchReleaseStock, batch, wave, deadline, done)


class Payment:
    """Step "authorize"."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = payment_pb2_grpc.PaymentServiceStub(channel)

    async def do(self, wave: Wave, deadline: Deadline) -> list[Result]:
        batch = payment_pb2.BatchAuthorizePaymentsRequest()
        for item, saga, order in items_of(batch, wave, wave.do_keys()):
            request = item.request
            request.merchant_id = saga.merchant_id
            request.order_id = saga.order_id
            request.amount.CopyFrom(order.amount)
            request.card.CopyFrom(order.card)
            request.customer.CopyFrom(order.customer)
        return await ask(self._stub.BatchAuthorizePayments, batch, wave, deadline, _authorized)

    async def undo(self, wave: Wave, deadline: Deadline) -> list[Result]:
        batch = payment_pb2.BatchVoidPaymentsRequest()
        for item, saga, do_key in undos_of(batch, wave):
            item.request.merchant_id = saga.merchant_id
            item.request.authorize_key = do_key
            item.request.note = saga.reason.code[:200] if saga.reason else ""
        return await ask(self._stub.BatchVoidPayments, batch, wave, deadline, done)


class Shipping:
    """Step "ship"."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = shipping_pb2_grpc.ShippingServiceStub(channel)

    async def do(self, wave: Wave, deadline: Deadline) -> list[Result]:
        batch = shipping_pb2.BatchCreateShipmentsRequest()
        for item, saga, order in items_of(batch, wave, wave.do_keys()):
            request = item.request
            request.merchant_id = saga.merchant_id
            request.order_id = saga.order_id
            request.address.CopyFrom(order.shipping_address)
        return await ask(self._stub.BatchCreateShipments, batch, wave, deadline, _booked)

    async def undo(self, wave: Wave, deadline: Deadline) -> list[Result]:
        batch = shipping_pb2.BatchCancelShipmentsRequest()
        for item, saga, do_key in undos_of(batch, wave):
            item.request.merchant_id = saga.merchant_id
            item.request.create_key = do_key
        return await ask(self._stub.BatchCancelShipments, batch, wave, deadline, done)


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
