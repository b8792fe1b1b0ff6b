"""Orders that nobody conducts: the services react to each other's events, and it comes to the same.

The same orders are placed both ways, with declined cards, empty shelves, countries without a carrier and a bank that
loses answers; then everything that every service holds for them is compared, and the audit looks at all of it.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from audit.run import run_audit
from paymesh.bank.v1 import bank_pb2
from paymesh.orchestrator.v1 import orchestrator_pb2 as pb
from tests.orders import (
    AUDITED,
    CANCELLED,
    HELD,
    NOTHING,
    UNDONE_AT_SHIP,
    Shop,
    new_key,
    order,
    running_shop,
    until,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

ORDERS = int(os.environ.get("PAYMESH_TEST_ORDERS", "300"))
ORDERS_AT_ONCE = 500
"""Placed in one call; a batch may have 1,000."""
"""How many orders are placed each way."""
CHOREOGRAPHED = pb.COORDINATION_CHOREOGRAPHED


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shop() -> AsyncIterator[Shop]:
    """A mesh of its own: the bank's faults are for everybody."""
    async with running_shop() as made:
        yield made


def choreographed(request: pb.PlaceOrderRequest) -> pb.PlaceOrderRequest:
    """The same order, for services that place it by themselves."""
    made = pb.PlaceOrderRequest()
    made.CopyFrom(request)
    made.coordination = CHOREOGRAPHED
    return made


async def story(shop: Shop, placed: pb.Order) -> list[tuple[str, str, str]]:
    """The attempts that settled a step: how often a conductor had to ask is his affair."""
    return [one for one in await shop.story(placed) if one[2] in ("DONE", "REFUSED")]


async def test_an_order_is_placed_and_tells_the_same_story(shop: Shop) -> None:
    merchant = await shop.merchant()
    conducted = await shop.place(order(merchant))
    danced = await shop.place(choreographed(order(merchant)))
    assert danced.state == conducted.state == pb.SAGA_STATE_COMPLETED
    assert await shop.holdings(merchant, danced.order_id) == HELD
    assert await story(shop, danced) == await story(shop, conducted)
    told = await shop.get(danced)
    assert told.order.payment_id == told.payment.payment_id == danced.payment_id
    assert told.order.reservation_id
    assert told.order.shipment_id
    assert told.saga.coordination == CHOREOGRAPHED


@pytest.mark.parametrize(
    ("what", "step", "code", "held"),
    [
        ({"quantity": 2_000}, "reserve", "OUT_OF_STOCK", NOTHING),
        ({"token": "tok_insufficient_funds"}, "authorize", "INSUFFICIENT_FUNDS", None),
        ({"country": "AQ"}, "ship", "COUNTRY_NOT_SERVED", UNDONE_AT_SHIP),
    ],
)
async def test_a_refused_order_is_undone(
    shop: Shop, what: dict[str, Any], step: str, code: str, held: dict[str, str | None] | None
) -> None:
    merchant = await shop.merchant()
    conducted = await shop.place(order(merchant, **what))
    danced = await shop.place(choreographed(order(merchant, **what)))
    assert danced.state == conducted.state == pb.SAGA_STATE_COMPENSATED
    assert (danced.reason.step, danced.reason.code) == (step, code)
    assert danced.reason.message == conducted.reason.message
    assert await story(shop, danced) == await story(shop, conducted)
    holdings = await shop.holdings(merchant, danced.order_id)
    assert holdings == await shop.holdings(merchant, conducted.order_id)
    assert held is None or holdings == held
    assert await shop.reserved(merchant) == 0


async def test_a_repeat_is_answered_like_the_first(shop: Shop) -> None:
    merchant = await shop.merchant()
    key, request = new_key(), choreographed(order(merchant))
    answers = await asyncio.gather(*(shop.place(request, key) for _ in range(5)))
    assert len({answer.order_id for answer in answers}) == 1
    assert await shop.place(request, key) == answers[0]
    assert await shop.reserved(merchant) == 1


async def test_what_was_danced_is_dispatched_and_returned_like_anything_else(shop: Shop) -> None:
    merchant = await shop.merchant()
    danced = await shop.place(choreographed(order(merchant, quantity=2)))
    await shop.dispatch(danced)
    await shop.take_back(danced)
    assert await shop.stock(merchant) == (1_000, 0)
    other = await shop.place(choreographed(order(merchant)))
    await shop.cancel(other)
    assert await shop.stock(merchant) == (1_000, 0)


