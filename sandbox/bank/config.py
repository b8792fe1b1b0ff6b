"""Every knob of the sandbox bank."""

from __future__ import annotations

from pydantic import Field, SecretStr

from services.kit.config import ServiceConfig


class BankConfig(ServiceConfig):
    """How quick the bank is, and how it makes tokens."""

    latency_ms: int = Field(default=2, ge=0, le=60_000)
    """Every call takes at least this long, once per call however many items it carries: a batch travels as
    one message. Two milliseconds can be seen in a trace and do not rule what is measured around the bank; a
    real network takes 100 to 1,000."""
    soft_deadline_ms: int = Field(default=300, ge=1, le=600_000)
    """An operation that takes at least this long is answered IN_PROGRESS and goes on in the background. Above
    what a good day needs, below the 500 ms within which an authorization should be decided. A large value
    makes the bank keep its callers waiting instead."""
    fee_basis_points: int = Field(default=60, ge=0, le=10_000)
    """What the bank keeps of a capture when it settles, in ten-thousandths: about what card schemes and acquirers
    take together in Europe."""
    fee_fixed_minor: int = Field(default=5, ge=0, le=1_000_000)
    """And a fixed part per capture, in minor units. Together they are never more than the capture."""
    token_secret: SecretStr = Field(default=SecretStr("paymesh-sandbox"), min_length=1)
    """Key of the hash that makes tokens of card numbers that are not test cards. It may stand here because it
    guards nothing: there are no real cards at this bank."""
