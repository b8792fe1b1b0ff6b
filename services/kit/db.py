"""The one way to a service's own database.

`Database.transact(work)` runs `work(tx)` between BEGIN and COMMIT. Serialization failures and deadlocks (40001, 40P01)
are retried with jitter. A query does not outlive the caller it is for: the statement timeout of a session is
`STATEMENT_SECONDS`, and a tighter deadline shortens it. No call to the outside belongs into `work`.

Statements travel in flights: what nobody waits for (BEGIN, `Transaction.later`) leaves together with the next statement
that somebody does wait for, and the last ones with COMMIT. A round trip costs more processor time than a small
statement, on both sides, and an order takes dozens of statements.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator
from typing import Any, TypeVar

import psycopg
from psycopg import errors as pg
from psycopg.pq.abc import PGresult
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from services.kit.deadline import Deadline
from services.kit.errors import Overloaded, Retryable, Unknown
from services.kit.session import FlightFailed, Session, Statement
from services.kit.statements import Params, Row

T = TypeVar("T")

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


_KEPT_PLANS = {
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
}
"""Sets are looked up by their keys. There is one good plan for that, whatever the tables hold: take each key to its
index. So statements are planned once, and nothing else is offered to the planner: what it would choose for a table that
is still empty is wrong within seconds of a rush."""

_PLAN_ANEW = "SELECT " + ", ".join(
    f"set_config('{name}', '{'force_custom_plan' if name == 'plan_cache_mode' else 'on'}', true)"
    for name in _KEPT_PLANS
)
"""The opposite, until the end of the transaction: for searches, whose best plan depends on what is asked for."""


class Sent:
    """A statement that leaves with the next flight, which may be that of COMMIT. To wait for it gives its rows."""

    __slots__ = ("_session", "_statement")

    def __init__(self, session: Session, statement: Statement) -> None:
        self._session = session
        self._statement = statement

    def __await__(self) -> Generator[Any, None, list[Row]]:
        return self._rows().__await__()

    @property
    def answered(self) -> bool:
        """Whether its answer is there."""
        return self._statement.answer is not None

    async def count(self) -> int:
        """How many rows it touched."""
        return (await self._answer()).command_tuples or 0

    async def _rows(self) -> list[Row]:
        return self._session.rows(await self._answer())

    async def _answer(self) -> PGresult:
        if self._statement.answer is None:
            assert self._session.awaits(self._statement), "the transaction of this statement is over"
            try:
                await self._session.fly()
            except FlightFailed as failed:
                raise failed.error from None
        assert self._statement.answer is not None, "a flight answers what it carries"
        return self._statement.answer


class Transaction:
    """What a transaction's work gets to talk to the database."""

    __slots__ = ("_session", "announces", "urgent")

    def __init__(self, session: Session) -> None:
        self._session = session
        self.announces = False
        """Whether something was appended to the outbox."""
        self.urgent = False
        """Whether somebody waits for what follows from it."""

    def later(self, sql: str, params: Params | None = None) -> Sent:
        """A statement whose answer nobody needs yet: it leaves, in its turn, with the next one that is waited for, or
        with COMMIT. Should it fail, that one raises its error."""
        return Sent(self._session, self._session.queue(sql, params))

    async def execute(self, sql: str, params: Params | None = None) -> int:
        """Carry a statement out; returns how many rows it touched."""
        return await self.later(sql, params).count()

    async def fetch(self, sql: str, params: Params | None = None) -> list[Row]:
        """Carry a statement out; returns its rows."""
        return await self.later(sql, params)


