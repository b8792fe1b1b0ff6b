"""Shipping's part in a choreographed order: it books when the money is held."""

from __future__ import annotations

from paymesh.choreography.v1 import choreography_pb2
from paymesh.shipping.v1 import shipping_pb2 as pb
from services.kit.events.choreography import Part, Said, Way, Ways
from services.shipping.service.rpcs import ShippingService

BY_ORCHESTRATOR: Ways = {choreography_pb2.SagaTimedOut: Way.UNDO}
BY_PAYMENT: Ways = {choreography_pb2.StepDone: Way.DO}


def part_of(service: ShippingService) -> Part:
    """Step "ship"."""
    return Part(
        "ship",
        service.creating,
        service.cancelling,
        request=lambda slip: pb.CreateShipmentRequest(
            merchant_id=slip.merchant_id, order_id=slip.order_id, address=slip.order.shipping_address
        ),
        undo_request=lambda slip, key: pb.CancelShipmentRequest(merchant_id=slip.merchant_id, create_key=key),
        read=lambda response: Said(
            {
                "shipment_id": response.shipment.shipment_id,
                "tracking_number": response.shipment.tracking_number,
            }
        ),
    )
