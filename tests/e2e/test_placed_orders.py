"""Placed orders through the whole mesh: out of the door, back before that, and back from the customer. What each
service holds is read from its own database; who may do what is decided in one place, so much of this is about races."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from paymesh.channel import was_replayed, with_key
from paymesh.errors import Kind, PaymeshCallError, failure_error
from paymesh.money.v1 import money_pb2
from paymesh.orchestrator.v1 import orchestrator_pb2 as pb
from paymesh.payment.v1 import payment_pb2
from paymesh.shipping.v1 import shipping_pb2
from tests.orders import (
    CANCELLED,
    DISPATCHED,
    HELD,
    PRICE_MINOR,
    Shop,
    insist,
    new_key,
    order,
    refusal,
    return_request,
)

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def _steps(shop: Shop, placed: pb.Order, kind: str) -> list[str]:
    """Steps of the order's saga of this kind, as they were attempted, with what they came to."""
    (saga,) = [saga for saga in (await shop.get(placed)).sagas if saga.kind == kind]
    return [f"{a.step} {pb.AttemptOutcome.Name(a.outcome).rpartition('_')[2]}" for a in saga.history]


def _stage(order: pb.Order) -> str:
    return pb.OrderState.Name(order.order_state).removeprefix("ORDER_STATE_")


async def test_a_dispatched_order_has_left_and_its_money_is_captured(shop: Shop) -> None:
    merchant = await shop.merchant()
    placed = await shop.placed(merchant, quantity=3)
    assert _stage(placed) == "PLACED"
    answer = await shop.dispatch(placed)
    assert answer.saga.state == pb.SAGA_STATE_COMPLETED
    assert (answer.saga.kind, answer.saga.order_id) == ("dispatch", placed.order_id)
    assert _stage(answer.order) == "DISPATCHED"
    assert await shop.holdings(merchant, placed.order_id) == DISPATCHED
    assert await shop.stock(merchant) == (997, 0)
    assert await shop.money(placed) == (PRICE_MINOR, 0)
    assert await _steps(shop, placed, "dispatch") == ["capture DONE", "dispatch DONE", "commit DONE"]


async def test_a_cancelled_order_holds_nothing(shop: Shop) -> None:
    merchant = await shop.merchant()
    placed = await shop.placed(merchant, quantity=3)
    answer = await shop.cancel(placed)
    assert answer.saga.state == pb.SAGA_STATE_COMPLETED
    assert _stage(answer.order) == "CANCELLED"
    assert await shop.holdings(merchant, placed.order_id) == CANCELLED
    assert await shop.stock(merchant) == (1_000, 0)
    assert await shop.money(placed) == (0, 0)
    assert await _steps(shop, placed, "cancel") == ["call_off DONE", "void DONE", "release DONE"]


async def test_goods_come_back_in_parts_and_never_more_than_was_sold_or_charged(shop: Shop) -> None:
    merchant = await shop.merchant()
    placed = await shop.placed(merchant, quantity=5)
    await shop.dispatch(placed)
    first = await shop.take_back(placed, 2, 1_000)
    assert first.saga.state == pb.SAGA_STATE_COMPLETED
    assert _stage(first.order) == "PARTIALLY_RETURNED"
    assert [(line.sku, line.quantity) for line in first.order.returned_lines] == [("cup", 2)]
    assert first.order.returned_amount.amount_minor == 1_000
    for pieces, amount_minor, reason in (
        (4, 100, "RETURN_EXCEEDS_SOLD"),
        (1, PRICE_MINOR - 999, "RETURN_EXCEEDS_CHARGED"),
    ):
        error = await refusal(shop.take_back(placed, pieces, amount_minor))
        assert (error.kind, error.reason) == (Kind.REFUSED, reason)
    assert await shop.stock(merchant) == (997, 0)
    assert await shop.money(placed) == (PRICE_MINOR, 1_000)
    rest = await shop.take_back(placed)
    assert _stage(rest.order) == "RETURNED"
    assert rest.order.returned_amount.amount_minor == PRICE_MINOR
    assert await shop.stock(merchant) == (1_000, 0)
    assert await shop.money(placed) == (PRICE_MINOR, PRICE_MINOR)
    assert (await refusal(shop.take_back(placed))).reason == "ORDER_RETURNED"
    found = await shop.get(placed)
    assert [saga.kind for saga in found.sagas] == ["place", "dispatch", "return", "return"]
    assert _stage(found.order) == "RETURNED"


