"""Reading one database: as it was at one moment, and as it is now."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import Any, TypeAlias, TypeVar

import psycopg
from psycopg import waiting
from psycopg.abc import PQGen
from psycopg.rows import TupleRow

from audit.report import AuditError

Connection: TypeAlias = psycopg.AsyncConnection[TupleRow]
T = TypeVar("T")
Row: TypeAlias = tuple[Any, ...]

CALLERS_FIRST = ("edge", "orchestrator", "inventory", "shipping", "reconciler", "payment", "fraud", "bank")
"""The order in which snapshots are opened; see the package."""
CONNECT_SECONDS = 30
"""A server that is busy or recovering is waited for; one that is not there refuses at once."""
FETCH_ROWS = 2_000
"""Rows that travel at once: a few hundred kB, and few enough round trips not to matter."""

_SETTINGS = """
SET LOCAL statement_timeout = 0;
SET LOCAL idle_in_transaction_session_timeout = 0;
SET LOCAL cursor_tuple_fraction = 1.0;
SET LOCAL work_mem = '64MB';
SET LOCAL enable_nestloop = off;
SET LOCAL enable_mergejoin = off;
SET LOCAL jit = off
"""
"""All rows of a cursor are fetched, so it is planned for the last one and not for the first. Whole tables are joined by
their keys, which hashing does in one go whatever is known about them; on a table without statistics the planner may
take a merge by merchant alone, which is quadratic."""


class Patient(psycopg.AsyncConnection[TupleRow]):
    """A connection that waits for its answers without letting anything else run, for a program that has nothing else to
    do: rows come in packets of 16 kB, and going to the event loop for each takes longer than to read it."""

    async def wait(
        self,
        gen: PQGen[T],
        interval: float = 0.1,
        timeout: float | None = None,  # noqa: ASYNC109 - named by the base class
    ) -> T:
        """Read until the answer is there."""
        return waiting.wait(gen, self.pgconn.socket, interval=interval, timeout=timeout)


class Snapshot:
    """A database as it was when the snapshot was opened."""

    def __init__(self, service: str, connection: Connection, present: Connection, collate: str) -> None:
        self.service = service
        self._connection = connection
        self._present = present
        self._collate = collate
        self._cursors = 0

    async def fetch(self, query: str, params: Mapping[str, Any] | None = None) -> list[Row]:
        """The rows of a query that returns few."""
        with _explained(self.service):
            cursor = await self._connection.execute(query.encode(), params)
            return await cursor.fetchall()

    async def batches(self, query: str) -> AsyncIterator[list[Row]]:
        """The rows of a query that may return millions, in batches. In the query, `/*bytes*/` behind a text to sort by
        makes its order that of bytes, whatever the collation of the database."""
        with _explained(self.service):
            self._cursors += 1
            async with self._connection.cursor(name=f"audit_{self._cursors}") as cursor:
                await cursor.execute(query.replace("/*bytes*/", self._collate).encode(), binary=True)
                while rows := await cursor.fetchmany(FETCH_ROWS):
                    yield rows

    async def fetch_present(self, query: str, params: Mapping[str, Any] | None = None) -> list[Row]:
        """The rows of a query over the database as it is now."""
        with _explained(self.service):
            cursor = await self._present.execute(query.encode(), params)
            return await cursor.fetchall()


Snapshots: TypeAlias = Mapping[str, Snapshot]
"""By service."""


@asynccontextmanager
async def open_snapshots(dsns: Mapping[str, str]) -> AsyncIterator[Snapshots]:
    """A snapshot of every database, callers before callees. Raises AuditError when one cannot be read."""
    check_complete(dsns)
    async with AsyncExitStack() as stack:
        # All connections first, so that as little time as possible passes between the snapshots.
        pairs = {
            name: [await stack.enter_async_context(connect(name, dsns[name])) for _ in "12"] for name in dsns
        }
        snapshots = {}
        for name in CALLERS_FIRST:
            snapshots[name] = await _snapshot(name, *pairs[name])
        yield snapshots


@asynccontextmanager
async def open_snapshot(service: str, dsn: str) -> AsyncIterator[Snapshot]:
    """A snapshot of one database. Raises AuditError when it cannot be read."""
    async with connect(service, dsn, Patient) as connection, connect(service, dsn, Patient) as present:
        yield await _snapshot(service, connection, present)


async def _snapshot(service: str, connection: Connection, present: Connection) -> Snapshot:
    with _explained(service):
        await connection.set_autocommit(False)
        await connection.set_isolation_level(psycopg.IsolationLevel.REPEATABLE_READ)
        await connection.execute(_SETTINGS)
        # The first query takes the snapshot. This one also tells how texts are sorted.
        cursor = await connection.execute("SELECT 'B'::text < 'a'::text")
        row = await cursor.fetchone()
    assert row is not None
    return Snapshot(service, connection, present, "" if row[0] else ' COLLATE "C"')


@asynccontextmanager
async def connect(
    service: str, dsn: str, kind: type[Connection] = psycopg.AsyncConnection
) -> AsyncIterator[Connection]:
    """A connection that cannot write, in autocommit. Raises AuditError when there is none to be had."""
    with _explained(service):
        connection: Connection = await kind.connect(
            dsn, autocommit=True, connect_timeout=CONNECT_SECONDS, application_name="paymesh-audit"
        )
    try:
        with _explained(service):
            await connection.set_read_only(True)
            await connection.execute("SET default_transaction_read_only = on")
        yield connection
    finally:
        await asyncio.shield(connection.close())


def check_complete(dsns: Mapping[str, str], wanted: Sequence[str] = CALLERS_FIRST) -> None:
    """Raises AuditError unless there is a DSN for every database that is wanted."""
    missing = [name for name in wanted if not dsns.get(name)]
    if missing:
        variables = ", ".join(f"PAYMESH_{name.upper()}_DATABASE_DSN" for name in missing)
        raise AuditError(f"it is not known where the database of {', '.join(missing)} is: set {variables}")


@contextmanager
def _explained(service: str) -> Iterator[None]:
    """Failures of a database as one line that names it."""
    try:
        yield
    except (psycopg.errors.UndefinedTable, psycopg.errors.UndefinedColumn) as error:
        raise AuditError(
            f"the database of {service} does not have the tables of {service}: {_line(error)}"
        ) from error
    except psycopg.ProgrammingError as error:
        raise AuditError(f"the database of {service} cannot be read: {_line(error)}") from error
    except psycopg.OperationalError as error:
        raise AuditError(f"the database of {service} does not answer: {_line(error)}") from error


def _line(error: psycopg.Error) -> str:
    return error.diag.message_primary or " ".join(str(error).split())
