"""The participants of a placed order: dispatch, cancel, return. Their steps cannot be undone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import grpc.aio

from paymesh.inventory.v1 import inventory_pb2, inventory_pb2_grpc
from paymesh.orchestrator.v1 import stored_pb2
from paymesh.payment.v1 import payment_pb2, payment_pb2_grpc
from paymesh.shipping.v1 import shipping_pb2, shipping_pb2_grpc
from services.kit.deadline import Deadline
from services.kit.errors import PaymeshError
from services.kit.rpc.client import call
from services.orchestrator.clients.waves import (
    LINES_PER_CALL_MAX,
    Participant,
    Result,
    Wave,
    ask,
    by_weight,
    done,
    failed_for_good,
    items_of,
)
from services.orchestrator.domain import Outcome


@dataclass(frozen=True, slots=True)
class OneWay:
    """A step without an undo."""

    method: Any
    """Of a stub; takes a batch."""
    batch: Callable[[], Any]
    fill: Callable[[Any, stored_pb2.OrderTask], None]
    """Writes a saga's request, but for the merchant."""
    read: Callable[[Any], Result] = done

    async def do(self, wave: Wave, deadline: Deadline) -> list[Result]:
        """Take the step for a wave of sagas."""
        results: list[Result] = []
        for part in by_weight(wave, LINES_PER_CALL_MAX):
            batch = self.batch()
            for item, saga, task in items_of(batch, part, part.do_keys()):
                item.request.merchant_id = saga.merchant_id
                self.fill(item.request, task)
            results += await ask(self.method, batch, part, deadline, self.read, failed_for_good)
        return results

    async def undo(self, wave: Wave, deadline: Deadline) -> list[Result]:
        """Never asked for: no plan has an undo for it."""
        raise AssertionError(f"{wave.step} cannot be undone")


def one_way_participants(
    inventory: grpc.aio.Channel, payment: grpc.aio.Channel, shipping: grpc.aio.Channel
) -> Mapping[str, Participant]:
    """By the names of their steps."""
    stock = inventory_pb2_grpc.InventoryServiceStub(inventory)
    money = payment_pb2_grpc.PaymentServiceStub(payment)
    goods = shipping_pb2_grpc.ShippingServiceStub(shipping)
    return {
        "capture": OneWay(
            money.BatchCapturePayments, payment_pb2.BatchCapturePaymentsRequest, _capture, _captured
        ),
        "dispatch": OneWay(
            goods.BatchDispatchShipments, shipping_pb2.BatchDispatchShipmentsRequest, _shipment
        ),
        "commit": OneWay(stock.BatchCommitStock, inventory_pb2.BatchCommitStockRequest, _reservation),
        "call_off": OneWay(goods.BatchCancelShipments, shipping_pb2.BatchCancelShipmentsRequest, _shipment),
        "void": OneWay(money.BatchVoidPayments, payment_pb2.BatchVoidPaymentsRequest, _payment),
        "release": OneWay(stock.BatchReleaseStock, inventory_pb2.BatchReleaseStockRequest, _reservation),
        "refund": OneWay(
            money.BatchRefundPayments, payment_pb2.BatchRefundPaymentsRequest, _refund, _refunded
        ),
        "restock": OneWay(
            stock.BatchReturnStock, inventory_pb2.BatchReturnStockRequest, _restock, _restocked
        ),
    }


class Payments:
    """Looks payments up."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = payment_pb2_grpc.PaymentServiceStub(channel)

    async def find(self, merchant_id: str, payment_id: str, deadline: Deadline) -> payment_pb2.Payment | None:
        """A payment as it stands; None when payment does not tell in time."""
        request = payment_pb2.GetPaymentRequest(merchant_id=merchant_id, payment_id=payment_id)
        try:
            found: payment_pb2.GetPaymentResponse = await call(self._stub.GetPayment, request, deadline)
        except PaymeshError:
            return None
        return found.payment


def _shipment(request: Any, task: stored_pb2.OrderTask) -> None:
    request.shipment_id = task.order.shipment_id


def _reservation(request: Any, task: stored_pb2.OrderTask) -> None:
    request.reservation_id = task.order.reservation_id


def _payment(request: Any, task: stored_pb2.OrderTask) -> None:
    request.payment_id = task.order.payment_id
    request.note = task.note


def _capture(request: Any, task: stored_pb2.OrderTask) -> None:
    _payment(request, task)
    request.amount.CopyFrom(task.order.amount)
    request.final = True


def _refund(request: Any, task: stored_pb2.OrderTask) -> None:
    _payment(request, task)
    request.amount.CopyFrom(task.amount)


def _restock(request: Any, task: stored_pb2.OrderTask) -> None:
    _reservation(request, task)
    add = request.lines.add
    for back in task.lines:
        line = add()
        line.sku, line.quantity = back.sku, back.quantity


def _captured(response: payment_pb2.CapturePaymentResponse) -> Result:
    captured = response.payment.captured
    return Result(Outcome.DONE, "", "", {"captured_minor": str(captured.amount_minor)})


def _refunded(response: payment_pb2.RefundPaymentResponse) -> Result:
    refunded = response.payment.refunded
    return Result(Outcome.DONE, "", "", {"refunded_minor": str(refunded.amount_minor)})


def _restocked(response: inventory_pb2.ReturnStockResponse) -> Result:
    return Result(Outcome.DONE, "", "", {"return_id": response.stock_return.return_id})
