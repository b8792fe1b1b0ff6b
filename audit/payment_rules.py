"""What must be true of one payment. Pure: a payment's book in, what is wrong with it out, as rest of sentences."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from audit.payments import Operation, PaymentBook
from services.kit.money import Money
from services.payment.domain import FIRST_PROCESSOR, EventType, Payment, State, apply, fold
from services.payment.ledger import Entry, journal

APPROVED, DECLINED, VOIDED, CANCELLED, ABSENT = "APPROVED", "DECLINED", "VOIDED", "CANCELLED", "ABSENT"

AT_THE_BANK: dict[State, tuple[str, ...]] = {
    State.AUTHORIZED: (APPROVED,),
    State.DECLINED: (DECLINED,),
    State.REJECTED: (ABSENT,),
    State.FAILED: (ABSENT, CANCELLED, VOIDED),
    State.VOIDED: (VOIDED,),
    State.EXPIRED: (VOIDED,),
    State.PARTIALLY_CAPTURED: (APPROVED,),
    # The rest may have been let go by a final capture, or by a void.
    State.CAPTURED: (APPROVED, VOIDED),
    State.SETTLED: (APPROVED, VOIDED),
    State.PARTIALLY_REFUNDED: (APPROVED, VOIDED),
    State.REFUNDED: (APPROVED, VOIDED),
}
"""Where the authorization of a settled payment may stand at the bank."""

MOVED = {
    EventType.INCREMENTED: "INCREMENTED",
    EventType.CAPTURED: "CAPTURED",
    EventType.REFUNDED: "REFUNDED",
}
"""What the bank's books say of the operation whose success an event tells."""


def follows_its_events(book: PaymentBook) -> Iterator[str]:
    """The payment is the fold of its events, and the journals are what the events book."""
    if not book.events:
        if book.known:
            yield "has no events"
        return
    versions = [event.version for event in book.events]
    if versions != list(range(1, len(versions) + 1)):
        yield f"has events {versions} where 1 to {len(versions)} were due"
        return
    try:
        told, entries = _replay(book)
    except (AssertionError, KeyError, ValueError, TypeError) as error:
        yield f"has events that cannot have happened: {error}"
        return
    if book.row is None:
        yield "has events but no row"
        return
    for name in Payment.__annotations__:
        stored, due = getattr(book.row, name), getattr(told, name)
        if stored != due:
            yield f"has {name} {_text(stored)} where its events say {_text(due)}"
    booked = {(entry.journal_id, entry.line): entry for entry in book.entries}
    due_entries = {(entry.journal_id, entry.line): entry for entry in entries}
    for key in sorted(booked.keys() | due_entries.keys()):
        if booked.get(key) != due_entries.get(key):
            found, due = _line(booked.get(key)), _line(due_entries.get(key))
            yield f"has line {key[1]} of journal {key[0]} {found} where its events book {due}"


def _replay(book: PaymentBook) -> tuple[Payment, list[Entry]]:
    """The payment that the events add up to, and what they book on the way."""
    first, *rest = (event.read() for event in book.events)
    payment = fold(book.merchant_id, book.id, 0, [first])
    entries: list[Entry] = []
    for event in rest:
        before, payment = payment, apply(payment, event)
        entries += journal(before, payment)
    return payment, entries


def agrees_with_the_bank(book: PaymentBook) -> Iterator[str]:
    """The bank's operations are those that the payment knows of, and say the same."""
    authorizations = [o for o in book.operations if o.kind == "AUTHORIZE"]
    if book.row is None:
        for one in book.operations:
            yield f"is unknown to payment, but the bank has {one.operation_id} ({one.result}, {_money(one.amount)})"
        return
    if book.row.processor != FIRST_PROCESSOR:
        for one in book.operations:
            at = book.row.processor
            yield f"is at {at}, but the bank has {one.operation_id} ({one.result}, {_money(one.amount)})"
        return
    if len(authorizations) > 1:
        yield f"has {len(authorizations)} authorizations at the bank: {[o.operation_id for o in authorizations]}"
        return
    authorization = authorizations[0] if authorizations else None
    standing = _standing(book)
    if standing not in AT_THE_BANK[book.row.state]:
        due = " or ".join(AT_THE_BANK[book.row.state])
        yield f"is {book.row.state}, and its authorization at the bank is {standing} where {due} was due"
        return
    if authorization is not None and authorization.result in (APPROVED, DECLINED):
        yield from _same_particulars(book.row, authorization)
    yield from _same_movements(book)
    if authorization is not None and authorization.result == APPROVED:
        yield from _same_hold(book.row, authorization, book.operations)


