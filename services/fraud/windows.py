"""The sliding windows of velocity, kept in Valkey: one round trip for a set, and never a hang.

Valkey holds them because they are derived and short-lived: losing them all costs an hour of memory and no
money. The counting is done by `count.lua`; `layout.lua` describes the data, and `families` what is said.

An answer that does not come within the budget is not waited for: `count` returns None and the caller decides
without. After some failures in a row Valkey is left alone but for a probe (see `breaker`). A set touches keys
everywhere, so this needs one Valkey server (with replicas if you like), not a cluster.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from datetime import datetime
from importlib.resources import files
from typing import Any

from prometheus_client import Counter
from valkey.exceptions import ValkeyError

from services.fraud.families import Counted, Families, Sighting
from services.fraud.rules import Rules
from services.kit.breaker import Breaker
from services.kit.scripts import Script, Scripts

log = logging.getLogger(__name__)

CONNECTIONS_MAX = 16
"""A few sets are in flight at a time; the rest is room for connections that are being given up."""

FAILURES = Counter(
    "paymesh_fraud_window_failures_total", "Sets for which the window store did not answer in time."
)


class Windows:
    """The windows of one process. Nothing is connected before the first count."""

    def __init__(
        self, url: str, rules: Rules, *, members_max: int, timeout_ms: int, breaker: Breaker
    ) -> None:
        self._scripts = Scripts(url, connections_max=CONNECTIONS_MAX, timeout_ms=timeout_ms)
        self._families = Families(rules, members_max)
        self._breaker = breaker
        self._count = _script("layout.lua", "count.lua")
        self._forget = _script("layout.lua", "forget.lua")

    async def count(self, sightings: Sequence[Sighting], at: datetime) -> list[Counted] | None:
        """Count a set at the instant `at`; None when Valkey does not answer in time or is being left
        alone."""
        if not self._breaker.admits(time.monotonic()):
            return None
        tally = self._families.count(sightings, _ms(at))
        reply: bytes | None = await self._guarded(self._count, tally.arguments)
        return None if reply is None else tally.read(reply)

    async def forget(self, counted: Sequence[tuple[Sighting, Counted]], at: datetime) -> None:
        """Take back sightings of the instant `at` that turned out to be repeats from beyond the windows' memory. Best
        effort: what stays behind counts one payment too many until it leaves its window."""
        if not counted or self._breaker.open:
            return
        await self._guarded(self._forget, self._families.forget(counted, _ms(at)))

    async def close(self) -> None:
        """Give the connections back."""
        await self._scripts.close()

    async def _guarded(self, script: Script, arguments: Sequence[bytes]) -> Any:
        """Run a script within the budget and tell the breaker; None when it failed."""
        try:
            result = await self._scripts.run(script, arguments)
        except (ValkeyError, OSError) as error:  # TimeoutError is an OSError
            FAILURES.inc()
            self._breaker.failed(time.monotonic())
            log.warning("the window store did not answer: %s", error or type(error).__name__)
            return None
        if self._breaker.open:
            log.warning("the window store answers again")
        self._breaker.succeeded()
        return result


def _script(*names: str) -> Script:
    """One script of several files; the first ones define what the last one uses."""
    return Script(b"\n".join([files(__package__).joinpath(name).read_bytes() for name in names]))


def _ms(at: datetime) -> int:
    return int(at.timestamp() * 1000)
