"""Every knob of the inventory service."""

from __future__ import annotations

from services.kit.config import EventsConfig


class InventoryConfig(EventsConfig):
    """What inventory needs beyond what every service needs."""

    orchestrator_target: str = ""
    """gRPC target of the orchestrator, whose events move choreographed orders here. Empty: it is not listened to."""
    payment_target: str = ""
    """gRPC target of payment, whose events move choreographed orders here. Empty: it is not listened to."""
