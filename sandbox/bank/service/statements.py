"""The RPCs of end-of-day statements: books in, files out; and errors in them on demand."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import date, timedelta

from paymesh.bank.v1 import statement_pb2 as pb
from paymesh.bank.v1 import statement_pb2_grpc
from sandbox.bank.domain.statements import (
    ERRORS_MAX,
    LATE_DAYS_MAX,
    Booked,
    ErrorKind,
    StatementError,
    draw_errors,
    entries_one_by_one,
    entry_of_batch,
    entry_of_error,
)
from sandbox.bank.mishaps import Context
from sandbox.bank.statements.formats import WRITERS
from sandbox.bank.statements.statement import CHUNK_BYTES, Entry, Head, Writer, account_number
from sandbox.bank.store import statements as store
from services.kit.checks import Checks, page_size
from services.kit.clock import now
from services.kit.db import Database, Transaction
from services.kit.deadline import Deadline
from services.kit.errors import NotFound, Retryable

STATEMENT_NAME = "paymesh.bank.v1.StatementService"
ACCOUNTS_AT_ONCE = 500
BOOKINGS_AT_ONCE = 2_000
"""Rows of one query: some hundred kilobytes, and milliseconds."""
INJECT_SECONDS = 30.0

_FORMATS = {
    pb.STATEMENT_FORMAT_CAMT053: "camt053",
    pb.STATEMENT_FORMAT_MT940: "mt940",
    pb.STATEMENT_FORMAT_BAI2: "bai2",
    pb.STATEMENT_FORMAT_CSV: "csv",
}
_KINDS = {kind: pb.StatementErrorKind.Value(f"STATEMENT_ERROR_KIND_{kind}") for kind in ErrorKind}
_KINDS_BY_NUMBER = {number: kind for kind, number in _KINDS.items()}


class StatementService(statement_pb2_grpc.StatementServiceServicer):
    """See the contract, paymesh/bank/v1/statement.proto."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def drain(self) -> None:
        """Nothing is gathered here: every call ends by itself."""

    async def GetStatement(
        self, request: pb.GetStatementRequest, context: Context
    ) -> AsyncIterator[pb.GetStatementResponse]:
        checks = Checks()
        day = _day(checks, request.date)
        checks.text("merchant_id", request.merchant_id, optional=True)
        if request.format not in _FORMATS:
            checks.fail("format", f"{request.format} is not a format of statements")
        if request.detail not in pb.StatementDetail.values():
            checks.fail("detail", f"{request.detail} is neither BATCHES nor ITEMS")
        checks.done()
        file = StatementFile(
            self._database,
            WRITERS[_FORMATS[request.format]](),
            day,
            request.merchant_id,
            items=request.detail == pb.STATEMENT_DETAIL_ITEMS,
        )
        buffer: list[bytes] = []
        size = 0
        async for piece in file.pieces():
            buffer.append(piece)
            size += len(piece)
            if size >= CHUNK_BYTES:
                yield pb.GetStatementResponse(chunk=b"".join(buffer))
                buffer, size = [], 0
        if buffer:
            yield pb.GetStatementResponse(chunk=b"".join(buffer))

    async def InjectStatementErrors(
        self, request: pb.InjectStatementErrorsRequest, context: Context
    ) -> pb.InjectStatementErrorsResponse:
        checks = Checks()
        day = _day(checks, request.date)
        checks.text("merchant_id", request.merchant_id, optional=True)
        checks.number("late_days", request.late_days, at_least=0, at_most=LATE_DAYS_MAX)
        counts = _counts(checks, request)
        checks.done()
        at = now()

        async def work(tx: Transaction) -> list[StatementError]:
            standing = await store.find_errors(tx, day, request.seed)
            if standing:
                return standing
            sound = await store.list_sound_bookings(tx, day, request.merchant_id)
            drawn = draw_errors(sound, counts, day, request.seed, request.late_days or 1, at)
            await store.insert_errors(tx, drawn)
            return drawn

        errors = await self._database.transact(work, Deadline.after(INJECT_SECONDS))
        return pb.InjectStatementErrorsResponse(errors=[_message(error) for error in errors])

    async def ListStatementErrors(
        self, request: pb.ListStatementErrorsRequest, context: Context
    ) -> pb.ListStatementErrorsResponse:
        checks = Checks()
        day = _day(checks, request.date) if request.date else None
        checks.text("merchant_id", request.merchant_id, optional=True)
        after = _cursor(checks, request.page_token)
        checks.done()
        size = page_size(request.page_size)
        errors = await store.list_errors(self._database, day, request.merchant_id, after, size + 1)
        last = errors[size - 1] if len(errors) > size else None
        return pb.ListStatementErrorsResponse(
            errors=[_message(error) for error in errors[:size]],
            next_page_token=f"{last.day}/{last.seed}/{last.number}" if last else "",
        )