async def test_an_order_is_read_with_its_money_and_all_its_stories(shop: Shop) -> None:
    merchant = await shop.merchant()
    placed = await shop.placed(merchant, quantity=2)
    found = await shop.get(placed)
    assert (_stage(found.order), found.payment.held.amount_minor) == ("PLACED", PRICE_MINOR)
    assert list(found.sagas) == [found.saga]
    await shop.dispatch(placed)
    await shop.take_back(placed, 1, 400)
    found = await shop.get(placed)
    assert _stage(found.order) == "PARTIALLY_RETURNED"
    money = found.payment
    assert (money.authorized.amount_minor, money.held.amount_minor) == (PRICE_MINOR, 0)
    assert (money.captured.amount_minor, money.refunded.amount_minor) == (PRICE_MINOR, 400)
    assert [saga.kind for saga in found.sagas] == ["place", "dispatch", "return"]
    for saga in found.sagas:
        read = await shop.orders.GetSaga(pb.GetSagaRequest(merchant_id=merchant, saga_id=saga.saga_id))
        assert read.saga == saga
    listed = await shop.orders.ListSagas(pb.ListSagasRequest(merchant_id=merchant))
    assert [saga.kind for saga in listed.sagas] == ["return", "dispatch", "place"]
    watch = shop.orders.WatchOrder(pb.WatchOrderRequest(merchant_id=merchant, order_id=placed.order_id))
    (seen,) = [answer async for answer in watch]
    assert (seen.order, list(seen.sagas)) == (found.order, list(found.sagas))


async def test_watching_follows_an_order_out_of_the_door(shop: Shop) -> None:
    merchant = await shop.merchant()
    placed = await shop.placed(merchant, token="tok_slow")
    dispatching = asyncio.create_task(shop.dispatch(placed))
    stages: list[str] = []
    while "DISPATCHING" not in stages and not dispatching.done():
        watch = shop.orders.WatchOrder(pb.WatchOrderRequest(merchant_id=merchant, order_id=placed.order_id))
        stages += [_stage(answer.order) async for answer in watch]
    await dispatching
    assert stages[-1] == "DISPATCHED"


async def test_what_does_not_fit_the_order_is_refused_and_changes_nothing(shop: Shop) -> None:
    merchant = await shop.merchant()
    placed, gone, away = [await shop.placed(merchant) for _ in range(3)]
    undone = await shop.place(order(merchant, country="AQ"))
    await shop.cancel(gone)
    await shop.dispatch(away)
    before = await shop.everything()
    found = {
        (which, what): (await refusal(call)).reason
        for which, one in (("placed", placed), ("gone", gone), ("away", away), ("undone", undone))
        for what, call in (
            ("dispatch", shop.dispatch(one)),
            ("cancel", shop.cancel(one)),
            ("return", shop.take_back(one)),
        )
        if (which, what) not in {("placed", "dispatch"), ("placed", "cancel"), ("away", "return")}
        or call.close()
    }
    assert found == {
        ("placed", "return"): "ORDER_NOT_DISPATCHED",
        ("gone", "dispatch"): "ORDER_CANCELLED",
        ("gone", "cancel"): "ORDER_CANCELLED",
        ("gone", "return"): "ORDER_CANCELLED",
        ("away", "dispatch"): "ORDER_DISPATCHED",
        ("away", "cancel"): "ORDER_DISPATCHED",
        ("undone", "dispatch"): "ORDER_NOT_PLACED",
        ("undone", "cancel"): "ORDER_NOT_PLACED",
        ("undone", "return"): "ORDER_NOT_PLACED",
    }
    after = await shop.everything()
    assert after.pop("orchestrator.idempotency") != before.pop("orchestrator.idempotency"), "a no is kept"
    assert after == before
    stranger = await shop.merchant()
    for call in (shop.dispatch, shop.cancel, shop.take_back):
        theirs: Any = pb.Order(merchant_id=stranger, order_id=placed.order_id)
        error = await refusal(call(theirs))
        assert (error.kind, error.reason) == (Kind.NOT_FOUND, "UNKNOWN_ORDER"), "nobody sees another's orders"


