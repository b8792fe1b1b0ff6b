"""A connection whose statements travel in flights: queued one by one, sent together, answered together.

psycopg connects, pools, cancels, names the errors and reads the rows; this adds how statements are sent, with libpq's
pipeline mode. Its own cursors cost three times the processor time for each statement, and an order takes dozens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import errors as pg
from psycopg.abc import PQGen
from psycopg.adapt import Transformer
from psycopg.pq import ConnStatus, ExecStatus, Format, TransactionStatus
from psycopg.pq.abc import PGconn, PGresult
from psycopg.rows import TupleRow
from psycopg.waiting import Ready, Wait

from services.kit.statements import Params, Row, encode, translate

_GOOD = (ExecStatus.COMMAND_OK, ExecStatus.TUPLES_OK)
_COPIES = (ExecStatus.COPY_IN, ExecStatus.COPY_OUT, ExecStatus.COPY_BOTH)
"""The server would wait for us for ever, and we for it."""


@dataclass(slots=True)
class Statement:
    """One that is queued, or has been answered."""

    sql: str
    """As it was written; its translation is prepared once per connection under this text."""
    values: list[bytes | None]
    formats: list[int]
    prepare: bool
    answer: PGresult | None = None


class FlightFailed(Exception):
    """A statement of a flight failed; what came behind it was not carried out."""

    def __init__(self, error: psycopg.Error, *, last: bool) -> None:
        super().__init__(str(error))
        self.error = error
        self.last = last
        """Whether it was the last statement of the flight."""


class Session(psycopg.AsyncConnection[TupleRow]):
    """One connection. Between `begin_flights` and `end_flights` psycopg's own way of executing statements is closed."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._queued: list[Statement] = []
        self._flying = False
        self._named: dict[str, bytes] = {}
        self._named_count = 0
        self._reader = Transformer(self)

    def begin_flights(self) -> None:
        """From now on statements are queued, for another user than before."""
        self._queued.clear()
        self.pgconn.enter_pipeline_mode()

    def end_flights(self) -> None:
        """Everything that was sent has been answered."""
        self._queued.clear()
        self.pgconn.exit_pipeline_mode()

    @property
    def idle(self) -> bool:
        """Whether the server is in no transaction, as of its last answer."""
        return self.pgconn.transaction_status == TransactionStatus.IDLE

    def queue(self, sql: str, params: Params | None = None, *, prepare: bool = True) -> Statement:
        """Let a statement leave with the next flight. `prepare` is for texts that are constants of the program."""
        values: list[bytes | None] = []
        formats: list[int] = []
        if params is not None:
            for name in translate(sql).names:
                value, form = encode(params[name])
                values.append(value)
                formats.append(form)
        statement = Statement(sql, values, formats, prepare)
        self._queued.append(statement)
        return statement

    def awaits(self, statement: Statement) -> bool:
        """Whether a statement is queued here: then the next flight answers it."""
        return any(one is statement for one in self._queued)

    def forget(self) -> None:
        """Let nothing that is queued leave."""
        self._queued.clear()

    async def fly(self) -> None:
        """Send what is queued and wait for the answers. Raises FlightFailed, or psycopg's OperationalError when the
        connection is lost. One flight at a time: two would read each other's answers."""
        assert not self._flying, "a transaction waits for one statement after the other"
        self._flying = True
        try:
            await self._fly()
        finally:
            self._flying = False

    async def _fly(self) -> None:
        flight, self._queued = self._queued, []
        fresh: dict[str, bytes] = {}
        for statement in flight:
            self._send(statement, fresh)
        self.pgconn.pipeline_sync()
        answers = iter(await self.wait(_answers(self.pgconn)))
        unprepared = set(fresh)
        for statement in flight:
            answer = next(answers)
            if statement.sql in unprepared and answer.status in _GOOD:
                unprepared.remove(statement.sql)
                # It stays prepared, whatever comes of the flight.
                self._named[statement.sql] = fresh[statement.sql]
                answer = next(answers)
            if answer.status not in _GOOD:
                raise FlightFailed(pg.error_from_result(answer), last=statement is flight[-1])
            statement.answer = answer

    def rows(self, answer: PGresult) -> list[Row]:
        """The rows of an answer."""
        self._reader.set_pgresult(answer)
        return self._reader.load_rows(0, answer.ntuples, tuple)

    def _send(self, statement: Statement, fresh: dict[str, bytes]) -> None:
        sql = statement.sql
        if not statement.prepare:
            self.pgconn.send_query_params(sql.encode(), None, result_format=Format.BINARY)
            return
        name = self._named.get(sql) or fresh.get(sql)
        if name is None:
            self._named_count += 1
            name = fresh[sql] = b"s%d" % self._named_count
            self.pgconn.send_prepare(name, translate(sql).text)
        self.pgconn.send_query_prepared(name, statement.values, statement.formats, Format.BINARY)


def _answers(pgconn: PGconn) -> PQGen[Sequence[PGresult]]:
    """Flush what was sent and read until the flight is over; yields what to wait for."""
    while pgconn.flush():
        if (yield Wait.RW) & Ready.R:
            pgconn.consume_input()
    results: list[PGresult] = []
    while True:
        while not pgconn.is_busy():
            result = pgconn.get_result()
            if result is None:
                if pgconn.status == ConnStatus.BAD:
                    raise psycopg.OperationalError("the connection is lost")
            elif result.status == ExecStatus.PIPELINE_SYNC:
                return results
            elif result.status in _COPIES:
                pgconn.finish()
                raise psycopg.NotSupportedError("COPY cannot travel in a flight")
            else:
                results.append(result)
        while not (yield Wait.R):
            pass
        pgconn.consume_input()
