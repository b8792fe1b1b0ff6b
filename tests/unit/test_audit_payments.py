"""The audit's judgement of payments that were captured and refunded, without databases: what agrees with the bank's
books, and what is named when one of the two is changed."""

from __future__ import annotations

from dataclasses import replace

import orjson
import pytest

from audit.payment_rules import agrees_with_the_bank, follows_its_events, was_assessed_first
from audit.payments import Operation, PaymentBook, StoredEvent
from services.kit.money import Money
from services.payment import domain, ledger
from services.payment.domain import Approved, Authorize, Done, Event, FeePlan, Gone, Move, Payment

PLAN = FeePlan(100, 5)


def _operation(
    kind: str, result: str, operation_id: str, amount_minor: int, *, final: bool = False
) -> Operation:
    made = kind == "AUTHORIZE"
    return Operation(
        operation_id,
        kind,
        result,
        "" if made else "auth_1",
        Money(amount_minor, "GBP"),
        "pay_1" if made else "",
        "CODE" if made else "",
        "",
        final,
    )


def _book(*, void: bool) -> PaymentBook:
    """1,000 authorized and 200 more, 700 captured, 300 refunded; the rest let go by a void or by a final capture."""
    wish = Authorize("m", "o1", Money(1_000, "GBP"), "tok", "", "", "", "", "")
    payment, first = domain.initiate(wish, "pay_1", "shop", "k1", 0)
    events: list[Event] = [first]
    entries: list[ledger.Entry] = []

    def happen(event: object) -> None:
        nonlocal payment
        assert isinstance(event, Event)
        before, payment = payment, domain.apply(payment, event)
        entries.extend(ledger.journal(before, payment))
        events.append(event)

    happen(domain.after_authorization(payment, Approved("auth_1", "CODE"), 0, 1_000))
    operations = [_operation("AUTHORIZE", "APPROVED", "auth_1", 1_000)]
    steps = (
        (domain.request_increment, "INCREMENT", "INCREMENTED", 200, False),
        (domain.request_capture, "CAPTURE", "CAPTURED", 700, not void),
        (domain.request_refund, "REFUND", "REFUNDED", 300, False),
    )
    for request, kind, result, amount, final in steps:
        move = Move("m", "pay_1", Money(amount, "GBP"), final, "")
        happen(request(payment, move, PLAN, "shop", kind, 1))
        happen(domain.after_movement(payment, payment, Done(f"op_{kind}", amount)))
        operations.append(_operation(kind, result, f"op_{kind}", amount, final=final))
    if void:
        happen(domain.request_void(payment, "", "shop", "v1"))
        happen(domain.after_void(payment, payment, Gone()))
        operations.append(_operation("VOID", "VOIDED", "void_1", 500))
    stored = [
        StoredEvent(n, e.type.value, orjson.dumps(dict(e.data)).decode()) for n, e in enumerate(events, 1)
    ]
    return PaymentBook("m", "pay_1", payment, stored, entries, operations, [])


@pytest.mark.parametrize("void", [True, False])
def test_both_books_tell_the_same(void: bool) -> None:
    book = _book(void=void)
    assert isinstance(book.row, Payment)
    assert (book.row.state, book.row.held_minor, book.row.fee_minor) == ("PARTIALLY_REFUNDED", 0, 12)
    assert list(agrees_with_the_bank(book)) == []
    assert list(follows_its_events(book)) == []


@pytest.mark.parametrize("place", [1, 2, 3])
def test_an_operation_that_only_one_of_them_knows_is_named(place: int) -> None:
    book = _book(void=True)
    lost = book.operations[place]
    without = [one for one in book.operations if one is not lost]
    faults = list(agrees_with_the_bank(replace(book, operations=without)))
    assert any(lost.operation_id in fault and "no such operation" in fault for fault in faults)
    twice = [*book.operations, replace(lost, operation_id="op_ghost")]
    faults = list(agrees_with_the_bank(replace(book, operations=twice)))
    assert any("op_ghost" in fault and "knows nothing" in fault for fault in faults)


@pytest.mark.parametrize("place", [1, 2, 3])
def test_an_amount_that_differs_is_named(place: int) -> None:
    book = _book(void=True)
    changed = list(book.operations)
    changed[place] = replace(changed[place], amount=Money(1, "GBP"))
    faults = list(agrees_with_the_bank(replace(book, operations=changed)))
    assert any("by 1 in" in fault for fault in faults)


def test_of_a_payment_at_another_processor_the_bank_must_know_nothing() -> None:
    book = _book(void=False)
    assert book.row is not None
    events = [replace(book.events[0], data_json=book.events[0].data_json.replace('"bank"', '"stripe"'))]
    book = replace(
        book, row=book.row._replace(processor="stripe"), events=[*events, *book.events[1:]], assessments=[]
    )
    assert list(follows_its_events(book)) == []
    faults = list(agrees_with_the_bank(book))
    assert len(faults) == 4
    assert faults[0] == "is at stripe, but the bank has auth_1 (APPROVED, 1000 GBP)"
    assert list(agrees_with_the_bank(replace(book, operations=[]))) == []
    assert list(was_assessed_first(replace(book, operations=[]))) == [
        "reached stripe, and its assessments are [] where one approval was due"
    ]


def test_a_hold_that_the_bank_kept_is_named() -> None:
    book = _book(void=False)
    kept = [replace(one, final=False) for one in book.operations]
    assert list(agrees_with_the_bank(replace(book, operations=kept))) == [
        "holds 0, and 500 are held at the bank"
    ]


def test_a_void_of_another_amount_is_named() -> None:
    book = _book(void=True)
    changed = [*book.operations[:-1], replace(book.operations[-1], amount=Money(499, "GBP"))]
    (fault,) = agrees_with_the_bank(replace(book, operations=changed))
    assert "had 500 GBP left" in fault


def test_a_changed_sum_in_the_row_and_a_changed_entry_are_named() -> None:
    book = _book(void=True)
    assert book.row is not None
    (fault,) = follows_its_events(replace(book, row=book.row._replace(captured_minor=701)))
    assert fault.startswith("has captured_minor '701'")
    fees = next(n for n, entry in enumerate(book.entries) if entry.account == "fees")
    changed = list(book.entries)
    changed[fees] = changed[fees]._replace(amount=Money(-11, "GBP"))
    (fault,) = follows_its_events(replace(book, entries=changed))
    assert "fees -11 GBP where its events book fees -12 GBP" in fault
