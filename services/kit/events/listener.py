"""A listener: applies the events of one source, each once and in order.

    Listener(database, bus, Source("payment", channel), "edge", [PaymentCaptured, PaymentRefunded], apply)

`apply(tx, received)` is called with a set of events in the order of their source, inside the transaction that moves the
inbox past them. What it writes with `tx` happens once for each event, whatever dies and however often an event comes.
What has to happen outside of a transaction first (a call to somebody, a set of commands under keys of their own) is
done by `prepare(received)`, whose results come back as `Received.prepared`. It may be repeated, so it must bear that.
What may only be told after the commit is told by `applied(received)`; it may be lost.

Events of types that were not asked for are passed over.

An event that cannot be applied (`apply` or `prepare` has an error for it, or it cannot be read) is set aside, and with
it what comes behind it of the same aggregate; everything else goes on. It is tried again with growing pauses, and
parked for a person after `tries_max` times: see `paymesh events`.

Several processes may listen under one name. Each gets other sets from the bus; who has one whose turn has not come
waits for a moment, and then asks the source.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from google.protobuf.message import DecodeError, Message
from prometheus_client import Gauge

from services.kit.db import Database, Transaction
from services.kit.errors import PaymeshError, Retryable, Unknown
from services.kit.events import inbox, wire
from services.kit.events.aside import SetAside
from services.kit.events.bus import Bus, BusError, Entry
from services.kit.events.handling import (
    TRIES_MAX,
    Apply,
    Handling,
    Prepare,
    Received,
    SomeFailed,
    aggregate_of,
    delay_ms,
    end,
    in_turn,
)
from services.kit.events.inbox import Place
from services.kit.events.log import Event
from services.kit.events.wire import Source
from services.kit.rpc.failures import as_error

log = logging.getLogger(__name__)

ENTRIES_AT_ONCE = 16
"""Entries that are read from the bus at once: what has gathered while the last ones were applied becomes one set."""
GAP_SECONDS = 0.1
"""How long a predecessor that is missing is waited for: another process may have it. Then the source is asked."""
GAP_POLL_SECONDS = 0.02
WITHOUT_BUS_SECONDS = 0.5
"""How often the source is asked while the bus is away, or there is none."""
SILENCES_ASKED = 5
"""Of a bus that stays silent, every so-manieth time it is, the source is asked whether there is really nothing; and the
first two times. What the bus has lost shows at once when something comes behind it."""
CLAIM_SECONDS = 5.0
"""How often entries are looked for that another process has read and not applied."""
STORE_SECONDS = 1.0
"""How long the inbox may lag behind events that were only passed over."""
AGAIN_SECONDS = 0.5
"""Pause after the database, or the source, was away."""

BEHIND = Gauge(
    "paymesh_events_behind", "Events of the source that are not applied yet.", ("listener", "source")
)


class _Moved(Exception):
    """Another process has applied events meanwhile."""

    def __init__(self, position: int) -> None:
        super().__init__(f"the inbox is at {position}")
        self.position = position


@dataclass(slots=True)
class _Cursor:
    """How far we are."""

    position: int
    """Everything up to here is applied, set aside, or was not asked for."""
    stored: int
    """What the inbox says."""
    stored_at: float = 0.0


class Listener:
    """Of one source. `from_now` begins with what comes after the listener's first start; else it begins with the oldest
    event that the source keeps."""

    def __init__(
        self,
        database: Database,
        bus: Bus | None,
        source: Source,
        listener: str,
        types: Sequence[type[Message]],
        apply: Apply,
        *,
        prepare: Prepare | None = None,
        applied: Callable[[Sequence[Received]], None] | None = None,
        tries_max: int = TRIES_MAX,
        from_now: bool = False,
    ) -> None:
        self._database = database
        self._bus = bus
        self._source = source
        self._place = Place(listener, source.name)
        self._handling = Handling(
            self._place,
            {cls.DESCRIPTOR.full_name: cls for cls in types},
            apply,
            prepare,
            applied,
            tries_max,
        )
        self._from_now = from_now
        self._joined = False
        self._bus_away = False
        self._silences = 0
        self._claim_at = 0.0
        self._aside = SetAside(database, self._handling)
        self._behind = BEHIND.labels(*self._place)

    async def look_aside(self) -> None:
        """Try for ever what was set aside; runs beside `listen`."""
        await self._aside.look()

    @property
    def name(self) -> str:
        """For logs."""
        return f"{self._place.listener} listening to {self._place.source}"

    # What comes from the bus, and what has to be asked for.

    async def _begin(self) -> _Cursor:
        while True:
            try:
                position = await inbox.find_position(self._database, self._place)
                if position is None:
                    _, span = await self._source.list(0, 1)
                    first = span.newest if self._from_now else span.oldest - 1
                    position = await inbox.insert_position(self._database, self._place, first)
                return _Cursor(position, position)
            except PaymeshError as error:
                log.info("%s cannot begin yet: %s", self.name, error)
                await asyncio.sleep(AGAIN_SECONDS)

    async def listen(self) -> None:
        """Apply for ever what the source announces."""
        cursor = await self._begin()
        self._aside.maybe = True
        while True:
            try:
                entries = await self._receive()
                if entries:
                    self._silences = 0
                    await self._take(cursor, entries)
                elif self._may_have_missed():
                    before = cursor.position
                    await self._catch_up(cursor, cursor.position)
                    if cursor.position != before:
                        self._silences = 0
                await self._store(cursor)
            except (Retryable, Unknown) as error:
                log.warning("%s: %s", self.name, error)
                self._silences = 0
                await asyncio.sleep(AGAIN_SECONDS)
                await self._refresh(cursor)

    async def _refresh(self, cursor: _Cursor) -> None:
        """After a commit whose outcome nobody knows: what the inbox says is true."""
        with contextlib.suppress(PaymeshError):
            position = await inbox.find_position(self._database, self._place)
            if position is not None and position != cursor.stored:
                self._moved(cursor, position)

    def _moved(self, cursor: _Cursor, position: int) -> None:
        # A position behind ours is that of a database that was set back: what was passed over then comes again.
        cursor.position = max(cursor.position, position) if position > cursor.stored else position
        cursor.stored = position
        self._aside.hint()  # what the other process could not apply may be there

    def _may_have_missed(self) -> bool:
        """Whether to ask the source, now that nothing came from the bus."""
        if self._bus is None or self._bus_away:
            return True
        self._silences += 1
        return self._silences <= 2 or self._silences % SILENCES_ASKED == 0

    async def _receive(self) -> list[Entry]:
        """What the bus has; none after a while, and none while it is away."""
        if self._bus is None:
            await asyncio.sleep(WITHOUT_BUS_SECONDS)
            return []
        try:
            if not self._joined:
                await self._bus.join(*reversed(self._place))
                self._joined = True
                self._silences = 0
            if time.monotonic() >= self._claim_at:
                self._claim_at = time.monotonic() + CLAIM_SECONDS
                claimed = await self._bus.claim(self._place.source, self._place.listener, ENTRIES_AT_ONCE)
                if claimed:
                    log.info("%s claims %d entries", self.name, len(claimed))
                    return claimed
            entries = await self._bus.receive(self._place.source, self._place.listener, ENTRIES_AT_ONCE)
            self._bus_away = False
            return entries
        except BusError as error:
            self._joined = False  # after FLUSHALL the group is gone
            if not self._bus_away:
                log.warning("%s asks the source instead of the bus: %r", self.name, error)
            self._bus_away = True
            await asyncio.sleep(WITHOUT_BUS_SECONDS)
            return []

    async def _take(self, cursor: _Cursor, entries: Sequence[Entry]) -> None:
        """Apply what entries carry, in order, whatever order they came in; then let go of them."""
        runs: list[wire.Run] = []
        for entry in entries:
            try:
                runs += wire.unpack(entry.body, self._place.source, self._handling.types)
            except DecodeError:
                log.error("%s: entry %r cannot be read", self.name, entry.id)  # noqa: TRY400 - the id is all there is to say
                continue
        for run in _joined(runs):
            if run.first > cursor.position + 1:
                await self._heal(cursor, run.first - 1)
            if not run.events:
                cursor.position = max(cursor.position, run.last)
            for start in range(0, len(run.events), wire.LIST_MAX):
                await self._apply(cursor, run.events[start : start + wire.LIST_MAX])
        if self._bus is not None:
            try:
                ids = [entry.id for entry in entries]
                await self._bus.settle(self._place.source, self._place.listener, ids)
            except BusError:
                pass  # they come again, and are recognized

    async def _heal(self, cursor: _Cursor, until: int) -> None:
        end = time.monotonic() + GAP_SECONDS
        while time.monotonic() < end:
            await self._refresh(cursor)
            if cursor.position >= until:
                return
            await asyncio.sleep(GAP_POLL_SECONDS)
        log.info("%s has a gap from %d to %d", self.name, cursor.position + 1, until)
        await self._catch_up(cursor, until)
        if cursor.position < until:
            raise Retryable("EVENTS_MISSING", f"{self._place.source} has no event {cursor.position + 1}")

    async def _catch_up(self, cursor: _Cursor, until: int) -> None:
        """Ask the source for what we do not have, at least up to a position; once if it has no more."""
        while True:
            events, span = await self._source.list(cursor.position)
            self._behind.set(max(0, span.newest - cursor.position))
            await self._apply(cursor, events)
            if cursor.position >= min(until, span.newest) and len(events) < wire.LIST_MAX:
                return

    async def _store(self, cursor: _Cursor) -> None:
        """Have the inbox follow over events that were passed over, now and then."""
        now = time.monotonic()
        if cursor.position == cursor.stored or now - cursor.stored_at < STORE_SECONDS:
            return

        async def work(tx: Transaction) -> int:
            position = await inbox.lock_position(tx, self._place)
            if position == cursor.stored:
                inbox.save_position(tx, self._place, cursor.position)
                return cursor.position
            return position

        position = await self._database.transact(work)
        if position != cursor.position:
            self._moved(cursor, position)
        cursor.stored, cursor.stored_at = position, now

    # Applying.

    async def _apply(self, cursor: _Cursor, events: Sequence[Event]) -> None:
        """Apply events that come directly behind the cursor, or earlier ones that were applied before."""
        fresh = [event for event in events if event.position > cursor.position]
        if not fresh:
            return
        assert fresh[0].position == cursor.position + 1, "events come without a gap"
        wanted = [event for event in fresh if event.type in self._handling.types]
        if not wanted:
            cursor.position = fresh[-1].position
            return
        received, errors = self._handling.read(wanted)
        try:
            waiting = (
                await inbox.find_waiting(self._database, self._place, {aggregate_of(e) for e in wanted})
                if self._aside.maybe
                else set()
            )
            prepared, failed = await self._handling.prepared(in_turn(received, wanted, errors, waiting))
            errors |= failed
            await self._commit(cursor, fresh[-1].position, wanted, waiting, prepared, errors)
        except _Moved as moved:
            self._moved(cursor, moved.position)
            end(received, "MOVED")
            if cursor.position >= fresh[0].position:
                await self._apply(cursor, fresh)
            return
        except (Retryable, Unknown):
            end(received, "AGAIN")
            raise
        except Exception as error:
            end(received, "FAILED")
            if len(wanted) > 1:
                log.exception("%s: a set of %d events broke; trying them one by one", self.name, len(wanted))
                for event in fresh:
                    await self._apply(cursor, [event])
                return
            log.exception("%s: event %d cannot be applied", self.name, wanted[0].position)
            await self._commit(
                cursor, fresh[-1].position, wanted, set(), [], {wanted[0].position: as_error(error)}
            )
            return
        end(received)

    async def _commit(
        self,
        cursor: _Cursor,
        last: int,
        wanted: Sequence[Event],
        waiting: set[inbox.Aggregate],
        ready: Sequence[Received],
        errors: dict[int, PaymeshError],
    ) -> None:
        """One transaction: the effects of what is ready, the rest set aside, the inbox moved. `errors` grows by what
        turns out not to be applicable."""

        todo: list[Received] = []

        async def work(tx: Transaction) -> None:
            position = await inbox.lock_position(tx, self._place)
            if position != cursor.stored:
                raise _Moved(position)
            todo[:] = in_turn(ready, wanted, errors, waiting)
            if todo and (failed := await self._handling.apply(tx, todo)):
                raise SomeFailed(failed)
            applied = {one.event.position for one in todo}
            aside = [event for event in wanted if event.position not in applied]
            parked = {p for p in errors if self._handling.tries_max <= 1}
            inbox.set_aside(tx, self._place, aside, errors, [delay_ms(errors, e, 1) for e in aside], parked)
            inbox.save_position(tx, self._place, last)

        while True:
            try:
                await self._database.transact(work)
                break
            except SomeFailed as some:
                errors |= some.errors  # of events that had none: the next attempt has fewer events
        cursor.position = cursor.stored = last
        cursor.stored_at = time.monotonic()
        self._handling.succeeded(todo, len(todo))
        if errors or waiting:
            self._aside.hint()


def _joined(runs: Sequence[wire.Run]) -> list[wire.Run]:
    """In order; those that follow each other directly become one, so that what has gathered is applied as one set."""
    joined: list[wire.Run] = []
    for run in sorted(runs, key=lambda one: one.first):
        before = joined[-1] if joined else None
        if before is not None and before.events and run.events and run.first == before.last + 1:
            joined[-1] = wire.Run(before.first, run.last, [*before.events, *run.events])
        else:
            joined.append(run)
    return joined
