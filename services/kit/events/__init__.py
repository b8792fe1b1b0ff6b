"""How what a service announces comes to the others: nothing is lost, each event is applied once, and those of one thing
in the order in which they happened.

    announce ─► outbox ─► relay ─► event log (positions) ─┬─► stream on the bus ─┐
                                                          └─► ListEvents ────────┴─► listener ─► inbox, effects

*The log is authoritative.* The relay gives every announcement a position: 1, 2, 3 and so on, after it was committed and
without a gap (`log`). From then on the order of events is one for everybody and never changes. An outbox_id could not
serve: it is given before the commit, so that a reader who has come to 7 may still be overtaken by a 5.

*The bus is a courier.* Sets of events travel through a stream on Valkey (`bus`). There they may be lost, doubled or
swapped, for the positions tell: a listener expects the one after its last; a smaller one is a repeat, a larger one
shows a gap, and the source is asked for what is missing (`wire`). If nothing comes for two seconds the source is asked,
too. So whatever happens to the bus costs seconds and no event.

*The inbox is a position.* A listener moves it in the transaction that has the events' effects (`inbox`, `listener`).

What is killed when, and what happens:

| what | when | then |
|---|---|---|
| relay | before its transaction commits | nothing has a position; another relay, or the same one again, gives them |
| relay | between positions and bus | its successor sends them, once or twice |
| listener | before its transaction commits | no effect; another process claims the entry, or asks the source |
| listener | after that, before it lets go of the entry | the entry comes again, and is recognized |
| bus | at any moment, with all it holds | listeners ask the sources until it is back |
| source | | its listeners wait; what it has not announced has not happened |
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grpc.aio
from google.protobuf.message import Message

from paymesh.events.v1 import events_pb2_grpc
from services.kit.config import EventsConfig
from services.kit.events.bus import Bus
from services.kit.events.choreography import Part, Ways
from services.kit.events.handling import Apply, Prepare, Received
from services.kit.events.listener import Listener
from services.kit.events.log import Event
from services.kit.events.relay import Relay
from services.kit.events.wire import NAME, EventLogService, Source
from services.kit.process import Process
from services.kit.rpc.client import open_channel

__all__ = [
    "Apply",
    "Bus",
    "Event",
    "Listener",
    "Prepare",
    "Received",
    "Relay",
    "Source",
    "listen",
    "open_bus",
    "publish",
    "take_part",
]


def open_bus(process: Process, url: str) -> Bus | None:
    """The bus, for all that a process sends and hears; None without a URL."""
    if not url:
        return None
    bus = Bus(url)
    process.closing(bus.close)
    return bus


def publish(process: Process, source: str, bus: Bus | None, config: EventsConfig) -> None:
    """Have a service's announcements relayed, and its log served. Called by every process of the service."""
    relay = Relay(process.database, source, bus, config.events_keep_days)
    process.database.on_announced = relay.hint
    process.serve(
        events_pb2_grpc.add_EventLogServiceServicer_to_server, EventLogService(process.database), NAME
    )
    process.background("relay", relay.run)


def listen(
    process: Process,
    listener: str,
    bus: Bus | None,
    source: str,
    channel: grpc.aio.Channel,
    types: Sequence[type[Message]],
    apply: Apply,
    **options: Any,
) -> None:
    """Have `listener` apply the events of `source`, whose log is asked through `channel`; see `Listener`."""
    one = Listener(process.database, bus, Source(source, channel), listener, types, apply, **options)
    process.background(f"events of {source}", one.listen)
    process.background(f"events of {source} set aside", one.look_aside)


def take_part(
    process: Process,
    listener: str,
    bus: Bus | None,
    source: str,
    target: str,
    part: Part,
    ways: Ways,
) -> None:
    """Have a service react to the events of `source`, whose log is asked at `target`; without one it does not."""
    if not target:
        return
    channel = open_channel(target, caller=listener)
    process.closing(channel.close)
    listen(process, listener, bus, source, channel, list(ways), part.apply, prepare=part.react(ways))
