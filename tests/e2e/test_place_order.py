"""Orders through the whole mesh: what each kind of order comes to, who holds what afterwards, and that a repeat
changes nothing. What each service holds is read from its own database, not from the orchestrator's answer."""

from __future__ import annotations

import asyncio
from collections import Counter

import grpc
import pytest

from paymesh.channel import open_channel, was_replayed, with_key
from paymesh.errors import Kind, PaymeshCallError, call_error, failure_error
from paymesh.fraud.v1 import fraud_pb2
from paymesh.inventory.v1 import inventory_pb2
from paymesh.orchestrator.v1 import orchestrator_pb2 as pb
from paymesh.orchestrator.v1.orchestrator_pb2_grpc import OrchestratorServiceStub
from tests.orders import CALLER, ENDED, PRICE_MINOR, Shop, batch, new_key, order, until

pytestmark = pytest.mark.asyncio(loop_scope="session")

HELD = {"reservation": "RESERVED", "payment": "AUTHORIZED", "bank": "APPROVED", "shipment": "CREATED"}
UNDONE_AT_SHIP = {"reservation": "RELEASED", "payment": "VOIDED", "bank": "VOIDED", "shipment": None}
NOTHING = dict.fromkeys(HELD)
BACK_FROM_SHIP = [
    ("reserve", "DO", "DONE"),
    ("authorize", "DO", "DONE"),
    ("ship", "DO", "REFUSED"),
    ("authorize", "UNDO", "DONE"),
    ("reserve", "UNDO", "DONE"),
]


async def _reserved(shop: Shop, merchant: str, sku: str = "cup") -> int:
    product = await shop.inventory.GetProduct(inventory_pb2.GetProductRequest(merchant_id=merchant, sku=sku))
    return product.product.reserved_quantity


