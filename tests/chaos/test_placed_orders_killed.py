"""`kill -9` in the midst of dispatches, cancellations and returns: of the orchestrator, payment, inventory, shipping
and the bank. What is proved: each is carried out once, whoever dies at whatever step; a repeat with its key is told
how it ended; what services hold is what the order says, and the audit agrees.

The bank is slow while things are killed, so that there is a midst.
"""

from __future__ import annotations

import asyncio
import random
import signal
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from audit.run import run_audit
from paymesh.bank.v1 import bank_pb2
from paymesh.channel import with_key
from paymesh.errors import PaymeshCallError
from paymesh.orchestrator.v1 import orchestrator_pb2 as pb
from tests.orders import (
    AUDITED,
    CANCELLED,
    DISPATCHED,
    PRICE_MINOR,
    Shop,
    insist,
    new_key,
    order,
    running_shop,
)

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]

ORDERS = 6
"""Under way when somebody is killed."""
BANK_MS = 250
"""Below the bank's soft deadline: what takes longer is answered late, and that for ever where every look is as slow."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def mesh() -> AsyncIterator[Shop]:
    """A mesh with two orchestrators, which are missed sooner than usual, as are payments under way."""
    sooner = {
        "PAYMESH_ORCHESTRATOR_LEASE_SECONDS": "1",
        "PAYMESH_ORCHESTRATOR_HEARTBEAT_SECONDS": "0.2",
        "PAYMESH_PAYMENT_INTENT_SECONDS": "6",
    }
    async with running_shop(environment=sooner, replicas={"orchestrator": 2}) as shop:
        yield shop


async def _slow_bank(shop: Shop, merchant: str) -> None:
    fault = bank_pb2.Fault(
        kind=bank_pb2.FAULT_KIND_DELAY, probability_ppm=1_000_000, delay_ms=BANK_MS, merchant_id=merchant
    )
    await shop.faults.InjectFault(bank_pb2.InjectFaultRequest(fault=fault))


async def _audit(shop: Shop) -> None:
    report = await run_audit({name: shop.mesh.dsn(name) for name in AUDITED}, wait_seconds=20)
    assert report.settled
    assert report.ok, [f"{offence}" for line in report.lines for offence in line.first]


KINDS: dict[str, tuple[dict[str, str], tuple[int, int], tuple[int, int]]] = {
    "dispatch": (DISPATCHED, (1_000 - 2 * ORDERS, 0), (PRICE_MINOR, 0)),
    "cancel": (CANCELLED, (1_000, 0), (0, 0)),
    "return": (
        DISPATCHED | {"payment": "PARTIALLY_REFUNDED"},
        (1_000 - ORDERS, 0),
        (PRICE_MINOR, PRICE_MINOR // 2),
    ),
}
"""What is held, what stock there is and what money has moved at the end."""


async def _do(shop: Shop, kind: str, placed: pb.Order, key: str) -> Any:
    if kind == "dispatch":
        return await shop.dispatch(placed, key)
    if kind == "cancel":
        return await shop.cancel(placed, key)
    return await shop.take_back(placed, 1, PRICE_MINOR // 2, key)


@pytest.mark.parametrize("victim", ["orchestrator", "payment", "inventory", "shipping", "bank"])
@pytest.mark.parametrize("kind", KINDS)
async def test_whoever_is_killed_in_the_midst_it_is_carried_out_once(
    mesh: Shop, kind: str, victim: str
) -> None:
    merchant = await mesh.merchant()
    placed = [await mesh.placed(merchant, quantity=2) for _ in range(ORDERS)]
    if kind == "return":
        await asyncio.gather(*(mesh.dispatch(one) for one in placed))
    await _slow_bank(mesh, merchant)
    keys = [new_key() for _ in placed]
    dice = random.Random(f"{kind}/{victim}")
    calls = [asyncio.create_task(_do(mesh, kind, one, key)) for one, key in zip(placed, keys, strict=True)]
    await asyncio.sleep(dice.uniform(0.02, 0.6))
    mesh.mesh.kill(victim, signal.SIGKILL)
    await mesh.mesh.wait_ready(victim)
    answers = await asyncio.gather(*calls)
    assert all(answer.saga.state == pb.SAGA_STATE_COMPLETED for answer in answers)
    held, stock, money = KINDS[kind]
    for one, key, answer in zip(placed, keys, answers, strict=True):
        assert await mesh.holdings(merchant, one.order_id) == held
        assert await mesh.money(one) == money
        before = await mesh.everything()
        assert await _do(mesh, kind, one, key) == answer
        assert await mesh.everything() == before
        assert sum(saga.kind == kind for saga in (await mesh.get(one)).sagas) == 1
    assert await mesh.stock(merchant) == stock
    await _audit(mesh)


async def test_two_orchestrators_carry_out_one_of_twenty_dispatches_and_cancellations(mesh: Shop) -> None:
    """Nothing but the lock on the order's row, in the database that they share, decides between them."""
    merchant = await mesh.merchant()
    for _ in range(8):
        placed = await mesh.placed(merchant, quantity=2)
        calls: list[Any] = [mesh.cancel(placed) if n % 4 > 1 else mesh.dispatch(placed) for n in range(20)]
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert sum(not isinstance(one, BaseException) for one in outcomes) == 1, outcomes
        held = await mesh.holdings(merchant, placed.order_id)
        assert held in (DISPATCHED, CANCELLED)
        if held == DISPATCHED:
            returns = await asyncio.gather(
                *(mesh.take_back(placed) for _ in range(8)), return_exceptions=True
            )
            assert sum(isinstance(one, pb.ReturnOrderResponse) for one in returns) == 1, returns
            assert await mesh.money(placed) == (PRICE_MINOR, PRICE_MINOR)
    await _audit(mesh)


