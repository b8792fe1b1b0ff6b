"""Deadlines: how long a caller still waits, as a point of monotonic time that is handed from call to call."""

from __future__ import annotations

import time
from dataclasses import dataclass

ANSWER_MARGIN_SECONDS = 0.05
"""What a server keeps of its caller's time for itself: enough to write down the outcome and to tell the caller before
the caller gives up."""


@dataclass(frozen=True, slots=True)
class Deadline:
    """A point of monotonic time."""

    at: float

    @classmethod
    def after(cls, seconds: float) -> Deadline:
        """The deadline `seconds` from now."""
        return cls(time.monotonic() + seconds)

    def remaining(self) -> float:
        """Seconds left, never negative."""
        return max(0.0, self.at - time.monotonic())

    def expired(self) -> bool:
        """Whether no time is left."""
        return self.at <= time.monotonic()

    def clamp(self, seconds: float, margin_seconds: float = ANSWER_MARGIN_SECONDS) -> Deadline:
        """For a callee: the smaller of its own `seconds` and what is left here, less the margin."""
        return Deadline(min(time.monotonic() + seconds, self.at - margin_seconds))
