"""Stripe. `processor` asks, `answers` reads what it says, `cards` and `amounts` say how it calls things."""

from __future__ import annotations

import logging

from services.kit.config import load
from services.payment.clients.processor import NotSetUp, Processor
from services.payment.clients.stripe.settings import KEY_VARIABLE, StripeSettings
from services.payment.config import PaymentConfig

__all__ = ["open_stripe"]

log = logging.getLogger(__name__)


async def open_stripe(config: PaymentConfig) -> Processor:
    """See `Opener`. Asks Stripe whether it accepts the key; should Stripe not answer at all, that can wait."""
    settings = load(StripeSettings, "payment", "stripe")
    if not settings.key.get_secret_value():
        raise NotSetUp(f"set {KEY_VARIABLE} to Stripe's secret key (PAYMESH_STRIPE_KEY with `paymesh up`)")
    # Its library takes most of a second and 20 MB, which is for those who use it.
    from services.payment.clients.stripe.processor import StripeProcessor

    processor = StripeProcessor(settings)
    await processor.check()
    log.info("payments may go to Stripe, with a %s key", "test" if settings.test else "live")
    return processor
