"""Payments as three databases have them: what payment wrote down, what the bank did, what fraud said."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

import orjson

from audit.merge import Key, Stream, merge
from audit.report import AuditError
from audit.snapshot import Row, Snapshots
from services.kit.money import Money
from services.payment.domain import WAITING, Event, EventType, Payment, State, UnknownOutcome
from services.payment.ledger import Entry

PAYMENT_COLUMNS = """
       merchant_id, payment_id, order_id, amount_minor, currency, state, version, unknown_outcome, auth_code,
       processor_reference, decline_reason, fraud_score_milli, incremented_minor, captured_minor, refunded_minor,
       settled_minor, fee_minor, rest_released, pending_minor, pending_fee_minor, pending_final, expiring,
       coalesce(extract(epoch FROM expires_at) * 1000, 0)::bigint, processor
"""
"""What `payment_of` reads."""
_PAYMENTS = f"""
SELECT {PAYMENT_COLUMNS} FROM payments ORDER BY merchant_id/*bytes*/, payment_id/*bytes*/
"""
_EVENTS = """
SELECT merchant_id, payment_id, version, type, data::text
FROM payment_events ORDER BY merchant_id/*bytes*/, payment_id/*bytes*/, version
"""
_ENTRIES = """
SELECT merchant_id, split_part(journal_id, '/', 1), journal_id, line, account, amount_minor, currency
FROM journal_entries WHERE journal_id NOT LIKE 'stl\\_%' AND journal_id NOT LIKE 'cor\\_%'
ORDER BY merchant_id/*bytes*/, split_part(journal_id, '/', 1)/*bytes*/, length(journal_id), journal_id/*bytes*/, line
"""
# Operations belong together by the key of the authorization, which is made from the payment's id: a cancelled
# authorization has no reference, and the void that a cancellation makes has not even a key.
_OPERATIONS = """
SELECT * FROM (
    SELECT o.merchant_id, split_part(coalesce(a.key, o.key, o.operation_id), '/', 1) AS payment_id, o.operation_id,
           o.kind, o.result, coalesce(o.undoes, ''), coalesce(o.amount_minor, 0), coalesce(o.currency, ''),
           o.reference, o.auth_code, o.decline_reason, o.final
    FROM operations AS o
    LEFT JOIN operations AS a ON a.merchant_id = o.merchant_id AND a.operation_id = coalesce(o.undoes, o.operation_id)
) AS book ORDER BY merchant_id/*bytes*/, payment_id/*bytes*/
"""
_ASSESSMENTS = """
SELECT merchant_id, payment_id, decision, score_milli FROM assessments WHERE key = payment_id || '/assess'
ORDER BY merchant_id/*bytes*/, payment_id/*bytes*/
"""
_VERSIONS = """
SELECT merchant_id, payment_id, version FROM payments
WHERE (merchant_id, payment_id) IN (SELECT * FROM unnest(%(merchants)s::text[], %(ids)s::text[]))
"""

_STATES = {state.value: state for state in State}
_UNKNOWN = {unknown.value: unknown for unknown in UnknownOutcome}


@dataclass(frozen=True, slots=True)
class Operation:
    """A row of the bank's books; amounts are zero where an authorization was cancelled before it arrived."""

    operation_id: str
    kind: str
    result: str
    undoes: str
    amount: Money
    reference: str
    auth_code: str
    decline_reason: str
    final: bool


@dataclass(frozen=True, slots=True)
class Assessment:
    """What fraud said."""

    decision: str
    score_milli: int


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """An event as it is stored; `type` may be one that nobody knows."""

    version: int
    type: str
    data_json: str

    def read(self) -> Event:
        """In the words of the domain. Raises ValueError for what the domain does not know."""
        return Event(EventType(self.type), orjson.loads(self.data_json))


@dataclass(frozen=True, slots=True)
class PaymentBook:
    """All that is known under one payment's id, or under the id that an operation at the bank claims to be for."""

    merchant_id: str
    id: str
    row: Payment | None
    events: Sequence[StoredEvent]
    entries: Sequence[Entry]
    operations: Sequence[Operation]
    assessments: Sequence[Assessment]

    @property
    def known(self) -> bool:
        """Whether payment has anything under the id; others may have been asked by somebody else."""
        return bool(self.row or self.events or self.entries)

    @property
    def in_flight(self) -> bool:
        """Whether the processor is being asked."""
        return self.row is not None and self.row.state in WAITING


async def read_payments(snapshots: Snapshots) -> AsyncIterator[PaymentBook]:
    """Every payment, by ascending (merchant, id)."""
    payment = snapshots["payment"]
    streams = [
        Stream(payment, _PAYMENTS),
        Stream(payment, _EVENTS),
        Stream(payment, _ENTRIES),
        Stream(snapshots["bank"], _OPERATIONS),
        Stream(snapshots["fraud"], _ASSESSMENTS),
    ]
    async for (merchant_id, payment_id), (rows, events, entries, operations, assessments) in merge(streams):
        yield PaymentBook(
            merchant_id,
            payment_id,
            payment_of(rows[0]) if rows else None,
            [StoredEvent(*row[2:]) for row in events],
            [Entry(row[0], row[2], row[3], row[4], Money(row[5], row[6])) for row in entries],
            [_operation(row) for row in operations],
            [Assessment(*row[2:]) for row in assessments],
        )


async def unmoved_payments(snapshots: Snapshots, books: Sequence[PaymentBook]) -> set[Key]:
    """Those whose row is the same at present as it was in the snapshot."""
    rows = await snapshots["payment"].fetch_present(
        _VERSIONS, {"merchants": [b.merchant_id for b in books], "ids": [b.id for b in books]}
    )
    now = {(merchant, payment_id): version for merchant, payment_id, version in rows}
    return {
        (book.merchant_id, book.id)
        for book in books
        if now.get((book.merchant_id, book.id)) == (book.row.version if book.row else None)
    }


def payment_of(row: Row) -> Payment:
    """The payment in a row of `PAYMENT_COLUMNS`."""
    try:
        state, unknown_outcome = _STATES[row[5]], _UNKNOWN[row[7]]
    except KeyError as error:
        raise AuditError(f"payment {row[1]} is in a state that this audit does not know: {error}") from error
    return Payment(
        row[0],
        row[1],
        row[2],
        Money(row[3], row[4]),
        state,
        row[6],
        0,
        unknown_outcome,
        *row[8:],
    )


def _operation(row: Row) -> Operation:
    return Operation(row[2], row[3], row[4], row[5], Money(row[6], row[7]), row[8], row[9], row[10], row[11])