def _same_movements(book: PaymentBook) -> Iterator[str]:
    """The increments, captures and refunds of both books, one by one: result, operation at the bank and amount."""
    ours = Counter(
        (MOVED[event.type], event.data["processor_reference"], event.data["amount_minor"])
        for event in (one.read() for one in book.events if one.type in MOVED)
    )
    theirs = Counter(
        (one.result, one.operation_id, one.amount.amount_minor)
        for one in book.operations
        if one.result in MOVED.values()
    )
    for result, operation_id, amount_minor in sorted(ours - theirs):
        yield f"was {result} by {amount_minor} in {operation_id}, and the bank has no such operation"
    for result, operation_id, amount_minor in sorted(theirs - ours):
        yield f"was {result} by {amount_minor} in {operation_id} at the bank, and payment knows nothing of it"


def _same_hold(row: Payment, at_bank: Operation, operations: Sequence[Operation]) -> Iterator[str]:
    """What the bank still holds, and what it let go, by its own operations."""
    minor: Counter[str] = Counter()
    for one in operations:
        minor[one.result] += one.amount.amount_minor
    rest = at_bank.amount.amount_minor + minor["INCREMENTED"] - minor["CAPTURED"]
    closed = any(one.result == "CAPTURED" and one.final for one in operations)
    for void in operations:
        if void.result == VOIDED and void.amount != Money(rest, at_bank.amount.currency):
            yield (
                f"had {_money(Money(rest, at_bank.amount.currency))} left of its authorization for"
                f" {_money(at_bank.amount)}, and the bank let {_money(void.amount)} go"
            )
    held = 0 if closed or minor[VOIDED] else rest
    # Where already the authorization is for another amount, nobody needs to hear it twice.
    if row.state is not State.FAILED and row.amount == at_bank.amount and held != row.held_minor:
        yield f"holds {row.held_minor}, and {held} are held at the bank"


def _standing(book: PaymentBook) -> str:
    results = {o.result for o in book.operations}
    if VOIDED in results:
        return VOIDED
    return next((o.result for o in book.operations if o.kind == "AUTHORIZE"), ABSENT)


def _same_particulars(row: Payment, at_bank: Operation) -> Iterator[str]:
    pairs: list[tuple[str, object, object]] = [
        ("amount", row.amount, at_bank.amount),
        ("reference", row.payment_id, at_bank.reference),
    ]
    if row.processor_reference or row.state is not State.FAILED:
        pairs.append(("processor_reference", row.processor_reference, at_bank.operation_id))
    if row.state is State.DECLINED:
        pairs.append(("decline_reason", row.decline_reason, at_bank.decline_reason))
    elif row.auth_code or row.state is State.AUTHORIZED:
        # A hold that was found after the payment had failed is let go without its code ever being written down.
        pairs.append(("auth_code", row.auth_code, at_bank.auth_code))
    for name, ours, theirs in pairs:
        if ours != theirs:
            yield f"has {name} {_text(ours)}, and {_text(theirs)} at the bank"


_ANSWERED = {EventType.AUTHORIZED, EventType.DECLINED, EventType.LATE_APPROVAL}
"""What only a processor that was asked can have told."""


def was_assessed_first(book: PaymentBook) -> Iterator[str]:
    """What reached its processor had been approved by fraud; what fraud declined never reached it."""
    if book.row is None:
        return
    reached = any(o.kind == "AUTHORIZE" and o.result in (APPROVED, DECLINED) for o in book.operations)
    if book.row.processor != FIRST_PROCESSOR:
        reached = any(event.type in _ANSWERED for event in book.events)
    where = "the bank" if book.row.processor == FIRST_PROCESSOR else book.row.processor
    decisions = [assessment.decision for assessment in book.assessments]
    if reached and decisions != ["approve"]:
        yield f"reached {where}, and its assessments are {decisions} where one approval was due"
    if book.row.state is State.REJECTED:
        due = [("decline", book.row.fraud_score_milli)]
        found = [(one.decision, one.score_milli) for one in book.assessments]
        if found != due:
            yield f"was rejected for fraud, and its assessments are {found} where {due} was due"


def _text(value: object) -> str:
    return _money(value) if isinstance(value, Money) else repr(str(value))


def _money(amount: Money) -> str:
    return f"{amount.amount_minor} {amount.currency}".strip()


def _line(entry: Entry | None) -> str:
    return "missing" if entry is None else f"{entry.account} {_money(entry.amount)}"