async def test_a_repeat_of_each_returns_the_first_answer_whatever_came_after(shop: Shop) -> None:
    merchant = await shop.merchant()
    kept, gone = await shop.placed(merchant, quantity=3), await shop.placed(merchant)
    keys = [new_key() for _ in range(4)]
    answers: list[Any] = [
        await shop.dispatch(kept, keys[0]),
        await shop.take_back(kept, 1, 500, keys[1]),
        await shop.take_back(kept, 2, 600, keys[2]),
        await shop.cancel(gone, keys[3]),
    ]
    before = await shop.everything()
    calls = [
        (shop.orders.DispatchOrder, pb.DispatchOrderRequest(merchant_id=merchant, order_id=kept.order_id)),
        (shop.orders.ReturnOrder, return_request(kept, 1, 500)),
        (shop.orders.ReturnOrder, return_request(kept, 2, 600)),
        (
            shop.orders.CancelOrder,
            pb.CancelOrderRequest(merchant_id=merchant, order_id=gone.order_id, note="test"),
        ),
    ]
    for key, answer, (method, request) in zip(keys, answers, calls, strict=True):
        again: Any = method(request, metadata=with_key(key))  # type: ignore[operator]
        assert await again == answer
        assert await was_replayed(again)
    assert await shop.everything() == before
    other = return_request(kept, 1, 501)
    error = await refusal(shop.orders.ReturnOrder(other, metadata=with_key(keys[1])))
    assert error.reason == "IDEMPOTENCY_KEY_REUSED"
    assert await shop.everything() == before


async def test_a_batch_is_decided_item_by_item(shop: Shop) -> None:
    merchant = await shop.merchant()
    one, two, gone = [await shop.placed(merchant) for _ in range(3)]
    await shop.cancel(gone)
    ids = [one.order_id, two.order_id, one.order_id, gone.order_id, "ord_none", ""]
    keys = [new_key() for _ in ids]
    items = [
        pb.DispatchOrderItem(
            idempotency_key=key, request=pb.DispatchOrderRequest(merchant_id=merchant, order_id=order_id)
        )
        for key, order_id in zip(keys, ids, strict=True)
    ]
    items.append(items[0])
    results = (await shop.orders.BatchDispatchOrders(pb.BatchDispatchOrdersRequest(items=items))).results
    reasons = [r.failure.reason for r in results]
    assert reasons == ["", "", "ORDER_BUSY", "ORDER_CANCELLED", "UNKNOWN_ORDER", "INVALID_REQUEST", ""]
    assert failure_error(results[2].failure).kind is Kind.IN_PROGRESS
    assert results[6].response == results[0].response
    assert [r.replayed for r in results] == [False] * 6 + [True]
    for placed in (one, two):
        assert await shop.holdings(merchant, placed.order_id) == DISPATCHED
    # Who was told to ask again with the same key is now told how things stand.
    again = pb.BatchDispatchOrdersRequest(items=[items[2]])
    (late,) = (await shop.orders.BatchDispatchOrders(again)).results
    assert late.failure.reason == "ORDER_DISPATCHED"


