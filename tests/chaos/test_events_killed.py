"""`kill -9` of whoever carries or hears events, under load: of relays and listeners with their processes, of the bus,
which is emptied, too. What is proved: every choreographed order comes to an end, and its end is the one that it would
have had; every event is applied once, for what services hold is what their orders say; and the audit agrees.
"""

from __future__ import annotations

import asyncio
import random
import signal
from collections import Counter

import pytest
from valkey.asyncio import Valkey

from audit.run import run_audit
from paymesh.channel import with_key
from paymesh.orchestrator.v1 import orchestrator_pb2 as pb
from tests.orders import (
    AUDITED,
    HELD,
    NOTHING,
    UNDONE_AT_SHIP,
    Shop,
    insist,
    order,
    running_shop,
    until,
)

pytestmark = pytest.mark.timeout(300)

ORDERS = 160
AT_ONCE = 20
ROUNDS = 2
VICTIMS = ("inventory", "payment", "valkey", "shipping", "orchestrator", "flushall")


async def test_whoever_is_killed_every_event_is_applied_once() -> None:
    environment = {
        "PAYMESH_ORCHESTRATOR_LEASE_SECONDS": "1",
        "PAYMESH_ORCHESTRATOR_HEARTBEAT_SECONDS": "0.2",
        "PAYMESH_PAYMENT_INTENT_SECONDS": "3",
    }
    async with running_shop(environment=environment) as shop:
        merchant = await shop.merchant(cup=1_000)
        ends, killed = await asyncio.gather(_place(shop, merchant), _kill(shop))
        print(f"{Counter(end.state for end in ends.values())}; killed {dict(killed)}")
        assert all(killed[victim] for victim in VICTIMS), killed
        await _compare(shop, merchant, ends)
        await _at_rest(shop)
        report = await run_audit({name: shop.mesh.dsn(name) for name in AUDITED}, wait_seconds=20)
        assert report.settled
        assert report.ok, [f"{offence}" for line in report.lines for offence in line.first]


async def _kill(shop: Shop) -> Counter[str]:
    """Kill one after the other, each when the one before serves again."""
    dice = random.Random(9)
    killed: Counter[str] = Counter()
    for victim in VICTIMS * ROUNDS:
        await asyncio.sleep(dice.uniform(0.1, 0.6))
        if victim == "flushall":
            assert shop.mesh.stores.valkey_url is not None
            client = Valkey.from_url(shop.mesh.stores.valkey_url)
            await client.flushall()
            await client.aclose()
        else:
            shop.mesh.kill(victim, signal.SIGKILL)
            await shop.mesh.wait_ready(victim)
        killed[victim] += 1
    return killed


async def _place(shop: Shop, merchant: str) -> dict[str, pb.Order]:
    """The ends of all orders, by key: every fifth has no carrier."""
    room = asyncio.Semaphore(AT_ONCE)

    async def place(number: int) -> tuple[str, pb.Order]:
        request = order(merchant, country="AQ" if number % 5 == 1 else "GB")
        request.coordination = pb.COORDINATION_CHOREOGRAPHED
        key = f"order-{number}"
        async with room:
            answer = await insist(
                lambda k: shop.orders.PlaceOrder(request, metadata=with_key(k), timeout=20), key, seconds=200
            )
        return key, answer.order

    return dict(await asyncio.gather(*(place(number) for number in range(ORDERS))))


async def _compare(shop: Shop, merchant: str, ends: dict[str, pb.Order]) -> None:
    held = 0
    for number in range(ORDERS):
        end = ends[f"order-{number}"]
        holdings = await shop.holdings(merchant, end.order_id)
        if end.state == pb.SAGA_STATE_COMPLETED:
            assert number % 5 != 1
            assert holdings == HELD
            held += 1
            continue
        assert end.state == pb.SAGA_STATE_COMPENSATED, end
        assert end.reason.code in ("COUNTRY_NOT_SERVED", "TIMED_OUT"), end
        if end.reason.code == "COUNTRY_NOT_SERVED":
            assert holdings == UNDONE_AT_SHIP
        else:
            assert holdings != HELD or holdings == NOTHING
    assert await shop.reserved(merchant) == held


async def _at_rest(shop: Shop) -> None:
    """Every log has everything that was announced, and every listener has come to its end."""

    async def drained() -> bool:
        ends = {}
        for name in ("orchestrator", "payment", "inventory", "shipping"):
            ((position, announced),) = await shop.rows(
                name, "SELECT (SELECT position FROM event_log), (SELECT count(*) FROM outbox)"
            )
            if position != announced:
                return False
            ends[name] = position
        for name in ends:
            if await shop.rows(name, "SELECT FROM events_set_aside"):
                return False
            for source, position in await shop.rows(name, "SELECT source, position FROM inbox"):
                if position != ends[source]:
                    return False
        return True

    await until(drained, 60, "every event has been applied")
