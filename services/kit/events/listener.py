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
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from google.protobuf.message import DecodeError, Message
from opentelemetry.trace import Span
from prometheus_client import Counter, Gauge

from services.kit import telemetry
from services.kit.backoff import Backoff
from services.kit.clock import now_ms
from services.kit.db import Database, Transaction
from services.kit.errors import Bug, PaymeshError, Retryable, Unknown
from services.kit.events import inbox, wire
from services.kit.events.bus import Bus, BusError, Entry
from services.kit.events.inbox import Aside, Place
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
CLAIM_SECONDS = 5.0
"""How often entries are looked for that another process has read and not applied."""
STORE_SECONDS = 1.0
"""How long the inbox may lag behind events that were only passed over."""
ASIDE_POLL_SECONDS = 0.1
ASIDE_QUIET_SECONDS = 2.0
"""How often events that another process has set aside are looked for."""
ASIDE_LEASE_SECONDS = 30.0
TRIES_MAX = 12
"""With the waits below about two minutes."""
WAITS = Backoff(first_ms=200, factor=2, max_ms=30_000, attempts_max=TRIES_MAX)
AGAIN_SECONDS = 0.5
"""Pause after the database, or the source, was away."""

APPLIED = Counter("paymesh_events_applied_total", "Events that were applied.", ("listener", "source"))
BEHIND = Gauge(
    "paymesh_events_behind", "Events of the source that are not applied yet.", ("listener", "source")
)
ASIDE = Gauge("paymesh_events_set_aside", "Events that wait for another try.", ("listener", "source"))
PARKED = Gauge("paymesh_events_parked", "Events that wait for a person.", ("listener", "source"))


class Received(NamedTuple):
    """An event, read."""

    event: Event
    message: Any
    """Its payload."""
    span: Span | None
    """Of what is done with it; None when it is not traced."""
    prepared: Any = None
    """What `prepare` came to."""


Apply = Callable[[Transaction, Sequence[Received]], Awaitable[Mapping[int, PaymeshError] | None]]
"""Has the effects of a set. Returns errors by position, or None: if there are any, nothing that it did stays, and it is
called again without those events and without what waits behind them."""
Prepare = Callable[[Sequence[Received]], Awaitable[Sequence[Any]]]
"""Something for each event; a PaymeshError sets it aside."""


class _Moved(Exception):
    """Another process has applied events meanwhile."""

    def __init__(self, position: int) -> None:
        super().__init__(f"the inbox is at {position}")
        self.position = position


