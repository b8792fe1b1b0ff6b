"""What must be true of one settlement. Pure: its book in, what is wrong with it out, as rest of sentences."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from audit.settlements import SettlementBook
from services.kit.money import Money
from services.payment.domain.settlement import PayoutState, Settlement, SettlementState
from services.payment.ledger import settlement_sums

_Payout = tuple[str, str, int, str, tuple[object, ...]]
"""State, the bank's name of it, amount, currency, and the days of one that was paid."""


def is_its_items(book: SettlementBook) -> Iterator[str]:
    """A settlement is what its items add up to, and the ledger has what it says."""
    row = book.row
    if row is None:
        if book.items:
            yield f"has {len(book.items)} items but no row"
        if book.entries:
            yield "has journals but no row"
        return
    captured = sum(one.amount.amount_minor for one in book.items if one.kind == "CAPTURE")
    refunded = sum(one.amount.amount_minor for one in book.items if one.kind == "REFUND")
    found = (len(book.items), captured, refunded, sum(one.fee_minor for one in book.items))
    due = (row.items, row.captured_minor, row.refunded_minor, row.fee_minor)
    if found != due:
        yield f"has (items, captured, refunded, fees) {due}, and items that make it {found}"
    if row.state is not SettlementState.SETTLING:
        fee = sum(one.processor_fee_minor or 0 for one in book.items)
        if fee != row.processor_fee_minor:
            yield f"has processor fees of {row.processor_fee_minor}, and items that make it {fee}"
    others = {one.amount.currency for one in book.items} - {row.currency}
    if others:
        yield f"is in {row.currency}, and has items in {sorted(others)}"
    unposted = sum(one.posted_version is None for one in book.items)
    if row.state is SettlementState.COMPLETED and unposted:
        yield f"is COMPLETED, and {unposted} of its items are not known to their payments"
    booked: Counter[str] = Counter()
    for entry in book.entries:
        booked[entry.account] += entry.amount.amount_minor
    sums = settlement_sums(row)
    for account in sorted(booked.keys() | sums.keys()):
        if booked[account] != sums.get(account, 0):
            yield f"has {booked[account]} in the account {account}, and {sums.get(account, 0)} are due"


def agrees_with_the_bank(book: SettlementBook) -> Iterator[str]:
    """What the bank has settled and paid out is what payment has, item by item."""
    row = book.row
    if row is None:
        for batch in book.batches:
            yield f"is unknown to payment, but the bank has settled {batch.batch_id}"
        for payout in book.payouts:
            yield f"is unknown to payment, but the bank has paid out {payout.amount} in {payout.payout_id}"
        return
    if len(book.batches) != 1:
        yield f"is settled, and the bank has {[one.batch_id for one in book.batches]} for it"
        return
    yield from _same_operations(book)
    (batch,) = book.batches
    found = (batch.batch_id, batch.currency, batch.captured_minor, batch.refunded_minor, batch.fee_minor)
    due = (
        row.processor_reference,
        row.currency,
        row.captured_minor,
        row.refunded_minor,
        row.processor_fee_minor,
    )
    if found != due:
        yield f"is {due}, and at the bank {found}"
    if (batch.booked_on, batch.value_on) != (row.booked_on, row.value_on):
        yield f"was booked on {row.booked_on} for {row.value_on}, at the bank on {batch.booked_on} for {batch.value_on}"
    yield from _same_payout(row, book)


def _same_operations(book: SettlementBook) -> Iterator[str]:
    ours = Counter((one.bank_reference, one.kind, one.amount, one.processor_fee_minor) for one in book.items)
    theirs: Counter[tuple[str, str, Money, int | None]] = Counter(
        (one.operation_id, one.kind, one.amount, one.fee_minor) for one in book.operations
    )
    for reference, kind, amount, fee in sorted(ours - theirs, key=str):
        yield f"has the {kind} {reference} of {amount} for {fee}, and the bank has not"
    for reference, kind, amount, fee in sorted(theirs - ours, key=str):
        yield f"has the {kind} {reference} of {amount} for {fee} at the bank, and payment has not"
    for one in book.operations:
        if one.amount != one.moved:
            yield f"has {one.operation_id} with {one.amount} at the bank, which moved {one.moved}"


def _same_payout(row: Settlement, book: SettlementBook) -> Iterator[str]:
    due: list[_Payout] = []
    if row.payout_state in (PayoutState.PAID, PayoutState.REFUSED):
        dates = (row.payout_booked_on, row.payout_value_on)
        paid = row.payout_state is PayoutState.PAID
        due = [
            (
                row.payout_state.value,
                row.payout_reference,
                row.payout_minor,
                row.currency,
                dates if paid else (),
            )
        ]
    found: list[_Payout] = [
        (
            one.state,
            one.payout_id,
            one.amount.amount_minor,
            one.amount.currency,
            (one.booked_on, one.value_on) if one.state == "PAID" else (),
        )
        for one in book.payouts
    ]
    if found != due:
        yield f"has a payout that is {_told(due)}, and at the bank {_told(found)}"


def _told(payouts: list[_Payout]) -> str:
    return ", ".join(f"{one[0]} {one[1]} {one[2]} {one[3]}" for one in payouts) or "nothing"
