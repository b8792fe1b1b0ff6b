"""Every knob of the reconciler."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator

from services.kit.config import EventsConfig
from services.reconciler.rule_file import BUILT_IN_RULES


class ReconcilerConfig(EventsConfig):
    """Configuration of the reconciler; environment variables PAYMESH_RECONCILER_…"""

    payment_target: str = Field(min_length=1)
    """gRPC target of the payment service."""
    payment_seconds: float = Field(default=10.0, gt=0, le=60)
    """How long a page of items, or a correction, may take."""
    connection_grace_seconds: float = Field(default=3_600.0, ge=60)
    """How long a call may outlive its connection's age: a large statement takes its time."""
    rules_file: Path = BUILT_IN_RULES
    """How lines and items are matched, see rules.toml."""
    maps_folder: str = ""
    """Column maps of the CSV files that banks send, `.toml` each, see docs/statements.md; empty: the built-in ones."""
    spool_folder: str = ""
    """Where statements lie while they are read; empty: the system's folder for temporary files."""
    file_bytes_max: int = Field(default=17_179_869_184, ge=1)
    """Largest statement that is taken: 16 GiB. It is never in memory; this is so that no caller fills the disk."""
    nightly_folder: str = ""
    """A folder of statements, one folder in it for each merchant; empty: nothing is reconciled by night."""
    nightly_at: Annotated[str, Field(pattern=r"^([01]\d|2[0-3]):[0-5]\d$")] = "03:00"
    """When the night's run begins, UTC: behind midnight, when settlements have been made and banks have sent theirs."""
    nightly_poll_seconds: float = Field(default=30.0, gt=0, le=3_600)
    """How often the clock is looked at; also how soon a run that failed is tried again."""
    reach_back_days: int = Field(default=3, ge=0, le=366)
    """How many days that were complete are asked for again: a settlement may still be made for one of them."""
    post_poll_seconds: float = Field(default=1.0, gt=0, le=60)
    """How often approved corrections that are not posted yet are looked for."""
    post_first_ms: int = Field(default=1_000, ge=10, le=60_000)
    """Wait before a correction is asked for again; doubles with every attempt."""
    post_max_ms: int = Field(default=60_000, ge=10, le=3_600_000)
    """Longest wait between two attempts."""

    @field_validator("rules_file", mode="before")
    @classmethod
    def _default(cls, value: object) -> object:
        return value or BUILT_IN_RULES