class _SomeFailed(Exception):
    """Nothing may stay of this attempt."""

    def __init__(self, errors: Mapping[int, PaymeshError]) -> None:
        super().__init__(f"{len(errors)} events cannot be applied")
        self.errors = errors


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
        self._types = {cls.DESCRIPTOR.full_name: cls for cls in types}
        self._apply_to = apply
        self._prepare = prepare
        self._applied = applied
        self._tries_max = tries_max
        self._from_now = from_now
        self._joined = False
        self._bus_away = False
        self._claim_at = 0.0
        self._aside = asyncio.Event()
        self._maybe_aside = True
        self._metrics = [m.labels(*self._place) for m in (BEHIND, ASIDE, PARKED)]

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
        self._maybe_aside = True
        while True:
            try:
                entries = await self._receive()
                if entries:
                    await self._take(cursor, entries)
                else:
                    await self._catch_up(cursor, cursor.position)
                await self._store(cursor)
            except (Retryable, Unknown) as error:
                log.warning("%s: %s", self.name, error)
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
        self._maybe_aside = True

    async def _receive(self) -> list[Entry]:
        """What the bus has; none after a while, and none while it is away."""
        if self._bus is None:
            await asyncio.sleep(WITHOUT_BUS_SECONDS)
            return []
        try:
            if not self._joined:
                await self._bus.join(*reversed(self._place))
                self._joined = True
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
        found: dict[int, Event] = {}
        for entry in entries:
            try:
                source, events = wire.unpack(entry.body)
            except DecodeError:
                log.error("%s: entry %r cannot be read", self.name, entry.id)  # noqa: TRY400 - the id is all there is to say
                continue
            if source == self._place.source:
                found |= {event.position: event for event in events}
        run: list[Event] = []
        for position in sorted(found):
            if run and position != run[-1].position + 1:
                await self._apply_run(cursor, run)
                run = []
            run.append(found[position])
        if run:
            await self._apply_run(cursor, run)
        if self._bus is not None:
            try:
                ids = [entry.id for entry in entries]
                await self._bus.settle(self._place.source, self._place.listener, ids)
            except BusError:
                pass  # they come again, and are recognized

    async def _apply_run(self, cursor: _Cursor, run: Sequence[Event]) -> None:
        """Apply events that follow each other, after those that are missing before them."""
        if run[0].position > cursor.position + 1:
            await self._heal(cursor, run[0].position - 1)
        for start in range(0, len(run), wire.LIST_MAX):
            await self._apply(cursor, run[start : start + wire.LIST_MAX])

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
            self._metrics[0].set(max(0, span.newest - cursor.position))
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
        wanted = [event for event in fresh if event.type in self._types]
        if not wanted:
            cursor.position = fresh[-1].position
            return
        received, errors = self._read(wanted)
        try:
            waiting = (
                await inbox.find_waiting(self._database, self._place, {_aggregate(e) for e in wanted})
                if self._maybe_aside
                else set()
            )
            prepared, failed = await self._prepared(_in_turn(received, wanted, errors, waiting))
            errors |= failed
            await self._commit(cursor, fresh[-1].position, wanted, waiting, prepared, errors)
        except _Moved as moved:
            self._moved(cursor, moved.position)
            _end(received, "MOVED")
            if cursor.position >= fresh[0].position:
                await self._apply(cursor, fresh)
            return
        except (Retryable, Unknown):
            _end(received, "AGAIN")
            raise
        except Exception as error:
            _end(received, "FAILED")
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
        APPLIED.labels(*self._place).inc(len(wanted) - len(errors))
        _end(received)

    def _read(self, events: Sequence[Event]) -> tuple[list[Received], dict[int, PaymeshError]]:
        received: list[Received] = []
        errors: dict[int, PaymeshError] = {}
        for event in events:
            try:
                message = self._types[event.type].FromString(event.payload)
            except DecodeError as error:
                errors[event.position] = Bug("UNREADABLE_EVENT", str(error))
                continue
            span = _span(self._place, event) if event.traceparent else None
            received.append(Received(event, message, span))
        return received, errors

    async def _prepared(self, received: Sequence[Received]) -> tuple[list[Received], dict[int, PaymeshError]]:
        """What is ready to be applied, and what is not."""
        if self._prepare is None or not received:
            return list(received), {}
        results = await self._prepare(received)
        pairs = list(zip(received, results, strict=True))
        errors = {one.event.position: result for one, result in pairs if isinstance(result, PaymeshError)}
        return [
            one._replace(prepared=result) for one, result in pairs if one.event.position not in errors
        ], errors

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
            todo[:] = _in_turn(ready, wanted, errors, waiting)
            if todo and (failed := await self._apply_to(tx, todo)):
                raise _SomeFailed(failed)
            applied = {one.event.position for one in todo}
            aside = [event for event in wanted if event.position not in applied]
            parked = {p for p in errors if self._tries_max <= 1}
            inbox.set_aside(tx, self._place, aside, errors, [_delay_ms(errors, e, 1) for e in aside], parked)
            inbox.save_position(tx, self._place, last)

        while True:
            try:
                await self._database.transact(work)
                break
            except _SomeFailed as some:
                errors |= some.errors  # of events that had none: the next attempt has fewer events
        cursor.position = cursor.stored = last
        cursor.stored_at = time.monotonic()
        if self._applied is not None:
            self._applied(todo)
        if errors or waiting:
            self._maybe_aside = True
            self._aside.set()

    # What was set aside.

    async def look_aside(self) -> None:
        """Try for ever what was set aside; runs beside `listen`."""
        while True:
            self._aside.clear()
            try:
                taken = await inbox.take_aside(
                    self._database, self._place, wire.LIST_MAX, ASIDE_LEASE_SECONDS
                )
                if taken:
                    await self._try_again(taken)
                    continue
                waiting, parked = await inbox.count_aside(self._database, self._place)
                self._metrics[1].set(waiting - parked)
                self._metrics[2].set(parked)
                if waiting == 0 and not self._aside.is_set():
                    self._maybe_aside = False
                quiet = ASIDE_POLL_SECONDS if waiting > parked else ASIDE_QUIET_SECONDS
            except PaymeshError as error:
                log.warning("%s: %s", self.name, error)
                quiet = AGAIN_SECONDS
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(quiet):
                    await self._aside.wait()

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
            log.exception("%s: event %d cannot be applied", self.name, taken[0].event.position)
            await self._settle_aside(taken, [], {taken[0].event.position: as_error(error)})

    async def _try_set(self, taken: Sequence[Aside]) -> None:
        known = [one for one in taken if one.event.type in self._types]
        received, errors = self._read([one.event for one in known])
        for one in taken:
            if one.event.type not in self._types:
                errors[one.event.position] = Bug(
                    "UNKNOWN_EVENT", f"{one.event.type} is not listened for any more"
                )
        ready, failed = await self._prepared(received)
        errors |= failed
        await self._settle_aside(taken, ready, errors)
        _end(received)

    async def _settle_aside(
        self, taken: Sequence[Aside], ready: Sequence[Received], errors: dict[int, PaymeshError]
    ) -> None:
        """One transaction: the effects of what is ready now, and what became of the rest."""

        todo: list[Received] = []

        async def work(tx: Transaction) -> None:
            good = [one for one in ready if one.event.position not in errors]
            there = await inbox.delete_aside(tx, self._place, [one.event for one in good])
            todo[:] = [one for one in good if one.event.position in there]
            if todo and (failed := await self._apply_to(tx, todo)):
                raise _SomeFailed(failed)
            left = [one for one in taken if one.event.position in errors]
            parked = {one.event.position for one in left if one.tries >= self._tries_max}
            inbox.save_failures(
                tx,
                self._place,
                [one.event for one in left],
                errors,
                [_delay_ms(errors, one.event, one.tries) for one in left],
                parked,
            )

        while True:
            try:
                await self._database.transact(work)
                break
            except _SomeFailed as some:
                errors |= some.errors  # of events that had none: the next attempt has fewer events
        if self._applied is not None:
            self._applied(todo)
        for one in taken:
            if one.event.position in errors and one.tries >= self._tries_max:
                log.error(
                    "%s: event %d is parked: %s", self.name, one.event.position, errors[one.event.position]
                )
        APPLIED.labels(*self._place).inc(len(taken) - len(errors))


