"""Orders placed more than once: the same key, the same reference, at once and later. There is one order, every caller
is told the same, and a key that was used for another order is refused."""

from __future__ import annotations

import asyncio

import grpc
import pytest

from paymesh.channel import open_channel, was_replayed, with_key
from paymesh.errors import Kind, call_error, failure_error
from paymesh.orchestrator.v1 import orchestrator_pb2 as pb
from paymesh.orchestrator.v1.orchestrator_pb2_grpc import OrchestratorServiceStub
from tests.orders import CALLER, HELD, Shop, new_key, order, refusal

pytestmark = pytest.mark.asyncio(loop_scope="session")


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


async def _until_told(
    stub: OrchestratorServiceStub, request: pb.PlaceOrderRequest, key: str
) -> tuple[pb.PlaceOrderResponse, bool]:
    """The answer, and whether it is a replay. A repeat that comes in the moment in which the order ends may be told
    that it is under way, and when to ask again."""
    for _ in range(10):
        call = stub.PlaceOrder(request, metadata=with_key(key))
        try:
            return await call, await was_replayed(call)
        except grpc.aio.AioRpcError as error:
            failure = call_error(error)
            assert failure.reason == "IN_PROGRESS"
            assert failure.retry_after is not None
            await asyncio.sleep(failure.retry_after.total_seconds())
    raise AssertionError("the order does not end")


async def test_a_key_50_times_at_once_places_one_order(shop: Shop) -> None:
    merchant = await shop.merchant()
    request, key = order(merchant), new_key()
    target = shop.mesh.targets["orchestrator"]
    channels = [open_channel(target, caller=CALLER) for _ in range(5)]
    stubs = [OrchestratorServiceStub(channel) for channel in channels]
    try:
        told = await asyncio.gather(*(_until_told(stubs[n % 5], request, key) for n in range(50)))
        assert sum(replayed for _, replayed in told) == 49
        answers = [answer for answer, _ in told]
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
    error = await refusal(shop.orders.PlaceOrder(order(merchant, quantity=2), metadata=with_key(key)))
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
    assert await shop.reserved(merchant) == 3


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
    error = await refusal(shop.orders.PlaceOrder(request, metadata=with_key(key)))
    assert (error.kind, error.reason) == (Kind.REFUSED, "ORDER_REFERENCE_EXISTS")
    assert error.facts["reference"] == "inv-7"
    # The refusal is an answer like any other: it replays, and nothing was begun.
    again = shop.orders.PlaceOrder(request, metadata=with_key(key))
    assert (await refusal(again)).reason == "ORDER_REFERENCE_EXISTS"
    assert await was_replayed(again)
    assert await shop.reserved(merchant) == 1
    assert (await shop.place(order(other, reference="inv-7"))).state == pb.SAGA_STATE_COMPLETED
    twins = await shop.place_all([(new_key(), order(merchant, reference="inv-8")) for _ in range(2)])
    assert sorted(result.WhichOneof("outcome") or "" for result in twins) == ["failure", "response"]
