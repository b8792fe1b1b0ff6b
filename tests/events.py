"""A producer and a listener of events in this process, on real stores and real gRPC; and a courier that cheats."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import psycopg
from google.protobuf.wrappers_pb2 import Int64Value, StringValue
from valkey.asyncio import Valkey

from paymesh.channel import open_channel
from paymesh.events.v1 import events_pb2, events_pb2_grpc
from services.kit.db import Database, Transaction
from services.kit.errors import PaymeshError
from services.kit.events import Bus, Listener, Received, Relay, Source
from services.kit.events.wire import NAME, EventLogService
from services.kit.migrate import migrate
from services.kit.outbox import Announcement, announce
from services.kit.process import end
from services.kit.rpc.server import Server
from tests.payment_mesh import until

SOURCE = "producer"


async def prepare_database(dsn: str) -> None:
    """Kit's tables, and one for effects: what is applied twice is there twice."""
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        await migrate(dsn, "services.inventory")
        await connection.execute(
            "CREATE TABLE effects (place bigint GENERATED ALWAYS AS IDENTITY, position bigint, aggregate_id text,"
            " number bigint)"
        )


class Producer:
    """Announces numbers, counted per aggregate, and serves its log."""

    def __init__(self, database: Database, port: int) -> None:
        self.database = database
        self.target = f"127.0.0.1:{port}"
        self._numbers: dict[str, int] = {}

    async def announce(self, *aggregates: str, traceparent: str = "") -> None:
        """One transaction that announces the next number of each."""
        announcements = []
        for aggregate in aggregates:
            self._numbers[aggregate] = self._numbers.get(aggregate, 0) + 1
            event = Int64Value(value=self._numbers[aggregate])
            announcements.append(Announcement("mer_1", aggregate, event, traceparent))
        await self.database.transact(lambda tx: _announce(tx, announcements))

    async def announce_text(self, aggregate: str, text: str) -> None:
        """Something that listeners do not ask for."""
        announcement = Announcement("mer_1", aggregate, StringValue(value=text))
        await self.database.transact(lambda tx: _announce(tx, [announcement]))

    def announced(self) -> list[tuple[str, int]]:
        """(aggregate, number) of everything that was announced, sorted."""
        return sorted((a, n) for a, count in self._numbers.items() for n in range(1, count + 1))

    async def log(self) -> list[tuple[int, str, int]]:
        """(position, aggregate, number) as ListEvents tells it, page by page."""
        found: list[tuple[int, str, int]] = []
        async with open_channel(self.target, caller="test") as channel:
            stub = events_pb2_grpc.EventLogServiceStub(channel)
            while True:
                after = found[-1][0] if found else 0
                page = await stub.ListEvents(events_pb2.ListEventsRequest(after=after, limit=7))
                if not page.events:
                    return found
                found += [
                    (e.position, e.aggregate_id, Int64Value.FromString(e.payload).value) for e in page.events
                ]


async def _announce(tx: Transaction, announcements: Sequence[Announcement]) -> None:
    announce(tx, announcements)


class Effects:
    """What a listener has done: a row for each event."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.refuses: Callable[[str, int], bool] = lambda aggregate, number: False
        """Whether an event cannot be applied."""
        self.breaks: Callable[[str, int], bool] = lambda aggregate, number: False
        """Whether it raises what nobody has foreseen."""
        self.sets: list[int] = []

    async def apply(self, tx: Transaction, received: Sequence[Received]) -> Mapping[int, PaymeshError]:
        """One row for each event."""
        self.sets.append(len(received))
        errors: dict[int, PaymeshError] = {}
        for one in received:
            event, number = one.event, one.message.value
            if self.breaks(event.aggregate_id, number):
                raise ZeroDivisionError("a defect")
            if self.refuses(event.aggregate_id, number):
                errors[event.position] = PaymeshError("NOT_NOW", "not now")
                continue
            tx.later(
                "INSERT INTO effects (position, aggregate_id, number)"
                " VALUES (%(position)s, %(aggregate)s, %(number)s)",
                {"position": event.position, "aggregate": event.aggregate_id, "number": number},
            )
        return errors

    async def done(self) -> list[tuple[str, int]]:
        """(aggregate, number) in the order in which they were applied."""
        rows = await self.database.fetch("SELECT aggregate_id, number FROM effects ORDER BY place")
        return [(aggregate, number) for aggregate, number in rows]

    async def are(
        self, wanted: Sequence[tuple[str, int]], seconds: float = 30.0, *, ordered: bool = True
    ) -> None:
        """Wait until so many are there; they must be these, and each aggregate's in order."""

        async def enough() -> bool:
            return len(await self.done()) >= len(wanted)

        await until(enough, seconds)
        done = await self.done()
        assert sorted(done) == sorted(wanted)
        for aggregate in {a for a, _ in wanted} if ordered else ():
            numbers = [n for a, n in done if a == aggregate]
            assert numbers == sorted(numbers), f"{aggregate}: {numbers}"


