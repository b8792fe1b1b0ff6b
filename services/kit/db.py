"""The one way to a service's own database.

`Database.transact(work)` runs `work(connection)` between BEGIN and COMMIT. Serialization failures and deadlocks
(40001, 40P01) are retried with jitter. A query does not outlive the caller it is for: the statement timeout of a
session is `STATEMENT_SECONDS`, and a tighter deadline shortens it. No call to the outside belongs into `work`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeAlias, TypeVar

import psycopg
from psycopg import errors as pg
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from services.kit.deadline import Deadline
from services.kit.errors import Overloaded, Retryable, Unknown

T = TypeVar("T")
Connection: TypeAlias = psycopg.AsyncConnection[TupleRow]
Row: TypeAlias = tuple[Any, ...]

log = logging.getLogger(__name__)

TRANSACTION_SECONDS = 10.0
"""Longest transaction when the caller sets no tighter deadline. A set of 1,000 takes well under a second."""
STATEMENT_FLOOR_MS = 50
"""A nearly expired deadline still gets this much: zero would mean no timeout at all to PostgreSQL."""
STATEMENT_SECONDS = 5.0
"""Longest statement. A tighter deadline than that, less the grace, shortens it for its transaction."""
GRACE_SECONDS = 1.0
"""How much longer than its statements a transaction may take before it is given up from our side."""
SILENCE_SECONDS = 5.0
"""How long the server waits in mid-transaction for a process that has fallen silent. Then it ends the transaction, so
that its row locks do not stop everybody else for hours; nobody thinks that long between two statements."""
ATTEMPTS_MAX = 8
"""Attempts at a transaction that loses against its neighbours. Sorted locks make even a second one rare."""
RETRY_FIRST_SECONDS = 0.005
UNAVAILABLE_RETRY_AFTER_MS = 500


_KEEPALIVE = {
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
}
"""A server that vanishes without a word is noticed within about ten seconds, not after the two hours of the default."""


class Database:
    """A pool of connections to one database."""

    def __init__(self, dsn: str, *, pool_size_max: int) -> None:
        self._outliving: set[asyncio.Task[None]] = set()
        self._pool: AsyncConnectionPool[Connection] = AsyncConnectionPool(
            dsn,
            min_size=2,
            max_size=pool_size_max,
            open=False,
            configure=_configure,
            check=None,
            timeout=TRANSACTION_SECONDS,
            kwargs={"autocommit": True, "prepare_threshold": 0} | _KEEPALIVE,
        )

    async def open(self, timeout_seconds: float = 30.0) -> None:
        """Connect. Raises Retryable when the database does not answer in time."""
        try:
            await self._pool.open(wait=True, timeout=timeout_seconds)
        except PoolTimeout as error:
            raise Retryable(
                "DATABASE_UNAVAILABLE", f"no connection within {timeout_seconds:.0f} s"
            ) from error

    async def close(self) -> None:
        """Give all connections back."""
        await self._pool.close()

    async def transact(
        self, work: Callable[[Connection], Awaitable[T]], deadline: Deadline | None = None
    ) -> T:
        """Run `work` in one transaction and return what it returns.

        Raises Unknown when the connection broke during COMMIT, Retryable when it broke before, the deadline is too near
        or every attempt lost against its neighbours, Overloaded when no connection was free in time.
        """
        until = deadline or Deadline.after(TRANSACTION_SECONDS)
        for attempt in range(1, ATTEMPTS_MAX + 1):
            try:
                async with self._connection(until) as connection:
                    return await _once(connection, work, until)
            except (pg.SerializationFailure, pg.DeadlockDetected) as error:
                if attempt == ATTEMPTS_MAX:
                    raise Retryable(
                        "DATABASE_CONTENTION", f"lost against other transactions {attempt} times"
                    ) from error
                delay = RETRY_FIRST_SECONDS * 2**attempt * random.random()  # noqa: S311 - jitter
                await asyncio.sleep(delay)
        raise AssertionError("unreachable")

    async def fetch(self, query: str, params: dict[str, Any] | None = None) -> list[Row]:
        """The rows of one reading statement. Raises Retryable when the connection broke, Overloaded when none was
        free in time."""
        async with self._connection(Deadline.after(TRANSACTION_SECONDS)) as connection:
            try:
                async with asyncio.timeout(TRANSACTION_SECONDS + GRACE_SECONDS):
                    cursor = await connection.execute(query, params, binary=True)
                    return await cursor.fetchall()
            except psycopg.OperationalError as error:
                raise _translated(error, committing=False) from error
            except TimeoutError as error:
                await connection.close()
                raise Retryable("DATABASE_UNAVAILABLE", "the database did not answer in time") from error

    @contextlib.asynccontextmanager
    async def _connection(self, until: Deadline) -> AsyncIterator[Connection]:
        try:
            connection = await self._pool.getconn(timeout=max(until.remaining(), 0.001))
        except PoolTimeout as error:
            raise Overloaded(
                "DATABASE_BUSY",
                "no database connection was free in time",
                retry_after_ms=UNAVAILABLE_RETRY_AFTER_MS,
            ) from error
        commit: asyncio.Task[object] | None = None
        try:
            yield connection
        except _CommitHangs as error:
            commit = error.commit
            raise Unknown("COMMIT_UNKNOWN", "the database has not confirmed the commit in time") from error
        finally:
            if commit is None:
                await self._pool.putconn(connection)
            else:
                task = asyncio.create_task(self._outlive(connection, commit))
                self._outliving.add(task)
                task.add_done_callback(self._outliving.discard)

    async def _outlive(self, connection: Connection, commit: asyncio.Task[object]) -> None:
        """Let a commit that hangs come to its own end, then give its connection back."""
        await asyncio.wait((commit,))
        log.warning("a commit that nobody waited for any more has ended")
        with contextlib.suppress(Exception):
            commit.result()
        await connection.close()
        await self._pool.putconn(connection)


class _CommitHangs(Exception):
    """The server has not confirmed a COMMIT in time. It is left alone: to cancel one that waits for a standby would
    make it visible without making it safe."""

    def __init__(self, commit: asyncio.Task[object]) -> None:
        super().__init__("COMMIT hangs")
        self.commit = commit


async def _commit(connection: Connection, seconds: float) -> None:
    commit: asyncio.Task[object] = asyncio.create_task(connection.execute("COMMIT", prepare=False))
    done, _ = await asyncio.wait((commit,), timeout=seconds)
    if not done:
        raise _CommitHangs(commit)
    commit.result()


async def _configure(connection: Connection) -> None:
    # A set may hold one item or a thousand, and tables grow from nothing within seconds of a rush: a plan that was kept
    # from a smaller day would join them the wrong way round.
    await connection.execute("SET plan_cache_mode = force_custom_plan")
    # For the session, so that an ordinary transaction does not pay for it: a SET costs as much as a small statement.
    await connection.execute(f"SET statement_timeout = {STATEMENT_SECONDS * 1000:.0f}")
    await connection.execute(f"SET idle_in_transaction_session_timeout = {SILENCE_SECONDS * 1000:.0f}")


async def _once(connection: Connection, work: Callable[[Connection], Awaitable[T]], until: Deadline) -> T:
    timeout_ms = max(STATEMENT_FLOOR_MS, int(until.remaining() * 1000))
    committing = False
    try:
        async with asyncio.timeout(timeout_ms / 1000 + GRACE_SECONDS):
            tight = timeout_ms < (STATEMENT_SECONDS - GRACE_SECONDS) * 1000
            begin = f"BEGIN; SET LOCAL statement_timeout = {timeout_ms}" if tight else "BEGIN"
            await connection.execute(begin, prepare=False)
            result = await work(connection)
        committing = True
        await _commit(connection, until.remaining() + GRACE_SECONDS)
        return result
    except _CommitHangs:
        raise
    except TimeoutError as error:
        # The server itself no longer answers: what this connection does is anyone's guess.
        await connection.close()
        raise _translated(
            psycopg.OperationalError("no answer within the deadline"), committing=False
        ) from error
    except BaseException as error:
        if not connection.broken and not connection.closed:
            with contextlib.suppress(psycopg.Error):  # it broke just now; the pool will see it
                await connection.execute("ROLLBACK", prepare=False)
        translated = _translated(error, committing)
        if translated is error:
            raise
        raise translated from error


def _translated(error: BaseException, committing: bool) -> BaseException:
    """What the caller may conclude from a failure of the database itself; everything else passes unchanged."""
    if isinstance(error, pg.QueryCanceled):
        return Retryable("DEADLINE_TOO_SHORT", "the database needed longer than the deadline allows")
    lost = isinstance(
        error, psycopg.OperationalError | pg.IdleInTransactionSessionTimeout
    ) and not isinstance(error, pg.SerializationFailure | pg.DeadlockDetected)
    if not lost:
        return error
    log.warning("database connection lost %s commit: %s", "during" if committing else "before", error)
    if committing:
        return Unknown("COMMIT_UNKNOWN", "the connection to the database broke while it committed")
    return Retryable(
        "DATABASE_UNAVAILABLE", "the database is not available", retry_after_ms=UNAVAILABLE_RETRY_AFTER_MS
    )
