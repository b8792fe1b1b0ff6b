"""The sliding windows of velocity, kept in Valkey: one round trip for a set, and never a hang.

Valkey holds them because they are derived and short-lived: losing them all costs an hour of memory and no
money. The counting is done by `count.lua`; `layout.lua` describes the data, and `families` what is said.

An answer that does not come within the budget is not waited for: `count` returns None and the caller decides
without. After some failures in a row Valkey is left alone but for a probe (see `breaker`). A set touches keys
everywhere, so this needs one Valkey server (with replicas if you like), not a cluster.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Coroutine, Sequence
from datetime import datetime
from importlib.resources import files
from typing import Any, NamedTuple, TypeVar

from prometheus_client import Counter
from valkey.asyncio import Valkey
from valkey.exceptions import NoScriptError, ValkeyError

from services.fraud.families import Counted, Families, Sighting
from services.fraud.rules import Rules
from services.kit.breaker import Breaker

T = TypeVar("T")

log = logging.getLogger(__name__)

CONNECTIONS_MAX = 16
"""A few sets are in flight at a time; the rest is room for connections that are being given up."""

FAILURES = Counter(
    "paymesh_fraud_window_failures_total", "Sets for which the window store did not answer in time."
)


class _Script(NamedTuple):
    text: bytes
    sha: str


class Windows:
    """The windows of one process. Nothing is connected before the first count."""

    def __init__(
        self, url: str, rules: Rules, *, members_max: int, timeout_ms: int, breaker: Breaker
    ) -> None:
        self._client = Valkey.from_url(url, max_connections=CONNECTIONS_MAX)
        self._families = Families(rules, members_max)
        self._timeout_seconds = timeout_ms / 1000
        self._breaker = breaker
        self._count = _script("layout.lua", "count.lua")
        self._forget = _script("layout.lua", "forget.lua")
        self._abandoned: set[asyncio.Task[Any]] = set()

    async def count(self, sightings: Sequence[Sighting], at: datetime) -> list[Counted] | None:
        """Count a set at the instant `at`; None when Valkey does not answer in time or is being left
        alone."""
        if not self._breaker.admits(time.monotonic()):
            return None
        tally = self._families.count(sightings, _ms(at))
        reply: bytes | None = await self._guarded(self._run(self._count, tally.arguments))
        return None if reply is None else tally.read(reply)

    async def forget(self, counted: Sequence[tuple[Sighting, Counted]], at: datetime) -> None:
        """Take back sightings of the instant `at` that turned out to be repeats from beyond the windows' memory. Best
        effort: what stays behind counts one payment too many until it leaves its window."""
        if not counted or self._breaker.open:
            return
        await self._guarded(self._run(self._forget, self._families.forget(counted, _ms(at))))

    async def close(self) -> None:
        """Give the connections back."""
        await self._client.aclose()

    async def _run(self, script: _Script, arguments: Sequence[bytes]) -> Any:
        try:
            return await self._client.evalsha(script.sha, 0, *arguments)
        except NoScriptError:  # the first call, or Valkey started anew; EVAL makes it known
            return await self._client.eval(script.text, 0, *arguments)

    async def _guarded(self, work: Coroutine[Any, Any, T]) -> T | None:
        """Do `work` within the budget and tell the breaker; None when it failed."""
        try:
            result = await self._in_time(work)
        except (ValkeyError, OSError) as error:  # TimeoutError is an OSError
            FAILURES.inc()
            self._breaker.failed(time.monotonic())
            log.warning("the window store did not answer: %s", error or type(error).__name__)
            return None
        if self._breaker.open:
            log.warning("the window store answers again")
        self._breaker.succeeded()
        return result

    async def _in_time(self, work: Coroutine[Any, Any, T]) -> T:
        """Raises TimeoutError. Work that is late is cancelled and *not* waited for: closing a connection to a
        host that is gone can itself take long. A reply that has come while the loop was busy with another set
        still counts, because `wait` looks once more when it wakes up; a timeout around the work would not."""
        task = asyncio.create_task(work)
        try:
            done, _ = await asyncio.wait((task,), timeout=self._timeout_seconds)
        finally:
            if not task.done():
                task.cancel()
                self._abandoned.add(task)
                task.add_done_callback(self._gone)
        if not done:
            raise TimeoutError(f"no answer within {self._timeout_seconds * 1000:.0f} ms")
        return task.result()

    def _gone(self, task: asyncio.Task[Any]) -> None:
        self._abandoned.discard(task)
        if not task.cancelled():
            task.exception()  # seen; nobody is interested any more


def _script(*names: str) -> _Script:
    """One script of several files; the first ones define what the last one uses."""
    text = b"\n".join([files(__package__).joinpath(name).read_bytes() for name in names])
    return _Script(text, hashlib.sha1(text, usedforsecurity=False).hexdigest())


def _ms(at: datetime) -> int:
    return int(at.timestamp() * 1000)
