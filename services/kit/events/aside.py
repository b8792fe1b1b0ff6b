"""What was set aside: tried again with growing pauses, of each aggregate the oldest first, and parked in the end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence

from prometheus_client import Gauge

from services.kit.db import Database, Transaction
from services.kit.errors import Bug, PaymeshError
from services.kit.events import inbox, wire
from services.kit.events.handling import Handling, Received, SomeFailed, delay_ms, end
from services.kit.events.inbox import Aside
from services.kit.rpc.failures import as_error

log = logging.getLogger(__name__)

ASIDE_POLL_SECONDS = 0.1
ASIDE_QUIET_SECONDS = 5.0
"""How often events that another process has set aside are looked for."""
ASIDE_LEASE_SECONDS = 30.0
AGAIN_SECONDS = 0.5
"""Pause after the database was away."""

ASIDE = Gauge("paymesh_events_set_aside", "Events that wait for another try.", ("listener", "source"))
PARKED = Gauge("paymesh_events_parked", "Events that wait for a person.", ("listener", "source"))


class SetAside:
    """Of one listener and source."""

    def __init__(self, database: Database, handling: Handling) -> None:
        self._database = database
        self._handling = handling
        self._place = handling.place
        self._name = f"{handling.place.listener} listening to {handling.place.source}"
        self._hint = asyncio.Event()
        self.maybe = True
        """Whether there may be something; what is there for certain is told by the table."""
        self._waiting, self._parked = (gauge.labels(*self._place) for gauge in (ASIDE, PARKED))

    def hint(self) -> None:
        """Something was set aside, and it is committed."""
        self.maybe = True
        self._hint.set()

    async def look(self) -> None:
        """Try for ever what was set aside; runs beside `listen`."""
        while True:
            self._hint.clear()
            try:
                count = await inbox.count_aside(self._database, self._place)
                self._waiting.set(count.waiting)
                self._parked.set(count.parked)
                if count.due and await self._take():
                    continue
                if not (count.waiting or count.parked or self._hint.is_set()):
                    self.maybe = False
                quiet = ASIDE_POLL_SECONDS if count.waiting else ASIDE_QUIET_SECONDS
            except PaymeshError as error:
                log.warning("%s: %s", self._name, error)
                quiet = AGAIN_SECONDS
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(quiet):
                    await self._hint.wait()

    async def _take(self) -> bool:
        """Try what can be tried now. Whether there was anything."""
        taken = await inbox.take_aside(self._database, self._place, wire.LIST_MAX, ASIDE_LEASE_SECONDS)
        if taken:
            await self._try_again(taken)
        return bool(taken)

    async def _try_again(self, taken: Sequence[Aside]) -> None:
        try:
            await self._try_set(taken)
        except PaymeshError:
            raise
        except Exception as error:
            if len(taken) > 1:
                for one in taken:
                    await self._try_again([one])
                return
            log.exception("%s: event %d cannot be applied", self._name, taken[0].event.position)
            await self._settle(taken, [], {taken[0].event.position: as_error(error)})

    async def _try_set(self, taken: Sequence[Aside]) -> None:
        known = [one for one in taken if one.event.type in self._handling.types]
        received, errors = self._handling.read([one.event for one in known])
        for one in taken:
            if one.event.type not in self._handling.types:
                errors[one.event.position] = Bug(
                    "UNKNOWN_EVENT", f"{one.event.type} is not listened for any more"
                )
        ready, failed = await self._handling.prepared(received)
        errors |= failed
        await self._settle(taken, ready, errors)
        end(received)

    async def _settle(
        self, taken: Sequence[Aside], ready: Sequence[Received], errors: dict[int, PaymeshError]
    ) -> None:
        """One transaction: the effects of what is ready now, and what became of the rest."""

        todo: list[Received] = []

        async def work(tx: Transaction) -> None:
            good = [one for one in ready if one.event.position not in errors]
            there = await inbox.delete_aside(tx, self._place, [one.event for one in good])
            todo[:] = [one for one in good if one.event.position in there]
            if todo and (failed := await self._handling.apply(tx, todo)):
                raise SomeFailed(failed)
            left = [one for one in taken if one.event.position in errors]
            parked = {one.event.position for one in left if one.tries >= self._handling.tries_max}
            inbox.save_failures(
                tx,
                self._place,
                [one.event for one in left],
                errors,
                [delay_ms(errors, one.event, one.tries) for one in left],
                parked,
            )

        while True:
            try:
                await self._database.transact(work)
                break
            except SomeFailed as some:
                errors |= some.errors  # of events that had none: the next attempt has fewer events
        self._handling.succeeded(todo, len(taken) - len(errors))
        for one in taken:
            if one.event.position in errors and one.tries >= self._handling.tries_max:
                log.error(
                    "%s: event %d is parked: %s", self._name, one.event.position, errors[one.event.position]
                )
