"""How often a key may ask: a sliding window in Valkey, counted in one round trip.

The window is made of two fixed ones, the current and the one before; of the earlier as much counts as still lies within
the window. That is off by a few per cent at most, and costs two numbers a key instead of a list of instants.

Valkey is a convenience here. Does it not answer in time, the request is let through, and counted in
`paymesh_edge_unlimited_requests_total`: a shop that cannot sell because a counter is down has a worse problem than one
that sells too fast.
"""

from __future__ import annotations

import logging
import time

from prometheus_client import Counter
from valkey.exceptions import ValkeyError

from services.kit.breaker import Breaker
from services.kit.scripts import Script, Scripts

log = logging.getLogger(__name__)

CONNECTIONS_MAX = 64
UNLIMITED = Counter(
    "paymesh_edge_unlimited_requests_total", "Requests that were let through because Valkey did not answer."
)
LIMITED = Counter("paymesh_edge_limited_requests_total", "Requests that were turned away by the rate limit.")

_COUNT = Script(
    b"""
local before = tonumber(redis.call('GET', KEYS[2]) or '0')
local now = tonumber(redis.call('GET', KEYS[1]) or '0')
local window, passed, most = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
if before * (window - passed) / window + now >= most then
  return 0
end
redis.call('INCR', KEYS[1])
redis.call('PEXPIRE', KEYS[1], 2 * window)
return 1
"""
)


class Limiter:
    """Counts requests. Nothing is connected before the first one."""

    def __init__(
        self, url: str, *, requests_max: int, window_seconds: int, timeout_ms: int, breaker: Breaker
    ) -> None:
        self._scripts = Scripts(url, connections_max=CONNECTIONS_MAX, timeout_ms=timeout_ms)
        self._requests_max = requests_max
        self._window_ms = window_seconds * 1000
        self._breaker = breaker

    async def admits(self, key_id: str, at_ms: int) -> int:
        """Count a request of a key; 0 when it may pass, else the seconds after which it is worth another try."""
        if not self._requests_max:
            return 0
        if not self._breaker.admits(time.monotonic()):
            UNLIMITED.inc()
            return 0
        window, passed_ms = divmod(at_ms, self._window_ms)
        # In braces, so that both lie on one shard of a cluster.
        keys = [f"rate:{{{key_id}}}:{window}", f"rate:{{{key_id}}}:{window - 1}"]
        try:
            arguments = (*keys, self._window_ms, passed_ms, self._requests_max)
            passes = await self._scripts.run(_COUNT, arguments, keys=len(keys))
        except (ValkeyError, OSError) as error:  # TimeoutError is an OSError
            self._breaker.failed(time.monotonic())
            UNLIMITED.inc()
            log.warning("requests are not limited: %s", error or type(error).__name__)
            return 0
        self._breaker.succeeded()
        if passes:
            return 0
        LIMITED.inc()
        return max(1, -(-(self._window_ms - passed_ms) // 1000))

    async def close(self) -> None:
        """Give the connections back."""
        await self._scripts.close()
