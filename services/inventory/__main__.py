"""Wires the inventory service. Run it with `python -m services.inventory`."""

from __future__ import annotations

from paymesh.inventory.v1 import inventory_pb2_grpc
from services.inventory.config import InventoryConfig
from services.inventory.service import NAME, InventoryService
from services.kit.events import open_bus, publish
from services.kit.process import Process, run


async def wire(process: Process, config: InventoryConfig) -> None:
    """One servicer, and a relay for what is announced."""
    service = InventoryService(process.database)
    process.serve(inventory_pb2_grpc.add_InventoryServiceServicer_to_server, service, NAME)
    publish(process, "inventory", open_bus(process, config.valkey_url), config)


if __name__ == "__main__":
    run("inventory", InventoryConfig, wire)