class Courier:
    """Carries the stream of one bus to another, and cheats on the way: an entry becomes several, events are doubled and
    swapped, and some never arrive."""

    def __init__(self, from_url: str, to_url: str, seed: int, *, lose: float = 0.2) -> None:
        self._from, self._to = Valkey.from_url(from_url), Valkey.from_url(to_url)
        self._dice = random.Random(seed)
        self._lose = lose

    async def run(self) -> None:
        """Carry for ever."""
        stream, last = f"paymesh:events:{SOURCE}", b"0"
        held: list[Any] = []
        while True:
            answer = await self._from.xread({stream: last}, count=4, block=100)
            for _, entries in answer or []:
                for last, fields in entries:  # noqa: B007 - where the next read begins
                    events = events_pb2.EventSet.FromString(fields[b"set"])
                    held += [e for e in events.events for _ in range(self._dice.choice((1, 1, 2, 3)))]
            self._dice.shuffle(held)
            keep = 0 if not answer else self._dice.randint(0, len(held))
            for_now, held = held[keep:], held[:keep]
            while for_now:
                size = self._dice.randint(1, 5)
                part, for_now = for_now[:size], for_now[size:]
                if self._dice.random() >= self._lose:
                    entry = events_pb2.EventSet(source=SOURCE, events=part)
                    await self._to.xadd(stream, {"set": entry.SerializeToString()})

    async def close(self) -> None:
        """Give the connections back."""
        await self._from.aclose()
        await self._to.aclose()


@asynccontextmanager
async def producing(dsn: str) -> AsyncIterator[Producer]:
    """A producer whose log can be asked; nobody relays for it yet."""
    async with AsyncExitStack() as stack:
        database = Database(dsn, pool_size_max=8)
        await database.open()
        stack.push_async_callback(database.close)
        server = Server("127.0.0.1:0", concurrent_rpcs_max=100)
        server.add(events_pb2_grpc.add_EventLogServiceServicer_to_server, EventLogService(database), NAME)
        port = await server.start()
        stack.push_async_callback(server.drain, 0)
        yield Producer(database, port)


async def _forever(loop: Callable[[], Awaitable[None]]) -> None:
    await loop()


@asynccontextmanager
async def running(*loops: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
    """Background loops, as a process has them; one that fails fails the test."""
    tasks = [asyncio.create_task(_forever(loop)) for loop in loops]
    try:
        yield
        for task in tasks:
            if task.done():
                task.result()
    finally:
        await end(tasks)


@asynccontextmanager
async def relaying(producer: Producer, url: str, keep_days: int = 0) -> AsyncIterator[Relay]:
    """A relay of the producer; without a URL it has no bus."""
    bus = Bus(url) if url else None
    relay = Relay(producer.database, SOURCE, bus, keep_days)
    producer.database.on_announced = relay.hint
    async with running(relay.run):
        yield relay
    producer.database.on_announced = None
    if bus is not None:
        await bus.close()


@asynccontextmanager
async def listening(
    producer: Producer, effects: Effects, url: str, name: str = "listener", **options: Any
) -> AsyncIterator[Listener]:
    """A listener of the producer."""
    bus = Bus(url) if url else None
    async with open_channel(producer.target, caller="test") as channel:
        listener = Listener(
            effects.database, bus, Source(SOURCE, channel), name, [Int64Value], effects.apply, **options
        )
        async with running(listener.listen, listener.look_aside):
            yield listener
    if bus is not None:
        await bus.close()
