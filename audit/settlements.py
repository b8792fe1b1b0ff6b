"""Settlements as two databases have them: what payment put together and was told, and what the bank did."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from audit.merge import Key, Stream, merge
from audit.report import AuditError
from audit.snapshot import Row, Snapshots
from services.kit.money import Money
from services.payment.domain.settlement import PayoutState, Settlement, SettlementState
from services.payment.ledger import Entry

_SETTLEMENTS = """
SELECT merchant_id, settlement_id, day, number, currency, state, version, waits_for, items, captured_minor,
       refunded_minor, fee_minor, brought_forward_minor, payout_minor, payout_state, payout_reference, payout_refusal,
       payout_booked_on, payout_value_on, processor_reference, processor_fee_minor, booked_on, value_on
FROM settlements ORDER BY merchant_id/*bytes*/, settlement_id/*bytes*/
"""
_ITEMS = """
SELECT merchant_id, settlement_id, bank_reference, kind, amount_minor, fee_minor, processor_fee_minor, currency,
       posted_version
FROM settlement_items WHERE settlement_id IS NOT NULL
ORDER BY merchant_id/*bytes*/, settlement_id/*bytes*/, bank_reference/*bytes*/
"""
_ENTRIES = """
SELECT merchant_id, split_part(journal_id, '/', 1), journal_id, line, account, amount_minor, currency
FROM journal_entries WHERE journal_id LIKE 'stl\\_%'
ORDER BY merchant_id/*bytes*/, split_part(journal_id, '/', 1)/*bytes*/, journal_id/*bytes*/, line
"""
# By the name that payment has given them.
_BATCHES = """
SELECT merchant_id, reference, batch_id, currency, captured_minor, refunded_minor, fee_minor, booked_on, value_on
FROM settlements ORDER BY merchant_id/*bytes*/, reference/*bytes*/
"""
_OPERATIONS = """
SELECT s.merchant_id, s.reference, o.operation_id, o.kind, so.amount_minor, so.fee_minor, s.currency, o.amount_minor,
       o.currency
FROM settled_operations AS so
JOIN settlements AS s ON s.merchant_id = so.merchant_id AND s.batch_id = so.batch_id
JOIN operations AS o ON o.merchant_id = so.merchant_id AND o.operation_id = so.operation_id
ORDER BY s.merchant_id/*bytes*/, s.reference/*bytes*/, o.operation_id/*bytes*/
"""
_PAYOUTS = """
SELECT merchant_id, reference, payout_id, amount_minor, currency, state, booked_on, value_on
FROM payouts ORDER BY merchant_id/*bytes*/, reference/*bytes*/
"""
_VERSIONS = """
SELECT merchant_id, settlement_id, version FROM settlements
WHERE (merchant_id, settlement_id) IN (SELECT * FROM unnest(%(merchants)s::text[], %(ids)s::text[]))
"""


@dataclass(frozen=True, slots=True)
class Item:
    """A capture or refund of a settlement."""

    bank_reference: str
    kind: str
    amount: Money
    fee_minor: int
    processor_fee_minor: int | None
    posted_version: int | None


@dataclass(frozen=True, slots=True)
class Batch:
    """The bank's settlement."""

    batch_id: str
    currency: str
    captured_minor: int
    refunded_minor: int
    fee_minor: int
    booked_on: object
    value_on: object


@dataclass(frozen=True, slots=True)
class SettledOperation:
    """An operation in the bank's settlement: as it was settled, and as it stands in the bank's books."""

    operation_id: str
    kind: str
    amount: Money
    fee_minor: int
    moved: Money


@dataclass(frozen=True, slots=True)
class AtBank:
    """The bank's payout."""

    payout_id: str
    amount: Money
    state: str
    booked_on: object
    value_on: object


@dataclass(frozen=True, slots=True)
class SettlementBook:
    """All that is known under one settlement's id, in payment's books and as the reference in the bank's."""

    merchant_id: str
    id: str
    row: Settlement | None
    items: Sequence[Item]
    entries: Sequence[Entry]
    batches: Sequence[Batch]
    operations: Sequence[SettledOperation]
    payouts: Sequence[AtBank]

    @property
    def in_flight(self) -> bool:
        """Whether the bank is being asked, or payments still to be told."""
        return self.row is not None and self.row.state is not SettlementState.COMPLETED


async def read_settlements(snapshots: Snapshots) -> AsyncIterator[SettlementBook]:
    """Every settlement, by ascending (merchant, id)."""
    payment, bank = snapshots["payment"], snapshots["bank"]
    streams = [
        *(Stream(payment, query) for query in (_SETTLEMENTS, _ITEMS, _ENTRIES)),
        *(Stream(bank, query) for query in (_BATCHES, _OPERATIONS, _PAYOUTS)),
    ]
    async for (merchant_id, settlement_id), found in merge(streams):
        rows, items, entries, batches, operations, payouts = found
        yield SettlementBook(
            merchant_id,
            settlement_id,
            _settlement(rows[0]) if rows else None,
            [Item(row[2], row[3], Money(row[4], row[7]), row[5], row[6], row[8]) for row in items],
            [Entry(row[0], row[2], row[3], row[4], Money(row[5], row[6])) for row in entries],
            [Batch(*row[2:]) for row in batches],
            [
                SettledOperation(row[2], row[3], Money(row[4], row[6]), row[5], Money(row[7], row[8]))
                for row in operations
            ],
            [AtBank(row[2], Money(row[3], row[4]), *row[5:]) for row in payouts],
        )


async def unmoved_settlements(snapshots: Snapshots, books: Sequence[SettlementBook]) -> set[Key]:
    """Those whose row is the same at present as it was in the snapshot."""
    rows = await snapshots["payment"].fetch_present(
        _VERSIONS, {"merchants": [b.merchant_id for b in books], "ids": [b.id for b in books]}
    )
    now = {(merchant, settlement_id): version for merchant, settlement_id, version in rows}
    return {
        (book.merchant_id, book.id)
        for book in books
        if now.get((book.merchant_id, book.id)) == (book.row.version if book.row else None)
    }


def _settlement(row: Row) -> Settlement:
    try:
        state, payout_state = SettlementState(row[5]), PayoutState(row[14])
    except ValueError as error:
        raise AuditError(
            f"settlement {row[1]} is in a state that this audit does not know: {error}"
        ) from error
    return Settlement._make([*row[:5], state, *row[6:14], payout_state, *row[15:], 0, 0])
