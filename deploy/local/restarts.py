"""When a process that died is started again, and when we stop trying. Pure: the caller brings the time."""

from collections import deque
from dataclasses import dataclass, field

EXIT_CODE_OF_A_CONFIGURATION_MISTAKE = 2


@dataclass(frozen=True)
class RestartPolicy:
    """The limits of restarting one process."""

    restarts_max: int = 20
    """At most this many within the window: more is a fault that restarting does not cure."""
    window_seconds: float = 60.0
    failed_starts_max: int = 5
    """This many starts in a row without ever serving is a program that cannot start."""
    backoff_seconds: float = 0.1
    """The first restart is almost at once; each further one waits twice as long."""
    backoff_seconds_max: float = 2.0
    calm_seconds: float = 10.0
    """Having served this long, the process counts as healthy and the waits begin anew."""


@dataclass
class RestartRecord:
    """What one process has done so far."""

    policy: RestartPolicy
    count: int = 0
    """All restarts since the mesh was started."""
    _recent: deque[float] = field(default_factory=deque)
    _failed_starts: int = 0
    _in_a_row: int = 0

    def decide(self, now: float, *, served_seconds: float | None, exit_code: int | None) -> float | str:
        """Seconds to wait before the next start, or a sentence that says why there is none.

        `served_seconds` is None when the process never became ready this time.
        """
        policy = self.policy
        self._failed_starts = self._failed_starts + 1 if served_seconds is None else 0
        if served_seconds is not None and served_seconds >= policy.calm_seconds:
            self._in_a_row = 0
        if served_seconds is None and exit_code == EXIT_CODE_OF_A_CONFIGURATION_MISTAKE:
            return "its configuration is wrong"
        if self._failed_starts >= policy.failed_starts_max:
            return f"it failed to start {self._failed_starts} times in a row"
        while self._recent and self._recent[0] <= now - policy.window_seconds:
            self._recent.popleft()
        if len(self._recent) >= policy.restarts_max:
            return f"it was restarted {len(self._recent)} times within {policy.window_seconds:g} s"
        self._recent.append(now)
        self.count += 1
        self._in_a_row += 1
        # The exponent is bounded so that a long series cannot overflow the float.
        return min(policy.backoff_seconds * 2.0 ** min(self._in_a_row - 1, 30), policy.backoff_seconds_max)
