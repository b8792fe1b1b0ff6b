"""Orders and sagas read back: as they were answered, while they are on their way, and in pages."""

from __future__ import annotations

import asyncio
import itertools

import pytest

from paymesh.errors import Kind
from paymesh.orchestrator.v1 import orchestrator_pb2 as pb
from tests.orders import ENDED, Shop, order, refusal, until

pytestmark = pytest.mark.asyncio(loop_scope="session")


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
    error = await refusal(
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
    assert all(before != after for before, after in itertools.pairwise(seen))
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


async def test_orders_are_listed_in_full_pages_as_they_stand(shop: Shop) -> None:
    """Later sagas of an order neither take a place on a page nor go unnoticed."""
    merchant, stranger = await shop.merchant(cup=5), await shop.merchant()
    placed = [await shop.place(order(merchant, reference=f"R-{number}")) for number in range(7)]
    await shop.placed(stranger, reference="R-1")
    await shop.dispatch(placed[1])
    await shop.take_back(placed[1])
    await shop.cancel(placed[2])
    pages: list[list[pb.Order]] = []
    token = ""
    while token or not pages:
        request = pb.ListOrdersRequest(merchant_id=merchant, page_size=3, page_token=token)
        page = await shop.orders.ListOrders(request)
        pages.append(list(page.orders))
        token = page.next_page_token
    assert [len(page) for page in pages] == [3, 3, 1]
    listed = [one for page in pages for one in page]
    assert listed == [(await shop.get(one)).order for one in reversed(placed)]
    assert {one.order_reference: one.order_state for one in listed} == {
        "R-0": pb.ORDER_STATE_PLACED,
        "R-1": pb.ORDER_STATE_RETURNED,
        "R-2": pb.ORDER_STATE_CANCELLED,
        "R-3": pb.ORDER_STATE_PLACED,
        "R-4": pb.ORDER_STATE_PLACED,
        "R-5": pb.ORDER_STATE_NOT_PLACED,
        "R-6": pb.ORDER_STATE_NOT_PLACED,
    }
    for reference, found in (("R-1", [placed[1].order_id]), ("R-", [])):
        request = pb.ListOrdersRequest(merchant_id=merchant, order_reference=reference)
        assert [one.order_id for one in (await shop.orders.ListOrders(request)).orders] == found
