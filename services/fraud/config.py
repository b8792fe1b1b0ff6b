"""Every knob of the fraud service. What the rules are stands in the rule file."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, ValidationInfo, field_validator

from services.fraud.rule_file import read_rules
from services.kit.config import ServiceConfig

RULES_FILE = Path(__file__).with_name("rules.toml")


class FraudConfig(ServiceConfig):
    """What fraud needs beyond what every service needs."""

    valkey_url: str = Field(pattern=r"^(valkey|valkeys|redis|rediss|unix)://.+")
    """Where the windows are kept, for example "redis://:password@127.0.0.1:6379/0"."""
    valkey_timeout_ms: int = Field(default=100, ge=1, le=5_000)
    """Longest wait for the windows of one set, connecting included. A set takes about 10 ms; the rest is for
    a machine that is busy. Then the set is judged without them: an authorization must not wait for a store
    that is ill."""
    valkey_failures_max: int = Field(default=3, ge=1, le=1_000)
    """Failures in a row after which the windows are left alone, so that an outage costs the sets after it
    nothing."""
    valkey_probe_seconds: float = Field(default=1.0, gt=0, le=60)
    """While they are left alone, one set per this time asks them whether they are back."""
    window_members_max: int = Field(default=1_000, ge=1, le=10_000)
    """Payments that a window remembers at most; the oldest are forgotten. Bounds the time that a busy address
    costs. Each rule's windows keep just enough for the rule; no rule may count beyond this."""
    lists_refresh_seconds: float = Field(default=1.0, gt=0, le=60)
    """How long a change of a list made through another process may stay unknown here."""
    rules_file: Path = RULES_FILE
    """The rule file (TOML); by default the one beside this file."""

    @field_validator("rules_file")
    @classmethod
    def _has_rules(cls, path: Path, info: ValidationInfo) -> Path:
        if "window_members_max" in info.data:  # else that is the mistake to report
            read_rules(path, info.data["window_members_max"])
        return path
