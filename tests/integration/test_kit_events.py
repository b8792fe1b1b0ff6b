"""Events on their way from one service to another: nothing is lost, each is applied once, and those of one thing in the
order in which they happened; whatever the bus does, and whoever is killed.

Relay, listener and the log's RPC run in this process, on a real PostgreSQL and a real Valkey. What is applied writes a
row without any key, so that an event that is applied twice is there twice.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncIterator, Iterator

import psycopg
import pytest
import pytest_asyncio
from google.protobuf.wrappers_pb2 import Int64Value
from valkey.asyncio import Valkey

from deploy.local.stores import EmbeddedPostgres, EmbeddedValkey
from paymesh.channel import open_channel
from paymesh.errors import PaymeshCallError, typed_errors
from paymesh.events.v1 import events_pb2, events_pb2_grpc
from services.kit.db import Database
from services.kit.events import Bus, log
from services.kit.events.log import HOLE_SECONDS, Head, numbered, read
from tests.events import (
    SOURCE,
    Courier,
    Effects,
    Producer,
    listening,
    prepare_database,
    producing,
    relaying,
    running,
)
from tests.payment_mesh import until

TABLES = "outbox, event_batches, inbox, events_set_aside, effects"


@pytest.fixture(scope="module")
def dsns(postgres: EmbeddedPostgres) -> Iterator[tuple[str, str]]:
    names = [f"events_{os.urandom(4).hex()}" for _ in "12"]
    made = [postgres.create_database(name) for name in names]
    for dsn in made:
        asyncio.run(prepare_database(dsn))
    yield made[0], made[1]
    for name in names:
        postgres.drop_database(name)


@pytest_asyncio.fixture
async def producer(dsns: tuple[str, str]) -> AsyncIterator[Producer]:
    async with producing(dsns[0]) as made:
        await made.database.transact(lambda tx: tx.execute(f"TRUNCATE {TABLES} RESTART IDENTITY"))
        await made.database.transact(lambda tx: tx.execute("DELETE FROM event_log"))
        await made.database.transact(lambda tx: tx.execute("INSERT INTO event_log (name) VALUES ('outbox')"))
        yield made


@pytest_asyncio.fixture
async def effects(dsns: tuple[str, str]) -> AsyncIterator[Effects]:
    database = Database(dsns[1], pool_size_max=8)
    await database.open()
    await database.transact(lambda tx: tx.execute(f"TRUNCATE {TABLES}"))
    yield Effects(database)
    await database.close()


@pytest_asyncio.fixture
async def url(valkey: EmbeddedValkey) -> AsyncIterator[str]:
    """An empty bus."""
    found = f"{valkey.url.removesuffix('/0')}/5"
    client = Valkey.from_url(found)
    await client.flushdb()
    yield found
    await client.aclose()


async def test_an_announcement_that_commits_late_is_not_skipped(
    producer: Producer, effects: Effects, dsns: tuple[str, str]
) -> None:
    """The bug that readers of an outbox by number have: a number is given before its transaction commits, so a slower
    transaction's row comes in below what has been read already."""
    slow = await psycopg.AsyncConnection.connect(dsns[0])
    payload = Int64Value(value=1).SerializeToString()
    await slow.execute(
        "INSERT INTO outbox (merchant_id, aggregate_id, type, payload) VALUES ('mer_1', 'slow', %s, %s)",
        ("google.protobuf.Int64Value", payload),
    )
    async with relaying(producer, ""), listening(producer, effects, ""):
        await producer.announce("quick")
        await producer.announce("quick")
        await effects.are([("quick", 1), ("quick", 2)])
        await slow.commit()
        await slow.close()
        await effects.are([("quick", 1), ("quick", 2), ("slow", 1)])
    assert await producer.log() == [(1, "quick", 1), (2, "quick", 2), (3, "slow", 1)]


async def test_what_commits_late_may_be_more_than_a_round_numbers(
    producer: Producer, effects: Effects, url: str, dsns: tuple[str, str]
) -> None:
    """Holes are looked at together, however many they are: a batch of them may be larger than any other."""
    count = 6_000
    slow = await psycopg.AsyncConnection.connect(dsns[0])
    await slow.execute(
        "INSERT INTO outbox (merchant_id, aggregate_id, type, payload)"
        " SELECT 'mer_1', 'slow', %s, %s FROM generate_series(1, %s)",
        ("google.protobuf.Int64Value", Int64Value(value=1).SerializeToString(), count),
    )
    async with relaying(producer, url), listening(producer, effects, url):
        await producer.announce("quick")
        await effects.are([("quick", 1)])
        await slow.commit()
        await slow.close()
        await producer.announce("quick")
        wanted = [("quick", 1), ("quick", 2), *[("slow", 1)] * count]
        await effects.are(wanted, ordered=False)
    for after in (0, 1, 10, count, count + 1):
        found = await read(producer.database, after, 10, 1_000_000)
        assert [event.position for event in found] == list(range(after + 1, min(after + 10, count + 2) + 1))


