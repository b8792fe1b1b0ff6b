"""The relay: gives announcements their positions, and puts them on the bus.

One relay of a service works at a time; the others of its processes stand by and take the lease when it runs out. So
what is one after the other in the log is one after the other on the bus, and nobody has to lock a row of the outbox.

What is authoritative: the log. A relay that dies between giving positions and sending leaves events that the bus does
not get, or gets twice from its successor; listeners heal the one and recognize the other. While the bus is away
positions are given all the same, for listeners then ask the log itself.

The hot path pays one entry at the end of an index. Rounds are as large as what has come up meanwhile, and no more than
one per `GATHER_SECONDS`: under load the relay's own work hardly shows.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import time
from collections.abc import Sequence

from prometheus_client import Counter, Gauge

from services.kit.backoff import Backoff
from services.kit.db import Database
from services.kit.events import log, wire
from services.kit.events.bus import SET_BYTES_MAX, Bus, BusError
from services.kit.events.log import Event, Head

logger = logging.getLogger(__name__)

LEASE_SECONDS = 6.0
"""How long a relay that has fallen silent keeps the others waiting."""
RENEW_SECONDS = 2.0
STANDBY_SECONDS = 1.0
"""How often one that stands by looks whether the lease is free."""
GATHER_SECONDS = 0.25
"""How long an announcement waits for others. A round costs the same for one as for hundreds, here and for everybody who
listens; a lone order has ended by then and need not share its processor with the news of it."""
GATHER_URGENT_SECONDS = 0.01
"""The same when somebody waits for what follows from it."""
POLL_SECONDS = 2.0
"""How often a quiet outbox is looked at. What this process has announced it is told of."""
POLL_SHARED_SECONDS = 0.25
"""The same where other processes stand by, for they announce, too."""
POLL_BUSY_SECONDS = 0.1
"""As long as they do."""
SENT_LATE_MAX = 100_000
"""Events that are sent late at most. Older ones would fall off the other end of the stream, and whoever listens has
asked for them long ago."""
WATCH_SECONDS = 5.0
"""How old the numbers about the backlog may be; alerts look at minutes."""
BACKLOG_COUNT_MAX = 10_000
FORGET_SECONDS = 60.0
FORGET_BATCHES_MAX = 20
_SECONDS_OF_A_DAY = 86_400

_AGAIN = Backoff(first_ms=100, factor=2, max_ms=5_000, attempts_max=1_000_000)
"""A bus that is away is tried at a bounded rate, for ever."""

WAITING = Gauge("paymesh_outbox_waiting", "Announcements that the bus does not have yet.", ("source",))
WAITING_SECONDS = Gauge("paymesh_outbox_waiting_seconds_max", "How old the oldest of them is.", ("source",))
SENT = Counter("paymesh_outbox_sent_total", "Events that were put on the bus.", ("source",))


class Relay:
    """Of one service. Without a bus it only gives positions. `keep_days` 0 keeps events for ever."""

    def __init__(self, database: Database, source: str, bus: Bus | None, keep_days: int = 0) -> None:
        self._database = database
        self._source = source
        self._bus = bus
        self._keep_seconds = keep_days * _SECONDS_OF_A_DAY
        self._name = f"{socket.gethostname()}-{os.getpid()}-{os.urandom(4).hex()}"
        self._hint = asyncio.Event()
        self._head: Head | None = None
        self._failures = 0
        self._bus_at = 0.0
        self._renew_at = 0.0
        self._watch_at = 0.0
        self._forget_at = 0.0
        self._found_at = 0.0
        self._urgent = asyncio.Event()
        self._shared = True

    def hint(self, urgent: bool = False) -> None:
        """Something was announced in this process, and is committed."""
        self._hint.set()
        if urgent:
            self._urgent.set()

    async def run(self) -> None:
        """Relay for ever."""
        try:
            while True:
                hinted = self._hint.is_set()
                self._hint.clear()
                self._urgent.clear()
                more = await self.round(hinted=hinted)
                if more:
                    continue
                await self._rest()
        finally:
            with contextlib.suppress(Exception):
                await self._leave()

    async def _leave(self) -> None:
        if self._head is not None:
            head, self._head = self._head, None
            await log.give_lease(self._database, self._name, head.sent)

    async def _rest(self) -> None:
        if self._head is None:
            await asyncio.sleep(STANDBY_SECONDS)
            return
        told = await _is_set(self._hint, self._quiet_seconds(self._head))
        if told and await _is_set(self._urgent, GATHER_SECONDS):
            await asyncio.sleep(GATHER_URGENT_SECONDS)

    def _quiet_seconds(self, head: Head) -> float:
        """How long to rest if nobody says that there is something."""
        now = time.monotonic()
        if self._bus is not None and head.sent < head.position:
            return max(0.0, min(self._bus_at - now, POLL_SECONDS))
        if not self._shared:
            return POLL_SECONDS
        return POLL_BUSY_SECONDS if now - self._found_at < 1.0 else POLL_SHARED_SECONDS

    async def round(self, *, hinted: bool = False) -> bool:
        """Number and send what is there; when `hinted` there is something. Returns whether there is more."""
        now = time.monotonic()
        try:
            if self._head is None or now >= self._renew_at:
                self._head = await self._hold(self._head)
                self._renew_at = now + RENEW_SECONDS
                if self._head is None:
                    return False
            events, more = await self._number(self._head, hinted)
        except BaseException:
            self._head = None  # what is true is read again
            raise
        if self._head is not None and self._bus is not None and now >= self._bus_at:
            next_in_line = 0 < len(events) <= wire.LIST_MAX and self._head.sent + 1 == events[0].position
            if not next_in_line or await self._send(self._bus, events):
                await self._catch_up(self._bus)
        await self._look_after(now)
        return more

    async def _hold(self, head: Head | None) -> Head | None:
        if head is None:
            self._shared = True  # who had it a moment ago may be the one who stands by now
            return await log.take_lease(self._database, self._name, LEASE_SECONDS)
        renewed = await log.renew_lease(self._database, self._name, LEASE_SECONDS, head.sent)
        if renewed is None:
            return None
        after, self._shared = renewed
        return after

    async def _number(self, head: Head, hinted: bool) -> tuple[Sequence[Event], bool]:
        """What has got a position, and whether there is more."""
        if not hinted and not await log.anything_new(self._database, head):
            return (), False
        numbered = await log.number(
            self._database, self._name, head, LEASE_SECONDS, wire.LIST_MAX, SET_BYTES_MAX
        )
        if numbered is None:
            self._head = None
            logger.warning("another relay of %s has the lease now", self._source)
            return (), False
        self._head = numbered.head
        if not hinted:
            self._found_at = time.monotonic()
        if self._bus is None:
            self._head = self._head._replace(sent=self._head.position)
        return numbered.events, numbered.more

    async def _catch_up(self, bus: Bus) -> None:
        """Put what the bus has missed on it, a set at a time: memory is bounded whatever the backlog."""
        while (head := self._head) is not None and head.sent < head.position:
            if head.position - head.sent > SENT_LATE_MAX:
                head = self._head = head._replace(sent=head.position - SENT_LATE_MAX)
            events = await log.read(self._database, head.sent, wire.LIST_MAX, SET_BYTES_MAX)
            if not events:  # they were there when they got their positions, and are kept until they were sent
                raise AssertionError(f"nothing stands at position {head.sent + 1}")
            if not await self._send(bus, events) or time.monotonic() >= self._renew_at:
                return  # the bus is away, or the lease comes first; the rest in another round

    async def _send(self, bus: Bus, events: Sequence[Event]) -> bool:
        """Put what comes next on the bus; whether it went well."""
        assert self._head is not None, "only who has the lease sends"
        try:
            await bus.send(self._source, wire.pack(self._source, events))
        except BusError as error:
            self._failures += 1
            self._bus_at = time.monotonic() + _AGAIN.delay_ms(self._failures) / 1000
            if self._failures == 1:
                logger.warning("the bus is away, listeners will ask for events: %r", error)
            return False
        if self._failures:
            logger.info("the bus is back after %d attempts", self._failures)
        self._failures = 0
        SENT.labels(self._source).inc(len(events))
        self._head = self._head._replace(sent=events[-1].position)
        return True

    async def _look_after(self, now: float) -> None:
        head = self._head
        if head is not None and now >= self._watch_at:
            self._watch_at = now + WATCH_SECONDS
            count, seconds = await log.backlog(self._database, head, BACKLOG_COUNT_MAX)
            WAITING.labels(self._source).set(count)
            WAITING_SECONDS.labels(self._source).set(seconds)
        if head is not None and self._keep_seconds and now >= self._forget_at:
            gone = await log.forget(self._database, self._keep_seconds, FORGET_BATCHES_MAX)
            self._forget_at = now if gone else now + FORGET_SECONDS


async def _is_set(event: asyncio.Event, seconds: float) -> bool:
    """Whether it is, or becomes so in that time."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
    return event.is_set()