async def _refusal(call: object) -> PaymeshCallError:
    """What a call that must fail was told."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call  # type: ignore[misc]  # a gRPC call
    return call_error(caught.value)


async def test_a_good_order_is_completed_and_everything_is_held(shop: Shop) -> None:
    merchant = await shop.merchant()
    placed = await shop.place(order(merchant, quantity=3, reference="inv-1"))
    assert placed.state == pb.SAGA_STATE_COMPLETED
    assert not placed.HasField("reason")
    assert placed.order_reference == "inv-1"
    assert placed.amount.amount_minor == PRICE_MINOR
    assert [(line.sku, line.quantity) for line in placed.lines] == [("cup", 3)]
    assert await shop.holdings(merchant, placed.order_id) == HELD
    assert await _reserved(shop, merchant) == 3
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
    assert await _reserved(shop, merchant) == 0
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
    assert await _reserved(shop, merchant) == 0
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
    assert await _reserved(shop, merchant) == kinds.count("good")


async def test_the_last_piece_goes_to_one_of_many_orders(shop: Shop) -> None:
    merchant = await shop.merchant(gem=5)
    results = await shop.place_all([(new_key(), order(merchant, sku="gem")) for _ in range(40)])
    states = Counter(pb.SagaState.Name(r.response.order.state) for r in results)
    assert states == {"SAGA_STATE_COMPLETED": 5, "SAGA_STATE_COMPENSATED": 35}
    assert await _reserved(shop, merchant, "gem") == 5


# Repeats


async def test_a_repeat_returns_the_order_and_says_that_it_is_one(shop: Shop) -> None:
    merchant = await shop.merchant()
    for request in (order(merchant), order(merchant, country="AQ"), order(merchant, token="tok_declined")):
        key = new_key()
        first = shop.orders.PlaceOrder(request, metadata=with_key(key))
        placed = (await first).order
        assert not await was_replayed(first)
        before = await shop.everything()
        again = shop.orders.PlaceOrder(request, metadata=with_key(key))
        assert (await again).order == placed
        assert await was_replayed(again)
        (result,) = await shop.place_all([(key, request)])
        assert result.response.order == placed, "single and batch form share their keys"
        assert result.replayed
        assert await shop.everything() == before


async def test_a_key_50_times_at_once_places_one_order(shop: Shop) -> None:
    merchant = await shop.merchant()
    request, key = order(merchant), new_key()
    target = shop.mesh.targets["orchestrator"]
    channels = [open_channel(target, caller=CALLER) for _ in range(5)]
    stubs = [OrchestratorServiceStub(channel) for channel in channels]
    try:
        calls = [stubs[n % 5].PlaceOrder(request, metadata=with_key(key)) for n in range(50)]
        answers = await asyncio.gather(*calls)
        assert sum([await was_replayed(call) for call in calls]) == 49
    finally:
        for channel in channels:
            await channel.close()
    first = answers[0].order
    assert first.state == pb.SAGA_STATE_COMPLETED
    assert all(answer.order == first for answer in answers)
    counted = "SELECT count(*) FROM {} WHERE merchant_id = %(m)s"
    for database, table in (
        ("orchestrator", "sagas"),
        ("payment", "payments"),
        ("inventory", "reservations"),
        ("shipping", "shipments"),
        ("bank", "operations"),
    ):
        assert await shop.rows(database, counted.format(table), m=merchant) == [(1,)], table


async def test_a_key_with_two_bodies_at_once_has_one_effect_and_one_refusal(shop: Shop) -> None:
    merchant = await shop.merchant()
    for _ in range(5):
        key = new_key()
        outcomes = await asyncio.gather(
            shop.place(order(merchant, quantity=1), key),
            shop.place(order(merchant, quantity=2), key),
            return_exceptions=True,
        )
        (placed,) = [o for o in outcomes if isinstance(o, pb.Order)]
        (refused,) = [o for o in outcomes if isinstance(o, grpc.aio.AioRpcError)]
        assert placed.state == pb.SAGA_STATE_COMPLETED
        assert refused.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert call_error(refused).reason == "IDEMPOTENCY_KEY_REUSED"
    counted = "SELECT count(*) FROM sagas WHERE merchant_id = %(m)s"
    assert await shop.rows("orchestrator", counted, m=merchant) == [(5,)]


async def test_a_key_used_before_is_refused_for_another_order_and_changes_nothing(shop: Shop) -> None:
    merchant = await shop.merchant()
    key = new_key()
    placed = await shop.place(order(merchant), key)
    before = await shop.everything()
    error = await _refusal(shop.orders.PlaceOrder(order(merchant, quantity=2), metadata=with_key(key)))
    assert (error.kind, error.reason) == (Kind.REFUSED, "IDEMPOTENCY_KEY_REUSED")
    assert await shop.everything() == before
    assert (await shop.holdings(merchant, placed.order_id)) == HELD


async def test_a_key_twice_in_one_batch_gives_one_order_and_two_equal_answers(shop: Shop) -> None:
    merchant = await shop.merchant()
    request, key = order(merchant), new_key()
    other, mixed = order(merchant, quantity=2), new_key()
    results = await shop.place_all(
        [(key, request), (new_key(), order(merchant)), (key, request), (mixed, request), (mixed, other)]
    )
    assert results[0].response == results[2].response
    assert results[0].response.order.state == pb.SAGA_STATE_COMPLETED
    assert results[1].response.order.order_id != results[0].response.order.order_id
    assert results[3].response.order.state == pb.SAGA_STATE_COMPLETED
    assert failure_error(results[4].failure).reason == "IDEMPOTENCY_KEY_REUSED"
    assert await _reserved(shop, merchant) == 3


async def test_another_caller_and_another_merchant_may_use_the_same_key(shop: Shop) -> None:
    one, two = await shop.merchant(), await shop.merchant()
    key = new_key()
    placed = [await shop.place(order(one), key), await shop.place(order(two), key)]
    async with open_channel(shop.mesh.targets["orchestrator"], caller="another-shop") as channel:
        answer = await OrchestratorServiceStub(channel).PlaceOrder(order(one), metadata=with_key(key))
    placed.append(answer.order)
    assert len({one.order_id for one in placed}) == 3


async def test_an_order_reference_is_taken_once(shop: Shop) -> None:
    merchant, other = await shop.merchant(), await shop.merchant()
    first = await shop.place(order(merchant, reference="inv-7"))
    assert first.state == pb.SAGA_STATE_COMPLETED
    request, key = order(merchant, reference="inv-7"), new_key()
    error = await _refusal(shop.orders.PlaceOrder(request, metadata=with_key(key)))
    assert (error.kind, error.reason) == (Kind.REFUSED, "ORDER_REFERENCE_EXISTS")
    assert error.facts["reference"] == "inv-7"
    # The refusal is an answer like any other: it replays, and nothing was begun.
    again = shop.orders.PlaceOrder(request, metadata=with_key(key))
    assert (await _refusal(again)).reason == "ORDER_REFERENCE_EXISTS"
    assert await was_replayed(again)
    assert await _reserved(shop, merchant) == 1
    assert (await shop.place(order(other, reference="inv-7"))).state == pb.SAGA_STATE_COMPLETED
    twins = await shop.place_all([(new_key(), order(merchant, reference="inv-8")) for _ in range(2)])
    assert sorted(result.WhichOneof("outcome") or "" for result in twins) == ["failure", "response"]


# Reading


async def test_an_order_reads_back_as_it_was_answered(shop: Shop) -> None:
    merchant = await shop.merchant()
    placed = await shop.place(order(merchant, country="AQ"))
    found = await shop.orders.GetOrder(pb.GetOrderRequest(merchant_id=merchant, order_id=placed.order_id))
    assert found.order.order_id == placed.order_id
    assert (found.order.state, found.order.reason) == (placed.state, placed.reason)
    assert found.order.lines == placed.lines
    assert (found.order.payment_id, found.order.reservation_id) == (placed.payment_id, placed.reservation_id)
    saga = (await shop.orders.GetSaga(pb.GetSagaRequest(merchant_id=merchant, saga_id=placed.saga_id))).saga
    assert saga == found.saga
    assert (saga.kind, saga.order_id, saga.owner_epoch) == ("place", placed.order_id, 0)
    stranger = await shop.merchant()
    error = await _refusal(
        shop.orders.GetOrder(pb.GetOrderRequest(merchant_id=stranger, order_id=placed.order_id))
    )
    assert error.kind is Kind.NOT_FOUND, "one merchant never sees another's orders"


async def test_watching_shows_the_order_on_its_way_and_ends_with_it(shop: Shop) -> None:
    merchant = await shop.merchant()
    placing = asyncio.create_task(shop.place(order(merchant, token="tok_slow")))
    listed: list[pb.Saga] = []

    async def begun() -> bool:
        listed[:] = (await shop.orders.ListSagas(pb.ListSagasRequest(merchant_id=merchant))).sagas
        return bool(listed)

    await until(begun, 10, "the order is listed")
    watch = shop.orders.WatchOrder(
        pb.WatchOrderRequest(merchant_id=merchant, order_id=listed[0].order_id), timeout=20
    )
    seen = [answer async for answer in watch]
    placed = await placing
    assert seen[0].order.state == pb.SAGA_STATE_RUNNING
    assert seen[-1].order.state == placed.state == pb.SAGA_STATE_COMPLETED
    assert all(before != after for before, after in zip(seen, seen[1:], strict=False))
    assert all(answer.order.state not in ENDED for answer in seen[:-1])
    # Of an order that has ended it is shown once.
    watch = shop.orders.WatchOrder(pb.WatchOrderRequest(merchant_id=merchant, order_id=placed.order_id))
    assert [answer.order.state async for answer in watch] == [pb.SAGA_STATE_COMPLETED]


async def test_sagas_are_listed_newest_first_in_pages_and_by_state(shop: Shop) -> None:
    merchant = await shop.merchant(cup=4)
    for _ in range(7):
        await shop.place(order(merchant))
    pages: list[list[pb.Saga]] = []
    token = ""
    while token or not pages:
        request = pb.ListSagasRequest(merchant_id=merchant, page_size=3, page_token=token)
        page = await shop.orders.ListSagas(request)
        pages.append(list(page.sagas))
        token = page.next_page_token
    assert [len(page) for page in pages] == [3, 3, 1]
    ids = [saga.saga_id for page in pages for saga in page]
    assert ids == sorted(set(ids), reverse=True)
    assert len(ids) == 7
    assert not any(saga.history for page in pages for saga in page)
    for state, count in (
        (pb.SAGA_STATE_COMPLETED, 4),
        (pb.SAGA_STATE_COMPENSATED, 3),
        (pb.SAGA_STATE_PARKED, 0),
    ):
        found = (await shop.orders.ListSagas(pb.ListSagasRequest(merchant_id=merchant, states=[state]))).sagas
        assert [saga.state for saga in found] == [state] * count
    both = pb.ListSagasRequest(
        merchant_id=merchant, states=[pb.SAGA_STATE_COMPLETED, pb.SAGA_STATE_COMPENSATED], page_size=7
    )
    everyone = await shop.orders.ListSagas(both)
    assert len(everyone.sagas) == 7
    assert not everyone.next_page_token, "a full last page is the last one all the same"


# Time


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
    error = await _refusal(shop.orders.PlaceOrder(request, metadata=with_key(key), timeout=1.2))
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

    async def states() -> list[pb.SagaState]:
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
    assert await _reserved(shop, merchant) == 1_000
