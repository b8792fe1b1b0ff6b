"""How long to wait before the next attempt: exponential, capped, with jitter so that failures do not march in step."""

from __future__ import annotations

import random
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Backoff:
    """A retry policy. Attempt 1 is the first try; `delay_ms(1)` is the wait between attempts 1 and 2."""

    first_ms: int
    factor: int
    max_ms: int
    attempts_max: int

    def delay_ms(self, attempt: int, jitter: float | None = None) -> int:
        """Milliseconds to wait after failed attempt `attempt` (>= 1): between half and all of the exponential value.
        `jitter` in [0, 1) replaces the dice."""
        exponential = min(self.max_ms, self.first_ms * self.factor ** min(attempt - 1, 30))
        spread = random.random() if jitter is None else jitter  # noqa: S311 - not for secrets
        return int(exponential * (0.5 + spread / 2))

    def exhausted(self, attempt: int) -> bool:
        """Whether attempt `attempt` was the last one."""
        return attempt >= self.attempts_max
