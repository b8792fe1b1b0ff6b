"""Orders through the whole mesh: what each kind of order comes to, who holds what afterwards, and that a repeat
changes nothing. What each service holds is read from its own database, not from the orchestrator's answer."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from paymesh.channel import was_replayed, with_key
from paymesh.errors import Kind, failure_error
from paymesh.fraud.v1 import fraud_pb2
from paymesh.orchestrator.v1 import orchestrator_pb2 as pb
from tests.orders import (
    HELD,
    NOTHING,
    PRICE_MINOR,
    UNDONE_AT_SHIP,
    Shop,
    batch,
    new_key,
    order,
    refusal,
    until,
)

pytestmark = pytest.mark.asyncio(loop_scope="session")

BACK_FROM_SHIP = [
    ("reserve", "DO", "DONE"),
    ("authorize", "DO", "DONE"),
    ("ship", "DO", "REFUSED"),
    ("authorize", "UNDO", "DONE"),
    ("reserve", "UNDO", "DONE"),
]


async def test_a_good_order_is_completed_and_everything_is_held(shop: Shop) -> None:
    merchant = await shop.merchant()
    placed = await shop.place(order(merchant, quantity=3, reference="inv-1"))
    assert placed.state == pb.SAGA_STATE_COMPLETED
    assert not placed.HasField("reason")
    assert placed.order_reference == "inv-1"
    assert placed.amount.amount_minor == PRICE_MINOR
    assert [(line.sku, line.quantity) for line in placed.lines] == [("cup", 3)]
    assert await shop.holdings(merchant, placed.order_id) == HELD
    assert await shop.reserved(merchant) == 3
    assert await shop.story(placed) == [(step, "DO", "DONE") for step in ("reserve", "authorize", "ship")]
    assert placed.created_at.ToMilliseconds() <= placed.ended_at.ToMilliseconds()
    for database, table, identifier in (
        ("inventory", "reservations", placed.reservation_id),
        ("payment", "payments", placed.payment_id),
        ("shipping", "shipments", placed.shipment_id),
    ):
        column = table.removesuffix("s") + "_id"
        found = await shop.rows(
            database,
            f"SELECT order_id FROM {table} WHERE merchant_id = %(m)s AND {column} = %(i)s",
            m=merchant,
            i=identifier,
        )
        assert found == [(placed.order_id,)]


@pytest.mark.parametrize(
    ("token", "reason"),
    [("tok_declined", "CARD_DECLINED"), ("tok_insufficient_funds", "INSUFFICIENT_FUNDS")],
)
async def test_a_declined_card_gives_the_stock_back(shop: Shop, token: str, reason: str) -> None:
    merchant = await shop.merchant()
    placed = await shop.place(order(merchant, token=token))
    assert placed.state == pb.SAGA_STATE_COMPENSATED
    assert (placed.reason.step, placed.reason.code) == ("authorize", reason)
    assert await shop.holdings(merchant, placed.order_id) == {
        "reservation": "RELEASED",
        "payment": "DECLINED",
        "bank": "DECLINED",
        "shipment": None,
    }
    assert await shop.reserved(merchant) == 0
    assert await shop.story(placed) == [
        ("reserve", "DO", "DONE"),
        ("authorize", "DO", "REFUSED"),
        ("reserve", "UNDO", "DONE"),
    ]


async def test_an_order_for_more_than_there_is_touches_nothing_else(shop: Shop) -> None:
    merchant = await shop.merchant(cup=2)
    placed = await shop.place(order(merchant, quantity=3))
    assert placed.state == pb.SAGA_STATE_COMPENSATED
    assert (placed.reason.step, placed.reason.code) == ("reserve", "OUT_OF_STOCK")
    assert await shop.holdings(merchant, placed.order_id) == NOTHING
    assert await shop.story(placed) == [("reserve", "DO", "REFUSED")]


async def test_an_unknown_product_touches_nothing_else(shop: Shop) -> None:
    merchant = await shop.merchant()
    placed = await shop.place(order(merchant, sku="saucer"))
    assert (placed.state, placed.reason.code) == (pb.SAGA_STATE_COMPENSATED, "UNKNOWN_PRODUCT")
    assert await shop.holdings(merchant, placed.order_id) == NOTHING


async def test_a_country_nobody_serves_voids_the_payment_and_releases_the_stock_in_that_order(
    shop: Shop,
) -> None:
    merchant = await shop.merchant()
    placed = await shop.place(order(merchant, country="AQ"))
    assert placed.state == pb.SAGA_STATE_COMPENSATED
    assert placed.reason.step == "ship"
    assert placed.reason.code
    assert placed.reason.message
    assert await shop.holdings(merchant, placed.order_id) == UNDONE_AT_SHIP
    assert await shop.reserved(merchant) == 0
    assert await shop.story(placed) == BACK_FROM_SHIP
    found = await shop.orders.GetSaga(pb.GetSagaRequest(merchant_id=merchant, saga_id=placed.saga_id))
    times = [(a.started_at.ToMilliseconds(), a.ended_at.ToMilliseconds()) for a in found.saga.history]
    assert times == sorted(times)
    assert all(start <= end for start, end in times)


async def test_fraud_rejects_before_the_bank_is_asked(shop: Shop) -> None:
    merchant = await shop.merchant()
    entry = fraud_pb2.AddListEntryRequest(
        merchant_id=merchant,
        kind=fraud_pb2.LIST_KIND_BLOCK,
        subject=fraud_pb2.LIST_SUBJECT_EMAIL,
        value="thief@example.com",
    )
    await shop.fraud.AddListEntry(entry, metadata=with_key(new_key()))
    request = order(merchant)
    request.customer.email = "thief@example.com"
    placed = await shop.place(request)
    assert placed.state == pb.SAGA_STATE_COMPENSATED
    assert placed.reason.step == "authorize"
    assert placed.reason.code.startswith("FRAUD")
    assert await shop.holdings(merchant, placed.order_id) == {
        "reservation": "RELEASED",
        "payment": "REJECTED",
        "bank": None,
        "shipment": None,
    }


async def test_orders_that_fail_cost_their_neighbours_in_the_batch_nothing(shop: Shop) -> None:
    merchant = await shop.merchant(cup=1_000, gem=1)
    kinds = ["good", "declined", "AQ", "fraud", "out of stock", "invalid", "good"] * 6
    make = {
        "good": lambda: order(merchant),
        "declined": lambda: order(merchant, token="tok_declined"),
        "AQ": lambda: order(merchant, country="AQ"),
        "fraud": lambda: order(merchant, amount_minor=6_000_000),
        "out of stock": lambda: order(merchant, sku="gem", quantity=2),
        "invalid": lambda: order(merchant, quantity=0),
    }
    results = await shop.place_all([(new_key(), make[kind]()) for kind in kinds])
    assert len(results) == len(kinds)
    outcomes: dict[str, set[str]] = {kind: set() for kind in kinds}
    for kind, result in zip(kinds, results, strict=True):
        if result.HasField("failure"):
            outcomes[kind].add(result.failure.reason)
            continue
        placed = result.response.order
        outcomes[kind].add(placed.reason.step or pb.SagaState.Name(placed.state))
        if kind in ("good", "AQ"):
            expected = HELD if kind == "good" else UNDONE_AT_SHIP
            assert await shop.holdings(merchant, placed.order_id) == expected
    assert outcomes == {
        "good": {"SAGA_STATE_COMPLETED"},
        "declined": {"authorize"},
        "AQ": {"ship"},
        "fraud": {"authorize"},
        "out of stock": {"reserve"},
        "invalid": {"INVALID_REQUEST"},
    }
    assert await shop.reserved(merchant) == kinds.count("good")


async def test_the_last_piece_goes_to_one_of_many_orders(shop: Shop) -> None:
    merchant = await shop.merchant(gem=5)
    results = await shop.place_all([(new_key(), order(merchant, sku="gem")) for _ in range(40)])
    states = Counter(pb.SagaState.Name(r.response.order.state) for r in results)
    assert states == {"SAGA_STATE_COMPLETED": 5, "SAGA_STATE_COMPENSATED": 35}
    assert await shop.reserved(merchant, "gem") == 5


async def test_a_slow_card_does_not_hold_up_its_neighbours(shop: Shop) -> None:
    merchant = await shop.merchant()
    slow_key, slow = new_key(), order(merchant, token="tok_slow")
    items = [(new_key(), order(merchant)) for _ in range(20)]
    items.insert(7, (slow_key, slow))
    # The slow card answers after two seconds: by then everybody else must have been answered.
    results = await shop.place_all(items, timeout_seconds=1.7)
    late = results.pop(7)
    assert failure_error(late.failure).kind is Kind.IN_PROGRESS
    assert [r.response.order.state for r in results] == [pb.SAGA_STATE_COMPLETED] * 20
    (late,) = await shop.place_all([(slow_key, slow)])
    assert late.response.order.state == pb.SAGA_STATE_COMPLETED
    assert await shop.holdings(merchant, late.response.order.order_id) == HELD


async def test_a_caller_in_a_hurry_is_told_in_progress_and_gets_the_order_with_the_same_key(
    shop: Shop,
) -> None:
    merchant = await shop.merchant()
    request, key = order(merchant, token="tok_slow"), new_key()
    error = await refusal(shop.orders.PlaceOrder(request, metadata=with_key(key), timeout=1.2))
    assert (error.kind, error.reason) == (Kind.IN_PROGRESS, "IN_PROGRESS")
    assert error.retry_after is not None
    placed = await shop.place(request, key)
    assert placed.state == pb.SAGA_STATE_COMPLETED
    assert await shop.holdings(merchant, placed.order_id) == HELD
    assert error.facts["order_id"] == placed.order_id


async def test_a_caller_that_goes_away_leaves_an_order_that_is_carried_to_its_end(shop: Shop) -> None:
    merchant = await shop.merchant()
    request, key = order(merchant, token="tok_slow"), new_key()
    call = shop.orders.PlaceOrder(request, metadata=with_key(key))

    async def states() -> list[pb.SagaState.ValueType]:
        listed = await shop.orders.ListSagas(pb.ListSagasRequest(merchant_id=merchant))
        return [saga.state for saga in listed.sagas]

    async def begun() -> bool:
        return await states() == [pb.SAGA_STATE_RUNNING]

    async def ended() -> bool:
        return await states() == [pb.SAGA_STATE_COMPLETED]

    waiting = asyncio.create_task(call.wait_for_connection())
    await until(begun, 10, "the order is accepted")
    waiting.cancel()
    call.cancel()
    await until(ended, 10, "the order is completed with nobody waiting for it")
    again = shop.orders.PlaceOrder(request, metadata=with_key(key))
    assert (await again).order.state == pb.SAGA_STATE_COMPLETED
    assert await was_replayed(again)


async def test_a_thousand_orders_in_one_batch(shop: Shop) -> None:
    merchant = await shop.merchant(cup=1_000)
    answer = await shop.orders.BatchPlaceOrders(
        batch([(new_key(), order(merchant)) for _ in range(1_000)]), timeout=30
    )
    assert Counter(r.response.order.state for r in answer.results) == {pb.SAGA_STATE_COMPLETED: 1_000}
    assert await shop.reserved(merchant) == 1_000