class StatementFile:
    """The statements of a day on their way out, one account after the other."""

    def __init__(
        self, database: Database, writer: Writer, day: date, merchant_id: str, *, items: bool
    ) -> None:
        self._database = database
        self._writer = writer
        self._day = day
        self._merchant_id = merchant_id
        self._items = items
        self._until = now()

    async def pieces(self) -> AsyncIterator[bytes]:
        """The bytes of the file. Raises NotFound when there is no account, Retryable when something is booked
        meanwhile."""
        accounts = await self._accounts(("", ""))
        if not accounts:
            raise NotFound("NO_STATEMENT", f"no account has anything to tell of {self._day}")
        yield self._writer.begin_file(self._day)
        while accounts:
            for account in accounts:
                async for piece in self._statement(account):
                    yield piece
            accounts = await self._accounts((accounts[-1].merchant_id, accounts[-1].currency))
        yield self._writer.end_file()

    async def _accounts(self, after: tuple[str, str]) -> list[store.Account]:
        return await store.list_accounts(
            self._database, self._day, self._until, self._merchant_id, after, ACCOUNTS_AT_ONCE
        )

    async def _statement(self, account: store.Account) -> AsyncIterator[bytes]:
        yield self._writer.begin(
            Head(
                self._day.timetuple().tm_yday,
                account_number(account.merchant_id, account.currency),
                account.currency,
                self._day - timedelta(days=1),
                account.opening_minor,
                self._day,
                account.closing_minor,
            )
        )
        sum_minor = account.opening_minor
        async for entry in self._entries(account):
            sum_minor += entry.whole.amount_minor
            yield self._writer.entry(entry)
        if sum_minor != account.closing_minor:
            raise Retryable("DAY_NOT_OVER", f"something was booked on {self._day} meanwhile; ask again")
        yield self._writer.end()

    async def _entries(self, account: store.Account) -> AsyncIterator[Entry]:
        """What is booked and not hidden by an error, then what errors show."""
        errors = await store.list_shown_errors(self._database, account.merchant_id, self._day)
        hidden = {error.line_id for error in errors if error.kind.hides and error.day == self._day}
        batch: list[Booked] = []
        async for booked in self._bookings(account):
            if booked.line_id in hidden:
                continue
            if self._items:
                for entry in entries_one_by_one([booked]):
                    yield entry
                continue
            if batch and (not booked.batch_id or booked.batch_id != batch[0].batch_id):
                yield entry_of_batch(batch)
                batch = []
            batch.append(booked)
        if batch:
            yield entry_of_batch(batch)
        shown = [
            error
            for error in errors
            if error.shown_on == self._day
            and error.shown_currency == account.currency
            and error.kind is not ErrorKind.MISSING
        ]
        about = await store.find_bookings(
            self._database, account.merchant_id, [error.line_id for error in shown]
        )
        for error in shown:
            yield entry_of_error(error, about.get(error.line_id))

    async def _bookings(self, account: store.Account) -> AsyncIterator[Booked]:
        after = ("", "")
        while page := await store.list_bookings(
            self._database, account, self._day, self._until, after, BOOKINGS_AT_ONCE
        ):
            for booked in page:
                yield booked
            after = (page[-1].batch_id, page[-1].line_id)


def _day(checks: Checks, text: str) -> date:
    try:
        day = date.fromisoformat(text) if len(text) == len("2026-11-26") else None
    except ValueError:
        day = None
    if day is None:
        checks.fail("date", "must be a day like 2026-11-26")
    elif day > now().date():
        checks.fail("date", "is still to come")
    return day or date.min


def _counts(checks: Checks, request: pb.InjectStatementErrorsRequest) -> dict[ErrorKind, int]:
    counts: dict[ErrorKind, int] = {}
    for place, count in enumerate(request.counts):
        kind = _KINDS_BY_NUMBER.get(count.kind)
        if kind is None:
            checks.fail(f"counts[{place}].kind", f"{count.kind} is not a kind of error")
        elif kind in counts:
            checks.fail(f"counts[{place}].kind", f"{kind} is there twice")
        else:
            counts[kind] = count.count
        checks.number(f"counts[{place}].count", count.count, at_least=1, at_most=ERRORS_MAX)
    if not counts:
        checks.fail("counts", "is empty: name at least one kind of error")
    elif sum(counts.values()) > ERRORS_MAX:
        checks.fail("counts", f"are {sum(counts.values()):,} errors; at most {ERRORS_MAX:,} at once")
    return counts


def _cursor(checks: Checks, token: str) -> tuple[date, int, int]:
    if not token:
        return (date.min, 0, 0)
    try:
        day, seed, number = token.split("/")
        return (date.fromisoformat(day), int(seed), int(number))
    except ValueError:
        checks.fail("page_token", "is not one that ListStatementErrors has given")
        return (date.min, 0, 0)


def _message(error: StatementError) -> pb.StatementError:
    message = pb.StatementError(
        merchant_id=error.merchant_id,
        date=str(error.day),
        seed=error.seed,
        number=error.number,
        kind=_KINDS[error.kind],
        bank_reference=error.line_id,
        booked_minor=error.booked_minor,
        currency=error.currency,
        shown_minor=error.shown_minor,
        shown_currency=error.shown_currency,
        shown_on=str(error.shown_on),
    )
    message.created_at.FromDatetime(error.created_at)
    return message
