"""The time of day, in one place. Everything is UTC; monotonic time is `services.kit.deadline`'s."""

from __future__ import annotations

import time
from datetime import UTC, datetime


def now() -> datetime:
    """This instant, aware, UTC."""
    return datetime.now(UTC)


def now_ms() -> int:
    """This instant as milliseconds since 1970."""
    return time.time_ns() // 1_000_000