def _aggregate(event: Event) -> inbox.Aggregate:
    return (event.merchant_id, event.aggregate_id)


def _in_turn(
    received: Sequence[Received],
    wanted: Sequence[Event],
    errors: Mapping[int, PaymeshError],
    waiting: set[inbox.Aggregate],
) -> list[Received]:
    """Those that wait for nobody: neither for an event that was set aside before, nor for one of these."""
    if not errors and not waiting:
        return list(received)
    first: dict[inbox.Aggregate, int] = {}
    for event in wanted:
        if event.position in errors:
            first.setdefault(_aggregate(event), event.position)
    return [
        one
        for one in received
        if one.event.position not in errors
        and (aggregate := _aggregate(one.event)) not in waiting
        and first.get(aggregate, one.event.position) >= one.event.position
    ]


def _delay_ms(errors: Mapping[int, PaymeshError], event: Event, tries: int) -> int:
    error = errors.get(event.position)
    return 0 if error is None else max(WAITS.delay_ms(tries), error.retry_after_ms or 0)


def _span(place: Place, event: Event) -> Span | None:
    attributes = {"messaging.system": "paymesh", "messaging.destination.name": place.source}
    name = f"{place.listener} {event.type.rpartition('.')[2]}"
    age_seconds = (now_ms() - event.announced_at_ms) / 1000
    return telemetry.continue_later(event.traceparent, name, attributes, age_seconds)


def _end(received: Sequence[Received], failure: str = "") -> None:
    for one in received:
        if one.span is not None:
            telemetry.end(one.span, failure, failed=bool(failure))