def test_a_hole_is_looked_at_until_no_transaction_can_fill_it() -> None:
    head = numbered(Head(0, 0, 0, (), (), 0), [2, 3, 6], 0, now=1_000)
    assert head == Head(3, 0, 6, (1, 4, 5), (1_000,) * 3, 1_000)
    head = numbered(head, [4, 7], 3, now=1_000 + HOLE_SECONDS)
    assert head[:4] == (5, 3, 7, (1, 5)), (
        "one was filled; the round before was too early to give up the others"
    )
    head = numbered(head, [9], 5, now=1_001 + HOLE_SECONDS)
    assert head.holes == (8,), "looked at in vain long enough after they were noticed"
    assert numbered(head, [], 6, now=2_000).position == 6


async def test_positions_have_no_gaps_and_keep_each_aggregates_order_with_several_relays_and_writers(
    producer: Producer, effects: Effects, url: str
) -> None:
    dice = random.Random(7)

    async def write(number: int) -> None:
        for _ in range(30):
            await producer.announce(
                *(f"thing_{number}_{dice.randrange(3)}" for _ in range(dice.randint(1, 4)))
            )
            if dice.random() < 0.2:
                with pytest.raises(ZeroDivisionError):
                    await producer.database.transact(_broken)

    async with (
        relaying(producer, url),
        relaying(producer, url),
        relaying(producer, url),
        listening(producer, effects, url),
    ):
        await asyncio.gather(*(write(number) for number in range(6)))
        await effects.are(producer.announced())
    told = await producer.log()
    assert [position for position, _, _ in told] == list(range(1, len(told) + 1))
    assert sorted((a, n) for _, a, n in told) == producer.announced()
    for aggregate in {a for _, a, _ in told}:
        numbers = [n for _, a, n in told if a == aggregate]
        assert numbers == sorted(numbers)


async def _broken(tx: object) -> None:
    await tx.execute(  # type: ignore[attr-defined]
        "INSERT INTO outbox (merchant_id, aggregate_id, type, payload) VALUES ('mer_1', 'never', 'never', '')"
    )
    raise ZeroDivisionError


@pytest.mark.parametrize("seed", range(3))
async def test_a_courier_that_doubles_swaps_and_loses_changes_nothing(
    producer: Producer, effects: Effects, url: str, seed: int
) -> None:
    dice = random.Random(seed)
    other = f"{url.removesuffix('/5')}/6"
    client = Valkey.from_url(other)
    await client.flushdb()
    await client.aclose()
    courier = Courier(url, other, seed)
    async with (
        relaying(producer, url),
        running(courier.run),
        listening(producer, effects, other),
        listening(producer, effects, other),
    ):
        for _ in range(60):
            await producer.announce(*(f"thing_{dice.randrange(5)}" for _ in range(dice.randint(1, 6))))
            await asyncio.sleep(dice.choice((0, 0, 0.01)))
        await effects.are(producer.announced())
    await courier.close()


async def test_flushall_under_load_loses_nothing(producer: Producer, effects: Effects, url: str) -> None:
    client = Valkey.from_url(url)
    async with relaying(producer, url), listening(producer, effects, url):
        for number in range(120):
            await producer.announce(f"thing_{number % 7}")
            if number % 15 == 14:
                await client.flushdb()  # as FLUSHALL, and leaves other tests' databases alone
        await client.flushdb()
        await effects.are(producer.announced())
    await client.aclose()


async def test_what_was_sent_to_nobody_is_asked_for(producer: Producer, effects: Effects, url: str) -> None:
    """A listener that starts long after the stream was trimmed, and one that has no bus at all."""
    client = Valkey.from_url(url)
    async with relaying(producer, url):
        for _ in range(5):
            await producer.announce("thing", "other")
        await until(lambda: _length_is(client, 1))
        await client.flushdb()
        async with listening(producer, effects, url, "late"):
            await effects.are(producer.announced())
        async with listening(producer, effects, "", "deaf"):
            await effects.are([*producer.announced(), *producer.announced()], ordered=False)
    await client.aclose()


async def _length_is(client: Valkey, at_least: int) -> bool:
    return int(await client.xlen(f"paymesh:events:{SOURCE}")) >= at_least


