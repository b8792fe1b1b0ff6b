"""The contract's side of shipping: its RPCs, and its part in choreographed orders."""

from services.shipping.service.rpcs import NAME, ShippingService

__all__ = ["NAME", "ShippingService"]