class Database:
    """A pool of connections to one database."""

    def __init__(self, dsn: str, *, pool_size_max: int) -> None:
        self.on_announced: Callable[[bool], None] | None = None
        """Called after a transaction that announced something was committed, with whether it is urgent: a hint for the
        relay, no more."""
        self._outliving: set[asyncio.Task[None]] = set()
        self._pool: AsyncConnectionPool[Session] = AsyncConnectionPool(
            dsn,
            connection_class=Session,
            min_size=2,
            max_size=pool_size_max,
            open=False,
            configure=_configure,
            check=None,
            timeout=TRANSACTION_SECONDS,
            kwargs={"autocommit": True, "client_encoding": "utf8", **_KEEPALIVE},
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
        self,
        work: Callable[[Transaction], Awaitable[T]],
        deadline: Deadline | None = None,
        *,
        plan_anew: bool = False,
    ) -> T:
        """Run `work` in one transaction and return what it returns. `plan_anew` is for work that searches; what looks
        rows up by their keys does without (see `_KEPT_PLANS`).

        Raises Unknown when the connection broke during COMMIT, Retryable when it broke before, the deadline is too near
        or every attempt lost against its neighbours, Overloaded when no connection was free in time.
        """
        until = deadline or Deadline.after(TRANSACTION_SECONDS)
        for attempt in range(1, ATTEMPTS_MAX + 1):
            try:
                async with self._session(until) as session:
                    return await _once(session, work, until, plan_anew, self.on_announced)
            except (pg.SerializationFailure, pg.DeadlockDetected) as error:
                if attempt == ATTEMPTS_MAX:
                    raise Retryable(
                        "DATABASE_CONTENTION", f"lost against other transactions {attempt} times"
                    ) from error
                delay = RETRY_FIRST_SECONDS * 2**attempt * random.random()  # noqa: S311 - jitter
                await asyncio.sleep(delay)
        raise AssertionError("unreachable")

    async def fetch(self, sql: str, params: Params | None = None) -> list[Row]:
        """The rows of one reading statement, planned for its parameters. Raises Retryable when the connection broke,
        Overloaded when none was free in time."""
        async with self._session(Deadline.after(TRANSACTION_SECONDS)) as session:
            session.queue(_PLAN_ANEW)  # of the flight's own transaction, so it ends with it
            try:
                async with asyncio.timeout(TRANSACTION_SECONDS + GRACE_SECONDS):
                    return await Transaction(session).fetch(sql, params)
            except psycopg.OperationalError as error:
                raise _translated(error, committing=False) from error
            except TimeoutError as error:
                await session.close()
                raise Retryable("DATABASE_UNAVAILABLE", "the database did not answer in time") from error

    @contextlib.asynccontextmanager
    async def _session(self, until: Deadline) -> AsyncIterator[Session]:
        try:
            session = await self._pool.getconn(timeout=max(until.remaining(), 0.001))
        except PoolTimeout as error:
            raise Overloaded(
                "DATABASE_BUSY",
                "no database connection was free in time",
                retry_after_ms=UNAVAILABLE_RETRY_AFTER_MS,
            ) from error
        except psycopg.OperationalError as error:  # the pool is closed
            raise _translated(error, committing=False) from error
        commit: asyncio.Task[None] | None = None
        try:
            try:
                session.begin_flights()
            except psycopg.OperationalError as error:
                raise _translated(error, committing=False) from error
            yield session
        except _CommitLeft as left:
            commit = left.commit
            if left.cancelled:
                raise asyncio.CancelledError from None
            raise Unknown("COMMIT_UNKNOWN", "the database has not confirmed the commit in time") from None
        finally:
            if commit is None:
                await self._give_back(session)
            else:
                task = asyncio.create_task(self._outlive(session, commit))
                self._outliving.add(task)
                task.add_done_callback(self._outliving.discard)

    async def _give_back(self, session: Session) -> None:
        try:
            session.end_flights()
        except psycopg.Error:
            # An answer is still to come: nobody may find it in the place of their own.
            await session.close()
        await self._pool.putconn(session)

    async def _outlive(self, session: Session, commit: asyncio.Task[None]) -> None:
        """Let a commit that was left alone come to its own end, then give its connection back."""
        await asyncio.wait((commit,))
        log.warning("a commit that nobody waited for any more has ended")
        with contextlib.suppress(Exception):
            commit.result()
        await session.close()
        await self._pool.putconn(session)


