"""Inventory's part in a choreographed order: it reserves when an order was accepted, and gives back when payment has
said no or has let go."""

from __future__ import annotations

from paymesh.choreography.v1 import choreography_pb2
from paymesh.inventory.v1 import inventory_pb2 as pb
from services.inventory.service.rpcs import InventoryService
from services.kit.events.choreography import Part, Said, Way, Ways

BY_ORCHESTRATOR: Ways = {choreography_pb2.SagaBegun: Way.DO, choreography_pb2.SagaTimedOut: Way.UNDO}
BY_PAYMENT: Ways = {choreography_pb2.StepRefused: Way.UNDO, choreography_pb2.StepUndone: Way.UNDO}


def part_of(service: InventoryService) -> Part:
    """Step "reserve"."""
    return Part(
        "reserve",
        service.reserving,
        service.releasing,
        request=_reserve,
        undo_request=lambda slip, key: pb.ReleaseStockRequest(merchant_id=slip.merchant_id, reserve_key=key),
        read=lambda response: Said({"reservation_id": response.reservation.reservation_id}),
    )


def _reserve(slip: choreography_pb2.Slip) -> pb.ReserveStockRequest:
    request = pb.ReserveStockRequest(merchant_id=slip.merchant_id, order_id=slip.order_id)
    for line in slip.order.lines:
        request.lines.add(sku=line.sku, quantity=line.quantity)
    return request
