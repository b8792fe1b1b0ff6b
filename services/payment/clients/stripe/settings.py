"""Every knob of Stripe."""

from __future__ import annotations

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings

KEY_VARIABLE = "PAYMESH_PAYMENT_STRIPE_KEY"


class StripeSettings(BaseSettings):
    """Environment variables PAYMESH_PAYMENT_STRIPE_…"""

    key: SecretStr = SecretStr("")
    """The secret key, `sk_…`, or a restricted one, `rk_…`, that may write PaymentIntents and refunds. Empty: Stripe is
    not set up."""
    url: str = Field(default="https://api.stripe.com", pattern=r"^https?://[^\s]+$")
    """Where Stripe is; another address is for tests."""
    seconds: float = Field(default=6.0, gt=0, le=60)
    """How long a call may take before its outcome counts as unknown. A card's bank mostly takes one or two; with the
    fraud check it stays below the 10 s that our caller has."""
    calls_max: int = Field(default=32, ge=1, le=1_000)
    """Calls under way in one process. Stripe takes a hundred a second, and each takes half a second or so; more at once
    are answered with rate limits."""
    failures_max: int = Field(default=10, ge=1, le=1_000)
    """Calls in a row without any answer after which Stripe is left alone."""
    probe_seconds: float = Field(default=1.0, gt=0, le=60)
    """While it is left alone, one call per this time asks whether it is back."""

    @field_validator("key")
    @classmethod
    def _is_secret(cls, key: SecretStr) -> SecretStr:
        text = key.get_secret_value()
        if text.startswith("pk_"):
            raise ValueError("this is the publishable key; the secret one begins with sk_ or rk_")
        if text and not (text.startswith(("sk_", "rk_")) and text.isascii() and " " not in text):
            raise ValueError("a key of Stripe's begins with sk_ or rk_")
        return key

    @property
    def test(self) -> bool:
        """Whether no real money moves with this key."""
        return "_test_" in self.key.get_secret_value()
