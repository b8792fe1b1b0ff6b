"""What a listener's handler is given and how it is asked: shared by what comes in its turn (`listener`) and what was
set aside (`aside`)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from google.protobuf.message import DecodeError, Message
from opentelemetry.trace import Span
from prometheus_client import Counter

from services.kit import telemetry
from services.kit.backoff import Backoff
from services.kit.clock import now_ms
from services.kit.db import Transaction
from services.kit.errors import Bug, PaymeshError
from services.kit.events.inbox import Aggregate, Place
from services.kit.events.log import Event

TRIES_MAX = 12
"""With the waits below about two minutes."""
WAITS = Backoff(first_ms=200, factor=2, max_ms=30_000, attempts_max=TRIES_MAX)

APPLIED = Counter("paymesh_events_applied_total", "Events that were applied.", ("listener", "source"))


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


class SomeFailed(Exception):
    """Nothing may stay of this attempt."""

    def __init__(self, errors: Mapping[int, PaymeshError]) -> None:
        super().__init__(f"{len(errors)} events cannot be applied")
        self.errors = errors


@dataclass(frozen=True, slots=True)
class Handling:
    """How the events of one source are handled for one listener."""

    place: Place
    types: Mapping[str, type[Message]]
    """By full name."""
    apply: Apply
    prepare: Prepare | None
    applied: Callable[[Sequence[Received]], None] | None
    """Told after the commit."""
    tries_max: int

    def read(self, events: Sequence[Event]) -> tuple[list[Received], dict[int, PaymeshError]]:
        """The events that can be read, and why the others cannot."""
        received: list[Received] = []
        errors: dict[int, PaymeshError] = {}
        for event in events:
            try:
                message = self.types[event.type].FromString(event.payload)
            except DecodeError as error:
                errors[event.position] = Bug("UNREADABLE_EVENT", str(error))
                continue
            span = _span(self.place, event) if event.traceparent else None
            received.append(Received(event, message, span))
        return received, errors

    async def prepared(self, received: Sequence[Received]) -> tuple[list[Received], dict[int, PaymeshError]]:
        """What is ready to be applied, and what is not."""
        if self.prepare is None or not received:
            return list(received), {}
        results = await self.prepare(received)
        pairs = list(zip(received, results, strict=True))
        errors = {one.event.position: result for one, result in pairs if isinstance(result, PaymeshError)}
        return [
            one._replace(prepared=result) for one, result in pairs if one.event.position not in errors
        ], errors

    def succeeded(self, received: Sequence[Received], count: int) -> None:
        """So many were applied, those in `received` just now, and it is committed."""
        if self.applied is not None:
            self.applied(received)
        APPLIED.labels(*self.place).inc(count)


def aggregate_of(event: Event) -> Aggregate:
    """What it is about."""
    return (event.merchant_id, event.aggregate_id)


def in_turn(
    received: Sequence[Received],
    wanted: Sequence[Event],
    errors: Mapping[int, PaymeshError],
    waiting: set[Aggregate],
) -> list[Received]:
    """Those that wait for nobody: neither for an event that was set aside before, nor for one of these."""
    if not errors and not waiting:
        return list(received)
    first: dict[Aggregate, int] = {}
    for event in wanted:
        if event.position in errors:
            first.setdefault(aggregate_of(event), event.position)
    return [
        one
        for one in received
        if one.event.position not in errors
        and (aggregate := aggregate_of(one.event)) not in waiting
        and first.get(aggregate, one.event.position) >= one.event.position
    ]


def delay_ms(errors: Mapping[int, PaymeshError], event: Event, tries: int) -> int:
    """How long to wait after so many tries; 0 for one that only waits behind another."""
    error = errors.get(event.position)
    return 0 if error is None else max(WAITS.delay_ms(tries), error.retry_after_ms or 0)


def _span(place: Place, event: Event) -> Span | None:
    attributes = {"messaging.system": "paymesh", "messaging.destination.name": place.source}
    name = f"{place.listener} {event.type.rpartition('.')[2]}"
    age_seconds = (now_ms() - event.announced_at_ms) / 1000
    return telemetry.continue_later(event.traceparent, name, attributes, age_seconds)


def end(received: Sequence[Received], failure: str = "") -> None:
    """Close the spans."""
    for one in received:
        if one.span is not None:
            telemetry.end(one.span, failure, failed=bool(failure))
