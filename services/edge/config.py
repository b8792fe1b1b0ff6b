"""Every knob of the edge."""

from __future__ import annotations

from pydantic import Field, SecretStr

from services.kit.config import ServiceConfig


class EdgeConfig(ServiceConfig):
    """What the edge needs beyond what every service needs. `listen` is where it answers HTTP."""

    payment_target: str = Field(min_length=1)
    """gRPC target of payment."""
    orchestrator_target: str = Field(min_length=1)
    """gRPC target of the orchestrator."""
    bank_target: str = Field(min_length=1)
    """gRPC target of the processor's gateway, which exchanges card numbers for tokens."""
    valkey_url: str = Field(pattern=r"^(valkey|valkeys|redis|rediss|unix)://.+")
    """Where requests are counted for the rate limit."""
    key_secret: SecretStr = Field(min_length=32)
    """What API keys are hashed with, and cards' fingerprints made with. Whoever changes it locks every merchant out."""
    vault_key: SecretStr = Field(min_length=32)
    """What the vault's card numbers are sealed with."""
    vault_keys_old: SecretStr = SecretStr("")
    """Earlier values of `vault_key`, with commas between them: what they have sealed can still be opened."""
    workers: int = Field(default=1, ge=1, le=64)
    """Processes that share the port. One per core that the edge may use: each serves on one core."""
    payment_seconds: float = Field(default=10.0, gt=0, le=60)
    """How long a payment may take before its caller is told to ask again: as long as payment itself takes its time."""
    order_seconds: float = Field(default=25.0, gt=0, le=60)
    """The same for an order. Below the 30 s after which HTTP clients mostly give up."""
    read_seconds: float = Field(default=5.0, gt=0, le=60)
    """The same for what changes nothing."""
    body_bytes_max: int = Field(default=262_144, ge=1_024, le=16_777_216)
    """Largest body. An order of 1,000 lines with long names fits."""
    body_seconds: float = Field(default=10.0, gt=0, le=120)
    """How long a body may take to arrive: nobody needs a minute for 256 kB, except to keep us busy."""
    requests_max: int = Field(default=2_000, ge=1)
    """Requests in progress in one process; what comes on top is told to come back."""
    rate_max: int = Field(default=5_000, ge=0)
    """Requests of one API key per window; 0 for no limit. Ten times what a busy shop sends."""
    rate_window_seconds: int = Field(default=10, ge=1, le=3_600)
    """The window of `rate_max`."""
    valkey_timeout_ms: int = Field(default=50, ge=1, le=5_000)
    """Longest wait for a count. It takes less than a millisecond; without an answer the request is let through."""
    valkey_failures_max: int = Field(default=3, ge=1, le=1_000)
    """Failures in a row after which Valkey is left alone."""
    valkey_probe_seconds: float = Field(default=1.0, gt=0, le=60)
    """While it is left alone, one request per this time asks whether it is back."""
    grant_seconds: float = Field(default=2.0, ge=0, le=60)
    """How long a key that was looked up is believed. A revoked key works for that long at most."""
