"""Every knob of the inventory service."""

from __future__ import annotations

from services.kit.config import EventsConfig


class InventoryConfig(EventsConfig):
    """Inventory needs nothing beyond what every service needs."""
