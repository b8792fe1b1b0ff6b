"""Every knob of the edge."""

from __future__ import annotations

from pydantic import Field, SecretStr, field_validator

from services.edge.domain.addresses import networks
from services.edge.domain.webhooks import RETRY_FIRST_MS, RETRY_SECONDS
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
    """Where requests are counted for the rate limit, and the bus that events come by."""
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
    """How long a key that was looked up is believed, and that there is no such key. A revoked key works for that long
    at most."""
    webhook_networks_allowed: str = ""
    """Networks with commas between them, "10.1.0.0/16,::1/128", that webhooks may be sent to, unencrypted too, although
    they are not public. Whoever has an API key may then have requests made there."""
    webhook_seconds: float = Field(default=10.0, gt=0, le=60)
    """How long one attempt may take, from the look-up of the name to the end of the answer. A receiver that has more to
    do takes the message and does it afterwards."""
    webhook_poll_ms: int = Field(default=500, ge=10, le=60_000)
    """How often is looked for what is due, while there is nothing."""
    webhook_each_at_once: int = Field(default=4, ge=1, le=128)
    """Attempts at one endpoint at a time, over all processes: a small shop's server is not overrun, and a slow one
    holds a few of our places only."""
    webhook_retry_seconds: float = Field(default=RETRY_SECONDS, ge=1)
    """How long a message is tried: three days."""
    webhook_retry_first_ms: int = Field(default=RETRY_FIRST_MS, ge=10)
    """The wait after the first failure, less up to a half; four times as long after each further one."""

    @field_validator("webhook_networks_allowed")
    @classmethod
    def _are_networks(cls, text: str) -> str:
        networks(text)
        return text