class _CommitLeft(Exception):
    """The server has not confirmed a COMMIT in time, or whoever waited for it has gone away. It is left alone: to
    cancel one that waits for a standby would make it visible without making it safe."""

    def __init__(self, commit: asyncio.Task[None], *, cancelled: bool) -> None:
        super().__init__("COMMIT was left alone")
        self.commit = commit
        self.cancelled = cancelled


async def _commit(session: Session, seconds: float) -> None:
    """Send COMMIT, and with it what the work has left for later. Raises FlightFailed with `last` for COMMIT itself."""
    statement = session.queue("COMMIT")
    commit = asyncio.create_task(session.fly())
    try:
        done, _ = await asyncio.wait((commit,), timeout=seconds)
    except asyncio.CancelledError:
        raise _CommitLeft(commit, cancelled=True) from None
    if not done:
        raise _CommitLeft(commit, cancelled=False)
    commit.result()
    if statement.answer is None or statement.answer.command_status != b"COMMIT":
        # The work went on after one of its statements had failed, and the server rolled back without an error.
        raise pg.InFailedSqlTransaction("a statement of this transaction failed, so nothing was committed")


async def _configure(session: Session) -> None:
    for name, value in _KEPT_PLANS.items():
        await session.execute(f"SET {name} = {value}")
    # For the session, so that an ordinary transaction does not pay for it: a SET costs as much as a small statement.
    await session.execute(f"SET statement_timeout = {STATEMENT_SECONDS * 1000:.0f}")
    await session.execute(f"SET idle_in_transaction_session_timeout = {SILENCE_SECONDS * 1000:.0f}")


async def _once(
    session: Session,
    work: Callable[[Transaction], Awaitable[T]],
    until: Deadline,
    plan_anew: bool,
    on_announced: Callable[[bool], None] | None,
) -> T:
    timeout_ms = max(STATEMENT_FLOOR_MS, int(until.remaining() * 1000))
    committing = False
    try:
        async with asyncio.timeout(timeout_ms / 1000 + GRACE_SECONDS):
            session.queue("BEGIN")
            if plan_anew:
                session.queue(_PLAN_ANEW)
            if timeout_ms < (STATEMENT_SECONDS - GRACE_SECONDS) * 1000:
                session.queue(f"SET LOCAL statement_timeout = {timeout_ms}", prepare=False)
            tx = Transaction(session)
            result = await work(tx)
        committing = True
        await _commit(session, until.remaining() + GRACE_SECONDS)
        if tx.announces and on_announced is not None:
            on_announced(tx.urgent)
        return result
    except _CommitLeft:
        raise
    except TimeoutError as error:
        # The server itself no longer answers: what this connection does is anyone's guess.
        await session.close()
        raise _translated(
            psycopg.OperationalError("no answer within the deadline"), committing=False
        ) from error
    except FlightFailed as failed:
        # Of the flight with COMMIT: what stood before it failed, then the server has not even tried to commit.
        await _roll_back(session)
        raise _translated(failed.error, committing=failed.last) from None
    except BaseException as error:
        await _roll_back(session)
        translated = _translated(error, committing)
        if translated is error:
            raise
        raise translated from error


async def _roll_back(session: Session) -> None:
    session.forget()
    if session.broken or session.closed or session.idle:
        return
    session.queue("ROLLBACK")
    try:
        async with asyncio.timeout(GRACE_SECONDS):
            await session.fly()
    except (psycopg.Error, FlightFailed):
        pass  # it broke just now; the pool will see it
    except TimeoutError:
        await session.close()


@contextlib.contextmanager
def committed() -> Iterator[None]:
    """Around reading back what has been committed: that the reading fails does not mean that nothing happened."""
    try:
        yield
    except Retryable as error:
        raise Unknown(
            "ANSWER_UNREAD",
            "it was carried out, but the answer could not be read; ask again with the same key",
            retry_after_ms=error.retry_after_ms,
        ) from error


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