async def test_thousands_of_orders_come_to_the_same_both_ways(shop: Shop) -> None:
    dice = random.Random(4)
    kinds = ["good"] * 12 + ["declined", "empty", "unserved"]
    plan = [dice.choice(kinds) for _ in range(ORDERS)]
    for kind in (bank_pb2.FAULT_KIND_ANSWER_LOST_AFTER, bank_pb2.FAULT_KIND_ANSWER_LOST_BEFORE):
        fault = bank_pb2.Fault(kind=kind, target=bank_pb2.FAULT_TARGET_AUTHORIZE, probability_ppm=30_000)
        await shop.faults.InjectFault(bank_pb2.InjectFaultRequest(fault=fault))
    ends = {}
    for coordination in (pb.COORDINATION_ORCHESTRATED, CHOREOGRAPHED):
        merchant = await shop.merchant(cup=len(plan), rare=3)
        requests = [_order(merchant, kind) for kind in plan]
        for request in requests:
            request.coordination = coordination
        items = [(f"order-{number}", request) for number, request in enumerate(requests)]
        results: list[pb.PlaceOrderResult] = []
        for begin in range(0, len(items), ORDERS_AT_ONCE):
            results += await shop.place_all(items[begin : begin + ORDERS_AT_ONCE], timeout_seconds=60)
        ends[coordination] = await _ends(shop, merchant, plan, requests, results)
    await shop.faults.ClearFaults(bank_pb2.ClearFaultsRequest())
    conducted, danced = ends.values()
    assert danced == conducted
    report = await run_audit({name: shop.mesh.dsn(name) for name in AUDITED}, wait_seconds=10)
    assert report.settled
    assert report.ok, [f"{offence}" for line in report.lines for offence in line.first]


def _order(merchant: str, kind: str) -> pb.PlaceOrderRequest:
    match kind:
        case "declined":
            return order(merchant, token="tok_insufficient_funds")
        case "empty":
            return order(merchant, sku="rare", quantity=4)
        case "unserved":
            return order(merchant, country="AQ")
        case _:
            return order(merchant)


async def _ends(
    shop: Shop,
    merchant: str,
    plan: list[str],
    requests: list[pb.PlaceOrderRequest],
    results: list[pb.PlaceOrderResult],
) -> dict[str, Any]:
    """What has become of orders, wherever it is kept."""
    orders = []
    for number, (request, result) in enumerate(zip(requests, results, strict=True)):
        if result.HasField("response"):
            orders.append(result.response.order)
        else:
            orders.append(await shop.place(request, f"order-{number}"))
    counted: dict[str, Any] = {
        "orders": Counter((kind, one.state, one.reason.code) for kind, one in zip(plan, orders, strict=True))
    }
    for name, database, query in (
        ("reservations", "inventory", "SELECT state, count(*) FROM reservations WHERE {} GROUP BY 1"),
        ("stock", "inventory", "SELECT sku, on_hand, reserved FROM products WHERE {}"),
        (
            "payments",
            "payment",
            "SELECT state, sum(amount_minor), count(*) FROM payments WHERE {} GROUP BY 1",
        ),
        ("ledger", "payment", "SELECT account, sum(amount_minor) FROM journal_entries WHERE {} GROUP BY 1"),
        ("shipments", "shipping", "SELECT state, count(*) FROM shipments WHERE {} GROUP BY 1"),
        ("bank", "bank", "SELECT state, count(*) FROM authorizations WHERE {} GROUP BY 1"),
    ):
        rows = await shop.rows(database, query.format("merchant_id = %(merchant)s"), merchant=merchant)
        counted[name] = sorted(rows)
    return counted


async def test_what_never_ends_is_undone_in_time() -> None:
    """Shipping is away for good: the order turns back by the clock, and its late do is refused."""
    environment = {"PAYMESH_ORCHESTRATOR_CHOREOGRAPHY_SECONDS": "3"}
    async with running_shop(environment=environment) as shop:
        merchant = await shop.merchant()
        shop.mesh.kill("shipping", signal.SIGSTOP)
        placing = asyncio.create_task(shop.place(choreographed(order(merchant))))

        async def turned() -> bool:
            rows = await shop.rows(
                "orchestrator", "SELECT state FROM sagas WHERE merchant_id = %(m)s", m=merchant
            )
            return [row[0] for row in rows] == ["COMPENSATING"]

        await until(turned, 20, "the order turns back")
        shop.mesh.kill("shipping", signal.SIGCONT)
        danced = await placing
        assert danced.state == pb.SAGA_STATE_COMPENSATED
        assert danced.reason.code == "TIMED_OUT"
        holdings = await shop.holdings(merchant, danced.order_id)
        assert holdings in (UNDONE_AT_SHIP, CANCELLED), "shipping hears of the money or of the end first"
