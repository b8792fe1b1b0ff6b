"""Payments as the service writes them, without the service: for whoever needs a long history within seconds.

The statements, the decisions and the hashes are payment's own; only the calls to fraud and to the processor are left
out, and what those would have said is made up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from services.kit.clock import now_ms
from services.kit.db import Database, Transaction
from services.kit.ids import new_id
from services.kit.money import Money
from services.payment import domain, ledger, store
from services.payment.domain import Authorize, Event, EventType, Payment, PaymentKey, State

SET_SIZE = 200
EVENTS_EACH = 4
"""Events of one payment: initiated, authorized, capture requested, captured."""
INTENT_SECONDS = 3_600.0
"""No resolver shall look at them."""

Progress = Callable[[int], None]


async def write_history(
    database: Database, merchant_id: str, payments: int, progress: Progress = lambda done: None
) -> list[PaymentKey]:
    """Write so many payments with `EVENTS_EACH` events each; returns their keys."""
    keys: list[PaymentKey] = []
    while len(keys) < payments:
        keys += await write_set(database, merchant_id, min(SET_SIZE, payments - len(keys)))
        progress(len(keys))
    return keys


async def write_set(database: Database, merchant_id: str, size: int) -> list[PaymentKey]:
    """One set of payments, each captured in the end."""
    keys = await initiate_set(database, merchant_id, size)
    await append(database, keys, _authorized)
    await append(database, keys, _capture_requested)
    await append(database, keys, _captured)
    return keys


async def initiate_set(database: Database, merchant_id: str, size: int) -> list[PaymentKey]:
    """The first transaction of an authorization."""
    intents = [_initiate(merchant_id, number) for number in range(size)]

    async def work(tx: Transaction) -> None:
        records = [store.record_of(payment, event) for payment, event in intents]
        await store.insert_payments(tx, [payment for payment, _ in intents], records, INTENT_SECONDS)
        store.insert_events(tx, records)

    await database.transact(work)
    return [payment.key for payment, _ in intents]


async def append(
    database: Database, keys: Sequence[PaymentKey], event_of: Callable[[Payment], Event]
) -> None:
    """One more event for each payment: lock, apply, save, book."""

    async def work(tx: Transaction) -> None:
        locked = await store.lock_payments(tx, keys)
        changes, records = [], []
        for before in locked.values():
            event = event_of(before)
            after = domain.apply(before, event)
            changes.append((before, after))
            records.append(store.record_of(after, event))
        authorizing = changes[0][0].state is State.AUTHORIZING
        save = store.save_authorizations if authorizing else store.save_payments
        save(tx, [after for _, after in changes], records)
        store.insert_events(tx, records)
        store.insert_entries(tx, ledger.entries(changes))

    await database.transact(work)


def _initiate(merchant_id: str, number: int) -> tuple[Payment, Event]:
    payment_id = new_id("pay")
    wish = Authorize(
        merchant_id,
        f"ord_{payment_id}",
        Money(1_000 + number, "USD"),
        f"tok_visa_{payment_id}",
        "424242",
        f"cus_{number}",
        f"buyer{number}@example.com",
        "203.0.113.7",
        "US",
    )
    return domain.initiate(wish, payment_id, "bench", f"{payment_id}/authorize", now_ms())


def _authorized(payment: Payment) -> Event:
    return Event(
        EventType.AUTHORIZED,
        {
            "auth_code": "A1B2C3",
            "processor_reference": f"bok_{payment.payment_id[-12:]}",
            "fraud_score_milli": 12,
            "expires_at_ms": now_ms() + 604_800_000,
        },
    )


def _capture_requested(payment: Payment) -> Event:
    amount_minor = payment.amount.amount_minor
    data = {
        "amount_minor": amount_minor,
        "currency": "USD",
        "fee_minor": 29,
        "final": True,
        "caller": "bench",
    }
    return Event(EventType.CAPTURE_REQUESTED, {**data, "idempotency_key": f"{payment.payment_id}/capture"})


def _captured(payment: Payment) -> Event:
    data = {"amount_minor": payment.pending_minor, "fee_minor": 29, "final": True, "operation_id": "bok_1"}
    return Event(EventType.CAPTURED, data)
