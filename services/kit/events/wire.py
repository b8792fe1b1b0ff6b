"""Events on the wire, and the RPC that reads them back."""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from typing import Any, NamedTuple

import grpc.aio

from paymesh.events.v1 import events_pb2 as pb
from paymesh.events.v1 import events_pb2_grpc
from services.kit.checks import Checks
from services.kit.db import Database
from services.kit.deadline import Deadline
from services.kit.errors import Refused
from services.kit.events import log
from services.kit.events.log import Event
from services.kit.rpc.client import call

NAME = "paymesh.events.v1.EventLogService"
LIST_MAX = 1_000
"""Events of one answer, and of one entry on the bus."""
LIST_BYTES_MAX = 1024 * 1024
LIST_SECONDS = 5.0
"""How long a source may take to answer; it takes some ten milliseconds."""


class EventLogService:
    """See the contract, paymesh/events/v1/events.proto."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def drain(self) -> None:
        """Nothing is accepted that is not answered at once."""

    async def ListEvents(self, request: pb.ListEventsRequest, context: Any) -> pb.ListEventsResponse:
        checks = Checks()
        checks.number("after", request.after, at_least=0, at_most=2**63 - 1 - LIST_MAX)
        checks.number("limit", request.limit, at_least=0, at_most=LIST_MAX)
        checks.done()
        events = await log.read(self._database, request.after, request.limit or LIST_MAX, LIST_BYTES_MAX)
        # Read after the events: what is deleted in between is missed now and not later.
        span = await log.span(self._database)
        if request.after + 1 < span.oldest and not (events and events[0].position == request.after + 1):
            raise Refused(
                "EVENTS_GONE",
                f"events before position {span.oldest} are no longer kept",
                facts={"oldest_position": str(span.oldest), "newest_position": str(span.newest)},
            )
        response = pb.ListEventsResponse(newest_position=span.newest, oldest_position=span.oldest)
        write(response.events, events)
        return response


class Source:
    """The log of another service."""

    def __init__(self, name: str, channel: grpc.aio.Channel) -> None:
        self.name = name
        self._stub = events_pb2_grpc.EventLogServiceStub(channel)

    async def list(self, after: int, limit: int = LIST_MAX) -> tuple[list[Event], log.Span]:
        """Events behind a position, and which the source has. Raises PaymeshError."""
        request = pb.ListEventsRequest(after=after, limit=limit)
        response = await call(self._stub.ListEvents, request, Deadline.after(LIST_SECONDS))
        return read(response.events), log.Span(response.oldest_position, response.newest_position)


def write(messages: Any, events: Iterable[Event]) -> None:
    """Fill a repeated field. Field by field: the arguments of a constructor take twice as long."""
    add = messages.add
    for position, merchant_id, aggregate_id, type_, payload, traceparent, announced_at_ms in events:
        message = add()
        message.position = position
        message.merchant_id = merchant_id
        message.aggregate_id = aggregate_id
        message.type = type_
        message.payload = payload
        if traceparent:
            message.traceparent = traceparent
        at = message.announced_at
        at.seconds = announced_at_ms // 1_000
        at.nanos = announced_at_ms % 1_000 * 1_000_000


def read(messages: Iterable[pb.Event]) -> list[Event]:
    """What `write` wrote."""
    return [
        Event(
            m.position,
            m.merchant_id,
            m.aggregate_id,
            m.type,
            m.payload,
            m.traceparent,
            m.announced_at.seconds * 1_000 + m.announced_at.nanos // 1_000_000,
        )
        for m in messages
    ]


def pack(source: str, events: Sequence[Event]) -> bytes:
    """An entry of the bus."""
    message = pb.EventSet(source=source, types=sorted({event.type for event in events}))
    write(message.events, events)
    return message.SerializeToString()


class Run(NamedTuple):
    """Events that follow each other."""

    first: int
    last: int
    events: Sequence[Event]
    """Empty where none of them is of interest."""


def unpack(body: bytes, source: str, types: Container[str]) -> list[Run]:
    """What an entry of `source` carries for somebody who is interested in `types`. Raises DecodeError. To look at each
    event takes longer than all the rest, so it is only done where there may be one for us."""
    message = pb.EventSet.FromString(body)
    found = message.events
    if message.source != source or not found:
        return []
    first, last = found[0].position, found[-1].position
    if last - first + 1 == len(found) and message.types and not any(one in types for one in message.types):
        return [Run(first, last, ())]
    return runs(read(found))


def runs(events: Iterable[Event]) -> list[Run]:
    """Events in order, each once, cut where one is missing."""
    by_position = {event.position: event for event in events}
    found: list[list[Event]] = []
    for position in sorted(by_position):
        if not found or position != found[-1][-1].position + 1:
            found.append([])
        found[-1].append(by_position[position])
    return [Run(one[0].position, one[-1].position, one) for one in found]
