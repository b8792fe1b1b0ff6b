"""A connection for a run: one long transaction over sets of any size, on a thread of its own.

The pool of the kit is for calls of a second. A run reads files of any size, copies millions of rows and joins them, so
it has a connection to itself, plain psycopg, and a thread that may wait for it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from psycopg import errors as pg
from psycopg.rows import TupleRow

from services.kit.errors import InProgress, PaymeshError, Retryable, Unknown

Connection = psycopg.Connection[TupleRow]

WORK_MEMORY_MB = 48
"""For one sort of a run; what does not fit goes to disk. A statement has three of them at most, so that a run stays far
below a gigabyte however much there is to match."""
HASH_MEMORY_FACTOR = 4
"""A hash table may be so many times as large: it suffers more from having to go to disk in parts."""
PAGES_MEMORY_MB = 128
"""For pages of temporary tables. A million lines with their items have some 400 MB of them, which are gone through
again and again."""
CLIENT_CHECK_MS = 1_000
"""How often the server looks whether we are still there: a run that was killed lets go of its merchant after that."""
RETRY_AFTER_MS = 1_000

_SETTINGS = f"""
SET statement_timeout = 0;
SET idle_in_transaction_session_timeout = '10min';
SET client_connection_check_interval = {CLIENT_CHECK_MS};
SET work_mem = '{WORK_MEMORY_MB}MB';
SET hash_mem_multiplier = {HASH_MEMORY_FACTOR};
SET temp_buffers = '{PAGES_MEMORY_MB}MB';
SET jit = off;
SET max_parallel_workers_per_gather = 0
"""

_KEEPALIVE = {"keepalives_idle": 5, "keepalives_interval": 2, "keepalives_count": 3}


class Stopped(Exception):
    """Nobody waits for the run any more; nothing of it stays."""


class Stop:
    """Ends a run from another thread."""

    def __init__(self) -> None:
        self._asked = threading.Event()
        self._connection: Connection | None = None

    def ask(self) -> None:
        """Let the run end as soon as it can, with nothing done."""
        self._asked.set()
        if self._connection is not None:
            self._connection.cancel_safe()

    def check(self) -> None:
        """Raises Stopped when the run was asked to end."""
        if self._asked.is_set():
            raise Stopped

    def watches(self, connection: Connection) -> None:
        """What is interrupted when the run is asked to end."""
        self._connection = connection


@contextmanager
def run_transaction(dsn: str, merchant_id: str, stop: Stop, *, keep: bool) -> Iterator[Connection]:
    """A transaction that holds the lock on a merchant's books. It is committed at the end if `keep`, and rolled back
    otherwise. Raises InProgress when another run holds the lock, Retryable or Unknown when the database is lost."""
    committing = False
    try:
        with psycopg.connect(dsn, autocommit=True, **_KEEPALIVE) as connection:  # type: ignore[arg-type]
            stop.watches(connection)
            connection.execute(_SETTINGS)
            connection.execute(
                "INSERT INTO books (merchant_id) VALUES (%s) ON CONFLICT DO NOTHING", [merchant_id]
            )
            with connection.transaction(force_rollback=not keep):
                _lock_books(connection, merchant_id)
                yield connection
                stop.check()
                committing = keep
            committing = False
    except (pg.QueryCanceled, pg.AdminShutdown) as error:
        stop.check()
        raise Retryable(
            "DATABASE_UNAVAILABLE", "the database has ended the run; nothing of it stays"
        ) from error
    except psycopg.OperationalError as error:
        raise _lost(committing) from error


def _lock_books(connection: Connection, merchant_id: str) -> None:
    try:
        connection.execute("SELECT 1 FROM books WHERE merchant_id = %s FOR UPDATE NOWAIT", [merchant_id])
    except pg.LockNotAvailable as error:
        raise InProgress(
            "RUN_UNDER_WAY",
            f"another run of {merchant_id!r} is under way; try again when it has ended",
            retry_after_ms=RETRY_AFTER_MS,
        ) from error


def _lost(committing: bool) -> PaymeshError:
    if committing:
        return Unknown(
            "COMMIT_UNKNOWN", "the connection to the database broke while the run was committed; repeat it"
        )
    return Retryable(
        "DATABASE_UNAVAILABLE",
        "the database is not available; nothing of the run stays",
        retry_after_ms=RETRY_AFTER_MS,
    )


def count(connection: Connection, query: str, params: dict[str, object] | None = None) -> int:
    """The number that a query gives."""
    row = connection.execute(query.encode(), params).fetchone()
    assert row is not None
    return int(row[0])
