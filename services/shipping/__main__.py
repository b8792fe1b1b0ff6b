"""Wires the shipping service. Run it with `python -m services.shipping`."""

from __future__ import annotations

from paymesh.shipping.v1 import shipping_pb2_grpc
from services.kit.events import open_bus, publish, take_part
from services.kit.process import Process, run
from services.shipping.config import ShippingConfig
from services.shipping.service import NAME, ShippingService, choreography


async def wire(process: Process, config: ShippingConfig) -> None:
    """One servicer, and a relay for what is announced."""
    service = ShippingService(process.database, config.unserved_countries)
    process.serve(shipping_pb2_grpc.add_ShippingServiceServicer_to_server, service, NAME)
    bus = open_bus(process, config.valkey_url)
    publish(process, "shipping", bus, config)
    part = choreography.part_of(service)
    take_part(
        process,
        "shipping",
        bus,
        "orchestrator",
        config.orchestrator_target,
        part,
        choreography.BY_ORCHESTRATOR,
    )
    take_part(process, "shipping", bus, "payment", config.payment_target, part, choreography.BY_PAYMENT)


if __name__ == "__main__":
    run("shipping", ShippingConfig, wire)