async def test_of_twenty_cancellations_and_dispatches_at_once_exactly_one_wins(shop: Shop) -> None:
    for _ in range(5):
        merchant = await shop.merchant()
        placed = await shop.placed(merchant, quantity=2)
        calls: list[Any] = [shop.dispatch(placed) if n % 2 else shop.cancel(placed) for n in range(20)]
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        won = [o for o in outcomes if not isinstance(o, BaseException)]
        lost = [o.reason for o in outcomes if isinstance(o, PaymeshCallError)]
        assert len(won) == 1
        dispatched = isinstance(won[0], pb.DispatchOrderResponse)
        assert lost == ["ORDER_DISPATCHED" if dispatched else "ORDER_CANCELLED"] * 19
        held = await shop.holdings(merchant, placed.order_id)
        assert held == (DISPATCHED if dispatched else CANCELLED)
        assert await shop.stock(merchant) == ((998, 0) if dispatched else (1_000, 0))
        assert len((await shop.get(placed)).sagas) == 2


async def test_of_two_full_returns_at_once_one_is_carried_out(shop: Shop) -> None:
    for _ in range(5):
        merchant = await shop.merchant()
        placed = await shop.placed(merchant, quantity=2)
        await shop.dispatch(placed)
        outcomes = await asyncio.gather(
            shop.take_back(placed), shop.take_back(placed), return_exceptions=True
        )
        (won,) = [o for o in outcomes if isinstance(o, pb.ReturnOrderResponse)]
        (lost,) = [o for o in outcomes if isinstance(o, PaymeshCallError)]
        assert (_stage(won.order), lost.reason) == ("RETURNED", "ORDER_RETURNED")
        assert await shop.stock(merchant) == (1_000, 0)
        assert await shop.money(placed) == (PRICE_MINOR, PRICE_MINOR)


async def test_many_partial_returns_at_once_never_exceed_what_was_sold(shop: Shop) -> None:
    merchant = await shop.merchant()
    placed = await shop.placed(merchant, quantity=4)
    await shop.dispatch(placed)
    calls = [shop.take_back(placed, 1, 600) for _ in range(10)]
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    won = [o for o in outcomes if isinstance(o, pb.ReturnOrderResponse)]
    lost = {o.reason for o in outcomes if isinstance(o, PaymeshCallError)}
    assert (len(won), lost) == (4, {"ORDER_RETURNED"})
    assert await shop.stock(merchant) == (1_000, 0)
    assert await shop.money(placed) == (PRICE_MINOR, 2_400)


def _sends(call: Any, request: Any) -> Callable[[str], Awaitable[Any]]:
    return lambda key: call(request, metadata=with_key(key))


async def test_nobody_moves_the_money_of_an_order_but_the_order(shop: Shop) -> None:
    merchant = await shop.merchant()
    for coordination in (pb.COORDINATION_ORCHESTRATED, pb.COORDINATION_CHOREOGRAPHED):
        wanted = order(merchant)
        wanted.coordination = coordination
        placed = await shop.place(wanted)
        of: dict[str, Any] = {"merchant_id": merchant, "payment_id": placed.payment_id}
        calls: list[tuple[Any, Any]] = [
            (shop.payment.CapturePayment, payment_pb2.CapturePaymentRequest(**of)),
            (shop.payment.VoidPayment, payment_pb2.VoidPaymentRequest(**of)),
        ]
        for call, request in calls:
            error = await refusal(insist(_sends(call, request)))
            assert (error.reason, error.facts["order_id"]) == ("PAYMENT_OF_AN_ORDER", placed.order_id)
        assert await shop.holdings(merchant, placed.order_id) == HELD
        await shop.dispatch(placed)
        refund = payment_pb2.RefundPaymentRequest(**of)
        error = await refusal(insist(_sends(shop.payment.RefundPayment, refund)))
        assert error.reason == "PAYMENT_OF_AN_ORDER"
        assert _stage((await shop.take_back(placed)).order) == "RETURNED"


