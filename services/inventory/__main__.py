"""Wires the inventory service. Run it with `python -m services.inventory`."""

from __future__ import annotations

from paymesh.inventory.v1 import inventory_pb2_grpc
from services.inventory.config import InventoryConfig
from services.inventory.service import NAME, InventoryService, choreography
from services.kit.events import open_bus, publish, take_part
from services.kit.process import Process, run


async def wire(process: Process, config: InventoryConfig) -> None:
    """One servicer, and a relay for what is announced."""
    service = InventoryService(process.database)
    process.serve(inventory_pb2_grpc.add_InventoryServiceServicer_to_server, service, NAME)
    bus = open_bus(process, config.valkey_url)
    publish(process, "inventory", bus, config)
    part = choreography.part_of(service)
    take_part(
        process,
        "inventory",
        bus,
        "orchestrator",
        config.orchestrator_target,
        part,
        choreography.BY_ORCHESTRATOR,
    )
    take_part(process, "inventory", bus, "payment", config.payment_target, part, choreography.BY_PAYMENT)


if __name__ == "__main__":
    run("inventory", InventoryConfig, wire)