async def test_an_entry_of_a_listener_that_died_is_claimed(
    producer: Producer, effects: Effects, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.kit.events.bus.CLAIM_IDLE_MS", 1)
    async with relaying(producer, url):
        dead = Bus(url)
        await dead.join(SOURCE, "listener")
        await producer.announce("thing")
        (entry,) = await dead.receive(SOURCE, "listener", 10)
        await dead.close()
        async with listening(producer, effects, url):
            await effects.are([("thing", 1)])
            client = Valkey.from_url(url)
            await until(lambda: _settled(client))
            await client.aclose()
    assert entry.body


async def _settled(client: Valkey) -> bool:
    pending = await client.xpending(f"paymesh:events:{SOURCE}", "listener")
    return bool(pending["pending"] == 0)


async def test_an_event_that_cannot_be_applied_holds_up_its_own_aggregate_alone(
    producer: Producer, effects: Effects, url: str
) -> None:
    patience = {"left": 3}

    def refuses(aggregate: str, number: int) -> bool:
        if (aggregate, number) != ("ill", 2):
            return False
        patience["left"] -= 1
        return patience["left"] >= 0

    effects.refuses = refuses
    async with relaying(producer, url), listening(producer, effects, url):
        await producer.announce("ill", "ill", "well", "ill", "well")
        await effects.are(producer.announced())
    done = await effects.done()
    assert done.index(("well", 2)) < done.index(("ill", 2)) < done.index(("ill", 3))
    assert not await effects.database.fetch("SELECT FROM events_set_aside")


async def test_a_poison_event_is_parked_and_applied_when_somebody_says_so(
    producer: Producer, effects: Effects, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.kit.events.handling.WAITS.__class__.delay_ms", lambda *_: 1)
    effects.breaks = lambda aggregate, number: (aggregate, number) == ("ill", 1)
    async with relaying(producer, url), listening(producer, effects, url, tries_max=3):
        await producer.announce("well", "ill", "ill", "well")

        async def parked() -> bool:
            return bool(
                await effects.database.fetch("SELECT FROM events_set_aside WHERE parked_at IS NOT NULL")
            )

        await until(parked)
        await effects.are([("well", 1), ("well", 2)])
        rows = await effects.database.fetch(
            "SELECT aggregate_id, tries, reason FROM events_set_aside ORDER BY position"
        )
        assert rows == [("ill", 3, "INTERNAL"), ("ill", 0, "")]
        effects.breaks = lambda *_: False
        await effects.database.transact(
            lambda tx: tx.execute("UPDATE events_set_aside SET parked_at = NULL, due_at = now()")
        )
        await effects.are(producer.announced())


async def test_events_that_nobody_asked_for_are_passed_over(
    producer: Producer, effects: Effects, url: str
) -> None:
    async with relaying(producer, url), listening(producer, effects, url):
        for _ in range(3):
            await producer.announce_text("thing", "not for you")
            await producer.announce("thing")
        await effects.are(producer.announced())
    assert await effects.database.fetch("SELECT position FROM inbox") == [(6,)]


async def test_without_valkey_events_get_their_positions_and_listeners_ask(
    producer: Producer, effects: Effects
) -> None:
    nobody = "redis://127.0.0.1:1/0"
    async with relaying(producer, nobody), listening(producer, effects, nobody):
        await producer.announce("thing", "thing")
        await effects.are(producer.announced())
    assert await producer.database.fetch("SELECT position, sent_position FROM event_log") == [(2, 0)]


async def test_a_relay_that_comes_back_sends_what_the_bus_has_missed(
    producer: Producer, effects: Effects, url: str
) -> None:
    async with relaying(producer, "redis://127.0.0.1:1/0"):
        await producer.announce("thing", "thing")
        await until(lambda: _position_is(producer, 2))
    async with relaying(producer, url):
        client = Valkey.from_url(url)
        await until(lambda: _length_is(client, 1))
        await client.aclose()


async def _position_is(producer: Producer, position: int) -> bool:
    return await producer.database.fetch("SELECT position FROM event_log") == [(position,)]


async def test_old_events_are_forgotten_and_who_asks_for_them_is_told(producer: Producer, url: str) -> None:
    async with relaying(producer, url):
        for _ in range(4):
            await producer.announce("thing")
            await until(lambda: _position_is(producer, len(producer.announced())))

        async def sent() -> bool:
            await log.forget(producer.database, 0.0, 2)
            return not await producer.database.fetch("SELECT FROM outbox WHERE outbox_id <= 2")

        await until(sent)
    span = await log.span(producer.database)
    assert span.newest == 4
    assert span.oldest >= 3
    async with open_channel(producer.target, caller="test") as channel:
        stub = events_pb2_grpc.EventLogServiceStub(channel)
        with pytest.raises(PaymeshCallError, match="EVENTS_GONE"), typed_errors():
            await stub.ListEvents(events_pb2.ListEventsRequest(after=0))
        page = await stub.ListEvents(events_pb2.ListEventsRequest(after=span.oldest - 1))
        assert [e.position for e in page.events] == list(range(span.oldest, 5))


async def test_a_listener_from_now_on_leaves_the_past_alone(
    producer: Producer, effects: Effects, url: str
) -> None:
    async with relaying(producer, url):
        await producer.announce("thing", "thing")
        await until(lambda: _position_is(producer, 2))
        async with listening(producer, effects, url, from_now=True):
            await until(lambda: _begun(effects))
            await producer.announce("thing")
            await effects.are([("thing", 3)])


async def _begun(effects: Effects) -> bool:
    return bool(await effects.database.fetch("SELECT FROM inbox"))


async def test_wrong_positions_are_refused(producer: Producer) -> None:
    async with open_channel(producer.target, caller="test") as channel:
        stub = events_pb2_grpc.EventLogServiceStub(channel)
        for request in (
            events_pb2.ListEventsRequest(after=-1),
            events_pb2.ListEventsRequest(limit=1_001),
            events_pb2.ListEventsRequest(limit=-1),
        ):
            with pytest.raises(PaymeshCallError, match="INVALID_REQUEST"), typed_errors():
                await stub.ListEvents(request)
