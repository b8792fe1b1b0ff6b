"""Every knob of the inventory service."""

from __future__ import annotations

from services.kit.config import ServiceConfig


class InventoryConfig(ServiceConfig):
    """Inventory needs nothing beyond what every service needs."""