async def test_in_a_rush_of_everything_every_order_comes_to_one_end_and_the_books_agree(mesh: Shop) -> None:
    """Orders are placed, dispatched, cancelled and returned, each by several at once, while everybody is killed."""
    merchant = await mesh.merchant()
    outcomes: Counter[str] = Counter()
    stopping = asyncio.Event()

    async def one_order() -> None:
        placed = await _insist_placing(mesh, merchant)
        tries: list[Any] = [mesh.dispatch(placed), mesh.cancel(placed), mesh.dispatch(placed)]
        first = await asyncio.gather(*tries, return_exceptions=True)
        won = [one for one in first if not isinstance(one, BaseException)]
        assert len(won) == 1, first
        assert all(isinstance(one, PaymeshCallError) for one in first if isinstance(one, BaseException)), (
            first
        )
        outcomes[type(won[0]).__name__] += 1
        if isinstance(won[0], pb.DispatchOrderResponse):
            back: list[Any] = [mesh.take_back(placed), mesh.take_back(placed, 1, 700), mesh.take_back(placed)]
            second = await asyncio.gather(*back, return_exceptions=True)
            outcomes["ReturnOrderResponse"] += sum(isinstance(one, pb.ReturnOrderResponse) for one in second)
            assert (await mesh.money(placed))[1] == PRICE_MINOR

    async def customer() -> None:
        while not stopping.is_set():
            await one_order()

    customers = [asyncio.create_task(customer()) for _ in range(8)]
    for victim in ("payment", "orchestrator", "inventory", "shipping", "bank", "orchestrator", "payment"):
        await asyncio.sleep(1.0)
        mesh.mesh.kill(victim, signal.SIGKILL)
        await mesh.mesh.wait_ready(victim)
    stopping.set()
    await asyncio.gather(*customers)
    print(dict(outcomes))
    assert all(outcomes[name] > 5 for name in ("DispatchOrderResponse", "ReturnOrderResponse"))
    parked = await mesh.rows("orchestrator", "SELECT saga_id FROM sagas WHERE state = 'PARKED'")
    assert parked == []
    await _audit(mesh)


async def _insist_placing(shop: Shop, merchant: str) -> pb.Order:
    request = order(merchant, quantity=2)
    placed = (await insist(lambda key: shop.orders.PlaceOrder(request, metadata=with_key(key)))).order
    assert placed.state == pb.SAGA_STATE_COMPLETED
    return placed
