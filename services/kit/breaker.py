"""A circuit breaker: after some failures in a row leave a dead store alone, and ask it now and then whether
it is back."""

from __future__ import annotations


class Breaker:
    """Closed it admits everybody; open it admits one caller per `probe_seconds`, whose success closes it.
    Times are seconds of any monotonic clock, passed in."""

    __slots__ = ("_failures", "_failures_max", "_probe_at", "_probe_seconds")

    def __init__(self, *, failures_max: int, probe_seconds: float) -> None:
        self._failures_max = failures_max
        self._probe_seconds = probe_seconds
        self._failures = 0
        self._probe_at = 0.0

    @property
    def open(self) -> bool:
        """Whether the store is being left alone."""
        return self._failures >= self._failures_max

    def admits(self, now: float) -> bool:
        """Whether the store may be asked now. An admitted caller reports what came of it."""
        if not self.open:
            return True
        if now < self._probe_at:
            return False
        self._probe_at = now + self._probe_seconds
        return True

    def succeeded(self) -> None:
        """The store answered."""
        self._failures = 0

    def failed(self, now: float) -> None:
        """The store did not answer."""
        self._failures += 1
        self._probe_at = now + self._probe_seconds
