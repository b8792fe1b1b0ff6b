"""`Database` on a real PostgreSQL: what is tried again, what a caller may conclude when something breaks, and that no
failure leaves a transaction open or a connection behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager

import psycopg
import pytest
import pytest_asyncio
from psycopg import errors as pg

from deploy.local.stores import EmbeddedPostgres
from services.kit import db
from services.kit.db import Database, Sent, Transaction
from services.kit.deadline import Deadline
from services.kit.errors import Kind, Overloaded, PaymeshError, Retryable, Unknown
from tests.processes import free_port

Connection = psycopg.AsyncConnection[psycopg.rows.TupleRow]
"""One beside the pool, for looking on."""

POOL_SIZE = 3

SCHEMA = """
CREATE TABLE counters (name text PRIMARY KEY, value bigint NOT NULL);
INSERT INTO counters VALUES ('a', 0), ('b', 0);
-- Makes COMMIT itself take long, for whoever asks for it by the name 'slow'.
CREATE FUNCTION nap() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(20); RETURN NULL; END $$;
CREATE CONSTRAINT TRIGGER slow_commit AFTER INSERT ON counters DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW WHEN (NEW.name = 'slow') EXECUTE FUNCTION nap();
"""


@pytest.fixture(scope="module")
def dsn(postgres: EmbeddedPostgres) -> Iterator[str]:
    name = f"kit_{os.urandom(4).hex()}"
    made = postgres.create_database(name)
    with psycopg.connect(made, autocommit=True) as connection:
        connection.execute(SCHEMA.encode())
    yield made
    postgres.drop_database(name)


@pytest_asyncio.fixture
async def database(dsn: str) -> AsyncIterator[Database]:
    """An open database of which every test must leave all connections free and no transaction open."""
    opened = Database(dsn, pool_size_max=POOL_SIZE)
    await opened.open()
    try:
        yield opened
        await nothing_is_left(opened, dsn)
    finally:
        await opened.close()


@pytest_asyncio.fixture
async def other(dsn: str) -> AsyncIterator[Connection]:
    """A connection beside the pool."""
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        await connection.execute("UPDATE counters SET value = 0")
        yield connection


async def nothing_is_left(database: Database, dsn: str) -> None:
    """All connections of the pool can be used at once, and no other session of this database is in a transaction."""
    await database._pool.check()  # sees the idle ones that a test has killed
    everybody = asyncio.Barrier(POOL_SIZE)

    async def meet(tx: Transaction) -> None:
        async with asyncio.timeout(5):
            await everybody.wait()

    await asyncio.gather(*(database.transact(meet) for _ in range(POOL_SIZE)))
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        cursor = await connection.execute(
            "SELECT query FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
            " AND state <> 'idle'"
        )
        assert await cursor.fetchall() == []


READ = "SELECT value FROM counters WHERE name = %(name)s"
ADD = "UPDATE counters SET value = value + %(amount)s::bigint WHERE name = %(name)s"


async def value(connection: Connection, name: str) -> int:
    cursor = await connection.execute(READ, {"name": name})
    row = await cursor.fetchone()
    assert row is not None
    return int(row[0])


async def add(tx: Transaction | Connection, name: str, amount: int = 1) -> None:
    await tx.execute(ADD, {"amount": amount, "name": name})


async def pid_of(tx: Transaction) -> int:
    ((pid,),) = await tx.fetch("SELECT pg_backend_pid()")
    return int(pid)


async def kill(connection: Connection, pid: int) -> None:
    """End the session `pid` and wait until it is gone."""
    await connection.execute("SELECT pg_terminate_backend(%s, 5000)", (pid,))


@asynccontextmanager
async def raises(cls: type[PaymeshError], reason: str, kind: Kind) -> AsyncIterator[None]:
    with pytest.raises(cls) as raised:
        yield
    assert (type(raised.value), raised.value.reason, raised.value.kind) == (cls, reason, kind)


async def test_work_is_committed_and_its_value_returned(database: Database, other: Connection) -> None:
    async def work(tx: Transaction) -> str:
        await add(tx, "a", 5)
        return "done"

    assert await database.transact(work) == "done"
    assert await value(other, "a") == 5
    assert await database.fetch("SELECT value FROM counters WHERE name = %(name)s", {"name": "a"}) == [(5,)]


async def test_an_exception_in_the_work_rolls_back_and_passes(database: Database, other: Connection) -> None:
    async def work(tx: Transaction) -> None:
        await add(tx, "a")
        raise KeyError("our own")

    with pytest.raises(KeyError, match="our own"):
        await database.transact(work)
    assert await value(other, "a") == 0


async def test_a_constraint_that_is_violated_rolls_back_and_passes(
    database: Database, other: Connection
) -> None:
    async def work(tx: Transaction) -> None:
        await add(tx, "b")
        await tx.execute("INSERT INTO counters VALUES ('a', 1)")

    with pytest.raises(pg.UniqueViolation):
        await database.transact(work)
    assert await value(other, "b") == 0


async def test_statements_for_later_are_carried_out_in_order_before_the_commit(
    database: Database, other: Connection
) -> None:
    async def work(tx: Transaction) -> int:
        tx.later(ADD, {"amount": 3, "name": "a"})
        tx.later("UPDATE counters SET value = value * 2 WHERE name = 'a'")
        ((seen,),) = await tx.fetch(READ, {"name": "a"})
        tx.later(ADD, {"amount": 1, "name": "a"})
        return int(seen)

    assert await database.transact(work) == 6
    assert await value(other, "a") == 7


async def test_a_statement_for_later_that_fails_commits_nothing(
    database: Database, other: Connection
) -> None:
    async def work(tx: Transaction) -> None:
        await add(tx, "b")
        tx.later("INSERT INTO counters VALUES ('a', 1)")
        tx.later(ADD, {"amount": 1, "name": "b"})

    with pytest.raises(pg.UniqueViolation):
        await database.transact(work)
    assert await value(other, "b") == 0


async def test_a_statement_for_later_that_loses_is_tried_again(database: Database, other: Connection) -> None:
    attempts = 0

    async def work(tx: Transaction) -> None:
        nonlocal attempts
        attempts += 1
        tx.later(ADD, {"amount": 1, "name": "a"})
        if attempts == 1:
            tx.later("DO $$ BEGIN RAISE EXCEPTION 'lost' USING ERRCODE = '40P01'; END $$")

    await database.transact(work)
    assert attempts == 2
    assert await value(other, "a") == 1


async def test_work_that_goes_on_after_a_failed_statement_is_not_taken_for_committed(
    database: Database, other: Connection
) -> None:
    async def work(tx: Transaction) -> None:
        await add(tx, "b")
        with contextlib.suppress(pg.UniqueViolation):
            await tx.execute("INSERT INTO counters VALUES ('a', 1)")

    with pytest.raises(pg.InFailedSqlTransaction):
        await database.transact(work)
    assert await value(other, "b") == 0


async def test_a_failed_flight_leaves_its_statements_usable(database: Database, other: Connection) -> None:
    """They were prepared in a flight that the server gave up half-way."""

    async def breaks(tx: Transaction) -> None:
        tx.later("SELECT 1/0")
        await tx.fetch("SELECT 'prepared behind the one that fails'")

    async def works(tx: Transaction) -> list[tuple[object, ...]]:
        return await tx.fetch("SELECT 'prepared behind the one that fails'")

    for _ in range(POOL_SIZE):
        with pytest.raises(pg.DivisionByZero):
            await database.transact(breaks)
    for _ in range(POOL_SIZE):
        assert await database.transact(works) == [("prepared behind the one that fails",)]


async def test_what_a_failed_flight_has_prepared_is_not_prepared_again(database: Database) -> None:
    async def breaks(tx: Transaction) -> None:
        tx.later("SELECT 'prepared before the one that fails'")
        await tx.fetch("SELECT 1/0")

    async def prepared(tx: Transaction) -> int:
        rows = await tx.fetch(
            "SELECT count(*) FROM pg_prepared_statements WHERE statement LIKE 'SELECT ''prepared before%%'"
        )
        return int(rows[0][0])

    for _ in range(4 * POOL_SIZE):
        with pytest.raises(pg.DivisionByZero):
            await database.transact(breaks)
    for _ in range(POOL_SIZE):
        assert await database.transact(prepared) <= 1


async def test_a_transaction_waits_for_one_statement_after_the_other(database: Database) -> None:
    async def twice_at_once(tx: Transaction) -> None:
        await asyncio.gather(tx.fetch("SELECT 'mine', pg_sleep(0.2)"), tx.fetch("SELECT 'yours'"))

    with pytest.raises(AssertionError, match="one statement after the other"):
        await database.transact(twice_at_once)


async def test_a_statement_of_a_transaction_that_is_over_is_nobody_elses(database: Database) -> None:
    kept: list[Sent] = []

    async def breaks(tx: Transaction) -> None:
        kept.append(tx.later("SELECT 'never sent'"))
        raise KeyError("our own")

    async def innocent(tx: Transaction) -> list[tuple[object, ...]]:
        with pytest.raises(AssertionError, match="is over"):
            await kept[0]
        return await tx.fetch("SELECT 'innocent'")

    with pytest.raises(KeyError):
        await database.transact(breaks)
    for _ in range(POOL_SIZE):
        assert await database.transact(innocent) == [("innocent",)]


async def test_what_cannot_travel_in_a_flight_is_an_error_and_no_endless_loop(database: Database) -> None:
    async def copies(tx: Transaction) -> None:
        await tx.fetch("COPY (SELECT 1) TO STDOUT")

    with pytest.raises(psycopg.NotSupportedError):
        await asyncio.wait_for(database.transact(copies), 5)


async def test_a_set_larger_than_every_buffer_travels(database: Database) -> None:
    texts = [f"{number:0>1000}" for number in range(20_000)]

    async def work(tx: Transaction) -> list[tuple[object, ...]]:
        tx.later("SELECT count(*) FROM unnest(%(texts)s::text[]) AS text", {"texts": texts})
        return await tx.fetch("SELECT text FROM unnest(%(texts)s::text[]) AS text", {"texts": texts})

    assert await database.transact(work) == [(text,) for text in texts]


async def test_a_parameter_that_cannot_travel_breaks_nothing(database: Database, other: Connection) -> None:
    async def work(tx: Transaction) -> None:
        await add(tx, "a")
        tx.later(ADD, {"amount": 1, "name": "a\x00b"})

    with pytest.raises(ValueError, match="NUL"):
        await database.transact(work)
    assert await value(other, "a") == 0


async def test_a_connection_killed_in_the_flight_of_the_commit_leaves_it_unknown(
    database: Database, other: Connection
) -> None:
    pids: list[int] = []

    async def work(tx: Transaction) -> None:
        pids.append(await pid_of(tx))
        tx.later(ADD, {"amount": 1, "name": "a"})
        tx.later("SELECT pg_sleep(20)")

    running = asyncio.create_task(database.transact(work))
    await until_active(other, "SELECT pg_sleep(20)")
    await kill(other, pids[0])
    async with raises(Unknown, "COMMIT_UNKNOWN", Kind.UNKNOWN):
        await running
    assert await value(other, "a") == 0


async def test_a_caller_who_goes_away_during_a_flight_leaves_nothing_open(
    database: Database, other: Connection
) -> None:
    async def work(tx: Transaction) -> None:
        tx.later(ADD, {"amount": 1, "name": "a"})
        tx.later("SELECT pg_sleep(20)")
        await add(tx, "b")

    running = asyncio.create_task(database.transact(work))
    await until_active(other, "SELECT pg_sleep(20)")
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(running, 5)
    assert (await value(other, "a"), await value(other, "b")) == (0, 0)


async def test_a_serialization_failure_is_tried_again(database: Database, other: Connection) -> None:
    attempts = 0

    async def work(tx: Transaction) -> int:
        nonlocal attempts
        attempts += 1
        await tx.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        ((seen,),) = await tx.fetch(READ, {"name": "a"})
        if attempts == 1:
            await add(other, "a", 10)  # after our snapshot: our own update now fails with 40001
        await tx.execute("UPDATE counters SET value = %(value)s WHERE name = 'a'", {"value": seen + 1})
        return int(seen)

    assert await database.transact(work) == 10
    assert attempts == 2
    assert await value(other, "a") == 11


async def test_a_deadlock_is_tried_again(database: Database, other: Connection) -> None:
    attempts = 0
    both_hold_one = asyncio.Barrier(2)

    def crossing(first: str, second: str) -> Callable[[Transaction], Awaitable[None]]:
        async def work(tx: Transaction) -> None:
            nonlocal attempts
            attempts += 1
            await add(tx, first)
            if attempts <= 2:
                await both_hold_one.wait()
            await add(tx, second)

        return work

    await asyncio.gather(database.transact(crossing("a", "b")), database.transact(crossing("b", "a")))
    assert attempts == 3
    assert (await value(other, "a"), await value(other, "b")) == (2, 2)


async def test_work_that_always_loses_is_given_up_as_retryable(
    database: Database, other: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(db, "RETRY_FIRST_SECONDS", 0.0001)
    attempts = 0

    async def work(tx: Transaction) -> None:
        nonlocal attempts
        attempts += 1
        await add(tx, "a")
        await tx.execute("DO $$ BEGIN RAISE EXCEPTION 'lost' USING ERRCODE = '40001'; END $$")

    async with raises(Retryable, "DATABASE_CONTENTION", Kind.RETRYABLE):
        await database.transact(work)
    assert attempts == db.ATTEMPTS_MAX
    assert await value(other, "a") == 0


async def test_a_statement_does_not_outlive_the_deadline(database: Database, other: Connection) -> None:
    async def work(tx: Transaction) -> None:
        await add(tx, "a")
        await tx.execute("SELECT pg_sleep(20)")

    started = time.monotonic()
    async with raises(Retryable, "DEADLINE_TOO_SHORT", Kind.RETRYABLE):
        await database.transact(work, Deadline.after(0.8))
    assert 0.7 < time.monotonic() - started < 10
    assert await value(other, "a") == 0


async def test_a_statement_timeout_ends_with_its_transaction(database: Database) -> None:
    async def quick(tx: Transaction) -> None:
        await tx.execute("SELECT 1")

    for _ in range(2 * POOL_SIZE):
        await database.transact(quick, Deadline.after(2))
    assert await database.fetch("SHOW statement_timeout") == [("5s",)]


async def test_an_expired_deadline_does_not_mean_for_ever(database: Database) -> None:
    async def slow(tx: Transaction) -> None:
        await tx.execute("SELECT pg_sleep(20)")

    started = time.monotonic()
    async with raises(Retryable, "DEADLINE_TOO_SHORT", Kind.RETRYABLE):
        await database.transact(slow, Deadline.after(-1))
    assert time.monotonic() - started < 10


async def test_a_connection_killed_before_commit_means_nothing_happened(
    database: Database, other: Connection
) -> None:
    async def work(tx: Transaction) -> None:
        await add(tx, "a")
        await kill(other, await pid_of(tx))
        await add(tx, "b")

    async with raises(Retryable, "DATABASE_UNAVAILABLE", Kind.RETRYABLE):
        await database.transact(work)
    assert (await value(other, "a"), await value(other, "b")) == (0, 0)


async def test_a_connection_killed_during_a_statement_means_nothing_happened(
    database: Database, other: Connection
) -> None:
    pids: list[int] = []

    async def work(tx: Transaction) -> None:
        await add(tx, "a")
        pids.append(await pid_of(tx))
        await tx.execute("SELECT pg_sleep(20)")

    running = asyncio.create_task(database.transact(work))
    await until_active(other, "SELECT pg_sleep(20)")
    await kill(other, pids[0])
    async with raises(Retryable, "DATABASE_UNAVAILABLE", Kind.RETRYABLE):
        await running
    assert await value(other, "a") == 0


async def test_the_works_own_error_is_not_hidden_by_a_rollback_that_fails(
    database: Database, other: Connection
) -> None:
    async def work(tx: Transaction) -> None:
        await kill(other, await pid_of(tx))
        raise KeyError("our own")

    with pytest.raises(KeyError, match="our own"):
        await database.transact(work)


async def test_a_connection_killed_during_commit_leaves_it_unknown(
    database: Database, other: Connection
) -> None:
    pids: list[int] = []

    async def work(tx: Transaction) -> None:
        pids.append(await pid_of(tx))
        await tx.execute("INSERT INTO counters VALUES ('slow', 1)")

    running = asyncio.create_task(database.transact(work))
    await until_active(other, "COMMIT")
    await kill(other, pids[0])
    async with raises(Unknown, "COMMIT_UNKNOWN", Kind.UNKNOWN):
        await running


async def test_a_process_that_stands_still_does_not_keep_its_locks(
    dsn: str, database: Database, other: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(db, "SILENCE_SECONDS", 0.3)  # what the server grants
    monkeypatch.setattr(db, "GRACE_SECONDS", 10)  # what the process itself would grant, were it awake
    locked = threading.Event()

    async def falls_silent(tx: Transaction) -> None:
        await add(tx, "a")
        locked.set()
        time.sleep(5)  # the whole loop of this process, as if it had been stopped
        await add(tx, "a")

    async def process() -> None:
        own = Database(dsn, pool_size_max=2)
        await own.open()
        try:
            async with raises(Retryable, "DATABASE_UNAVAILABLE", Kind.RETRYABLE):
                await own.transact(falls_silent, Deadline.after(0.2))
        finally:
            await own.close()

    silent = asyncio.create_task(asyncio.to_thread(asyncio.run, process()))
    await asyncio.to_thread(locked.wait, 10)
    started = time.monotonic()
    await database.transact(lambda tx: add(tx, "a", 10), Deadline.after(10))
    assert time.monotonic() - started < 4
    await silent
    assert await value(other, "a") == 10


async def test_a_server_that_no_longer_answers_is_given_up(
    database: Database, other: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(db, "GRACE_SECONDS", 0.2)
    frozen: list[int] = []

    async def work(tx: Transaction) -> None:
        await add(tx, "a")
        frozen.append(await pid_of(tx))
        os.kill(frozen[0], signal.SIGSTOP)
        await add(tx, "a")

    started = time.monotonic()
    try:
        async with raises(Retryable, "DATABASE_UNAVAILABLE", Kind.RETRYABLE):
            await database.transact(work, Deadline.after(0.3))
        assert time.monotonic() - started < 8
        await database.transact(lambda tx: add(tx, "b"), Deadline.after(5))
    finally:
        os.kill(frozen[0], signal.SIGCONT)
    assert (await value(other, "a"), await value(other, "b")) == (0, 1)


async def test_a_rollback_that_is_not_answered_is_given_up(
    database: Database, other: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(db, "GRACE_SECONDS", 0.2)
    frozen: list[int] = []

    async def work(tx: Transaction) -> None:
        frozen.append(await pid_of(tx))
        os.kill(frozen[0], signal.SIGSTOP)
        raise KeyError("our own")

    started = time.monotonic()
    try:
        with pytest.raises(KeyError, match="our own"):
            await database.transact(work, Deadline.after(0.3))
        assert time.monotonic() - started < 8
    finally:
        os.kill(frozen[0], signal.SIGCONT)


async def test_a_commit_that_hangs_is_unknown_and_comes_to_its_own_end(
    database: Database, other: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(db, "GRACE_SECONDS", 0.2)
    frozen: list[int] = []

    async def work(tx: Transaction) -> None:
        await add(tx, "a")
        frozen.append(await pid_of(tx))
        os.kill(frozen[0], signal.SIGSTOP)  # so that it is the COMMIT that is not answered

    started = time.monotonic()
    try:
        async with raises(Unknown, "COMMIT_UNKNOWN", Kind.UNKNOWN):
            await database.transact(work, Deadline.after(0.3))
        assert time.monotonic() - started < 10
    finally:
        os.kill(frozen[0], signal.SIGCONT)
    async with asyncio.timeout(5):
        while await value(other, "a") != 1:  # it was never cancelled
            await asyncio.sleep(0.01)


async def test_a_caller_who_goes_away_during_a_commit_leaves_it_alone(
    dsn: str, database: Database, other: Connection
) -> None:
    pids: list[int] = []

    async def work(tx: Transaction) -> None:
        pids.append(await pid_of(tx))
        tx.later("INSERT INTO counters VALUES ('slow', 1)")

    running = asyncio.create_task(database.transact(work))
    await until_active(other, "COMMIT")
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(running, 10)
    await until_active(other, "COMMIT")  # it goes on, and nobody has spoken into it
    assert await database.transact(pid_of) not in pids
    await kill(other, pids[0])
    async with asyncio.timeout(5):
        while database._outliving:
            await asyncio.sleep(0.01)


async def test_a_read_that_is_not_answered_is_given_up(
    database: Database, other: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(db, "GRACE_SECONDS", 0.1)
    monkeypatch.setattr(db, "TRANSACTION_SECONDS", 0.2)
    started = time.monotonic()
    async with raises(Retryable, "DATABASE_UNAVAILABLE", Kind.RETRYABLE):
        await database.fetch("SELECT pg_sleep(20)")
    assert time.monotonic() - started < 10


async def test_idle_connections_that_were_killed_are_replaced(database: Database, other: Connection) -> None:
    async def quick(tx: Transaction) -> int:
        return await pid_of(tx)

    before = {await database.transact(quick) for _ in range(2 * POOL_SIZE)}
    for pid in before:
        await kill(other, pid)
    after: set[int] = set()
    failures = 0
    while not after:
        try:
            after.add(await database.transact(quick))
        except Retryable:
            failures += 1
    assert failures <= len(before)
    assert not after & before


async def test_a_read_on_a_killed_connection_is_retryable(database: Database, other: Connection) -> None:
    async def sessions() -> list[int]:
        query = (
            "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        return [pid for (pid,) in await (await other.execute(query)).fetchall()]

    for pid in await sessions():
        await kill(other, pid)
    async with raises(Retryable, "DATABASE_UNAVAILABLE", Kind.RETRYABLE):
        await database.fetch("SELECT 1")


async def test_when_no_connection_is_free_in_time_the_work_is_shed(
    database: Database, other: Connection
) -> None:
    release = asyncio.Event()

    async def hold(tx: Transaction) -> None:
        await release.wait()

    async def never(tx: Transaction) -> None:
        raise AssertionError("there was a connection after all")

    holders = [asyncio.create_task(database.transact(hold)) for _ in range(POOL_SIZE)]
    await until_pool_is_empty(database)
    started = time.monotonic()
    async with raises(Overloaded, "DATABASE_BUSY", Kind.RETRYABLE):
        await database.transact(never, Deadline.after(0.2))
    assert 0.15 < time.monotonic() - started < 10
    release.set()
    await asyncio.gather(*holders)


async def test_a_caller_who_goes_away_leaves_nothing_open(database: Database, other: Connection) -> None:
    async def work(tx: Transaction) -> None:
        await add(tx, "a")
        await tx.execute("SELECT pg_sleep(20)")

    running = asyncio.create_task(database.transact(work))
    await until_active(other, "SELECT pg_sleep(20)")
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(running, 5)
    assert await value(other, "a") == 0


async def test_a_storm_of_failures_leaves_every_connection_usable(
    database: Database, other: Connection
) -> None:
    async def one(number: int) -> None:
        async def work(tx: Transaction) -> None:
            await add(tx, "a")
            if number % 5 == 0:
                raise KeyError(number)
            if number % 5 == 1:
                await tx.execute("SELECT 1/0")
            if number % 5 == 2:
                await tx.execute("SELECT pg_sleep(20)")
            if number % 5 == 3:
                await kill(other, await pid_of(tx))

        await database.transact(work, Deadline.after(0.5 if number % 5 == 2 else 20))

    outcomes = await asyncio.gather(*(one(number) for number in range(40)), return_exceptions=True)
    done = [number for number, outcome in enumerate(outcomes) if outcome is None]
    assert done == [4, 9, 14, 19, 24, 29, 34, 39]
    assert await value(other, "a") == 8


async def test_a_database_that_is_away_is_said_to_be_so_in_time() -> None:
    away = Database(f"postgresql://nobody@127.0.0.1:{free_port()}/nothing", pool_size_max=POOL_SIZE)
    started = time.monotonic()
    async with raises(Retryable, "DATABASE_UNAVAILABLE", Kind.RETRYABLE):
        await away.open(timeout_seconds=0.5)
    assert time.monotonic() - started < 10
    await away.close()


async def until_active(connection: Connection, query: str) -> None:
    """Wait until another session is busy with `query`."""
    async with asyncio.timeout(10):
        while True:
            cursor = await connection.execute(
                "SELECT 1 FROM pg_stat_activity WHERE state = 'active' AND query = %s", (query,)
            )
            if await cursor.fetchone():
                return
            await asyncio.sleep(0.01)


async def until_pool_is_empty(database: Database) -> None:
    async with asyncio.timeout(10):
        while True:
            stats = database._pool.get_stats()
            if stats["pool_size"] == POOL_SIZE and not stats["pool_available"]:
                return
            await asyncio.sleep(0.01)
