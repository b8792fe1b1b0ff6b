"""Wires the shipping service. Run it with `python -m services.shipping`."""

from __future__ import annotations

from paymesh.shipping.v1 import shipping_pb2_grpc
from services.kit.events import open_bus, publish
from services.kit.process import Process, run
from services.shipping.config import ShippingConfig
from services.shipping.service import NAME, ShippingService


async def wire(process: Process, config: ShippingConfig) -> None:
    """One servicer, and a relay for what is announced."""
    service = ShippingService(process.database, config.unserved_countries)
    process.serve(shipping_pb2_grpc.add_ShippingServiceServicer_to_server, service, NAME)
    publish(process, "shipping", open_bus(process, config.valkey_url), config)


if __name__ == "__main__":
    run("shipping", ShippingConfig, wire)
