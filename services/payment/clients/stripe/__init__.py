"""Stripe. `processor` asks, `answers` reads what it says, `cards` and `amounts` say how it calls things."""

from services.payment.clients.stripe.processor import open_stripe

__all__ = ["open_stripe"]