async def test_money_that_cannot_be_captured_leaves_the_order_as_it_was(shop: Shop) -> None:
    """The card's account was closed meanwhile."""
    merchant = await shop.merchant()
    placed = await shop.placed(merchant, token="tok_no_capture")
    answer = await shop.dispatch(placed)
    assert answer.saga.state == pb.SAGA_STATE_COMPENSATED
    assert (answer.saga.reason.step, answer.saga.reason.code) == ("capture", "CAPTURE_REFUSED")
    assert _stage(answer.order) == "PLACED"
    assert await shop.holdings(merchant, placed.order_id) == HELD
    # Nothing has happened, so it may be tried again, and be given up.
    assert (await shop.dispatch(placed)).saga.state == pb.SAGA_STATE_COMPENSATED
    assert _stage((await shop.cancel(placed)).order) == "CANCELLED"
    assert await shop.holdings(merchant, placed.order_id) == CANCELLED


async def test_a_refund_that_is_refused_leaves_the_goods_with_the_customer(shop: Shop) -> None:
    merchant = await shop.merchant()
    placed = await shop.placed(merchant, token="tok_no_refund")
    await shop.dispatch(placed)
    for pieces, amount_minor in ((0, 0), (1, PRICE_MINOR // 2)):
        # Nothing has happened, so it may be tried again.
        answer = await shop.take_back(placed, pieces, amount_minor)
        assert answer.saga.state == pb.SAGA_STATE_COMPENSATED
        assert (answer.saga.reason.step, answer.saga.reason.code) == ("refund", "REFUND_REFUSED")
        assert _stage(answer.order) == "DISPATCHED"
        assert await shop.stock(merchant) == (999, 0)


async def test_goods_that_cannot_leave_after_the_money_was_taken_call_for_a_person(shop: Shop) -> None:
    """Somebody has called the shipment off behind the orchestrator's back."""
    merchant = await shop.merchant()
    placed = await shop.placed(merchant)
    off = shipping_pb2.CancelShipmentRequest(merchant_id=merchant, shipment_id=placed.shipment_id)
    await shop.shipping.CancelShipment(off, metadata=with_key(new_key()))
    answer = await shop.dispatch(placed)
    assert answer.saga.state == pb.SAGA_STATE_PARKED
    assert (answer.saga.reason.step, answer.saga.reason.code) == ("dispatch", "SHIPMENT_CANCELLED")
    assert _stage(answer.order) == "DISPATCHING"
    assert await _steps(shop, placed, "dispatch") == ["capture DONE", "dispatch REFUSED"]
    for call in (shop.dispatch(placed), shop.cancel(placed), shop.take_back(placed)):
        error = await refusal(call)
        assert (error.reason, error.facts["saga_id"]) == ("ORDER_PARKED", answer.saga.saga_id)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"order_id": ""}, "order_id"),
        ({"merchant_id": "m" * 65}, "merchant_id"),
        ({"note": "n" * 201}, "note"),
        ({"lines": [pb.OrderLine(sku="cup", quantity=1)]}, "amount"),
        ({"amount": money_pb2.Money(amount_minor=1, currency="USD")}, "lines"),
        (
            {
                "lines": [pb.OrderLine(sku="cup", quantity=0)],
                "amount": money_pb2.Money(amount_minor=1, currency="USD"),
            },
            "lines[0].quantity",
        ),
        (
            {
                "lines": [pb.OrderLine(sku="cup", quantity=1)],
                "amount": money_pb2.Money(amount_minor=0, currency="USD"),
            },
            "amount.amount_minor",
        ),
    ],
)
async def test_a_wrong_return_names_the_field(shop: Shop, change: dict[str, Any], field: str) -> None:
    request = pb.ReturnOrderRequest(**{"merchant_id": "mer_1", "order_id": "ord_1", **change})
    error = await refusal(shop.orders.ReturnOrder(request, metadata=with_key(new_key())))
    assert error.kind is Kind.INVALID
    assert field in [violation.field for violation in error.violations]
