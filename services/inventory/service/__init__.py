"""The contract's side of inventory: RPCs in, domain, RPCs out."""

from services.inventory.service.rpcs import NAME, InventoryService

__all__ = ["NAME", "InventoryService"]
