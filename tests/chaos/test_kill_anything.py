"""Every process of a mesh under load is killed, one after the other, while the bank loses answers.

What is proved: every order that was accepted ends COMPLETED or COMPENSATED, or PARKED with a reason, without help;
sending every request again with its key returns the same order; and the books of all services and of the bank agree,
in the eyes of the audit and of a plainer comparison here.

`PAYMESH_CHAOS_SECONDS` (default 15) is how long things are broken; every process is killed at least once.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import grpc.aio
import pytest
import pytest_asyncio

from audit.run import run_audit
from paymesh.bank.v1 import bank_pb2
from paymesh.channel import with_key
from paymesh.errors import Kind, PaymeshCallError, call_error, failure_error
from paymesh.orchestrator.v1 import orchestrator_pb2 as pb
from tests.orders import AUDITED, ENDED, Shop, batch, new_key, order, running_shop, until

SECONDS = float(os.environ.get("PAYMESH_CHAOS_SECONDS", "15"))
pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(SECONDS * 2 + 300)]

VICTIMS = ("orchestrator", "payment", "inventory", "shipping", "fraud", "bank", "valkey", "postgres")
SINGLE_CALLERS = 16
BATCH_CALLERS = 4
BATCH_SIZE = 20
THINK_SECONDS = 0.1
"""Between two orders of one caller: the point is trouble in the midst of work, not as much work as possible."""
CALL_SECONDS = 10.0
REPEAT_SECONDS = 0.2
ORDER_SECONDS_MAX = 90.0
"""A caller that got no answer for so long has found an order that hangs."""
PROGRESS = 60
"""Orders that must end after a kill before the next one."""
PROGRESS_SECONDS_MAX = 60.0
SETTLE_SECONDS = 60.0
FAULTS_PPM = {
    bank_pb2.FAULT_KIND_ANSWER_LOST_AFTER: 40_000,
    bank_pb2.FAULT_KIND_ANSWER_LOST_BEFORE: 40_000,
    bank_pb2.FAULT_KIND_ERROR: 20_000,
    bank_pb2.FAULT_KIND_REFUSE_CONNECTION: 20_000,
}

HELD = ("RESERVED", "AUTHORIZED", "APPROVED", "CREATED")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def mesh_to_break() -> AsyncIterator[Shop]:
    """A mesh whose orchestrators are missed a little sooner than usual."""
    lease = {
        "PAYMESH_ORCHESTRATOR_LEASE_SECONDS": "2",
        "PAYMESH_ORCHESTRATOR_HEARTBEAT_SECONDS": "0.4",
    }
    async with running_shop(environment=lease) as shop:
        yield shop


@dataclass
class Load:
    """Callers that place orders of every kind, and repeat each until it is answered."""

    shop: Shop
    merchants: list[str]
    requests: dict[str, pb.PlaceOrderRequest] = field(default_factory=dict)
    answers: dict[str, pb.Order] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    stopping: bool = False
    repeats: int = 0
    _dice: random.Random = field(default_factory=lambda: random.Random(17))

    async def run(self) -> None:
        """Until `stopping`; returns when every order that was begun has been answered."""
        singles = (self._call_one() for _ in range(SINGLE_CALLERS))
        batches = (self._call_many() for _ in range(BATCH_CALLERS))
        await asyncio.gather(*singles, *batches)

    def _new(self) -> tuple[str, pb.PlaceOrderRequest]:
        merchant = self._dice.choice(self.merchants)
        request = self._dice.choices(
            [
                order(merchant),
                order(merchant, country="AQ"),
                order(merchant, token="tok_declined"),
                order(merchant, sku="gem"),
            ],
            weights=[6, 2, 1, 1],
        )[0]
        key = new_key()
        self.requests[key] = request
        return key, request

    async def _call_one(self) -> None:
        while not self.stopping:
            await self.place([self._new()], single=True)
            await asyncio.sleep(THINK_SECONDS)

    async def _call_many(self) -> None:
        while not self.stopping:
            await self.place([self._new() for _ in range(BATCH_SIZE)], single=False)
            await asyncio.sleep(THINK_SECONDS)

    async def place(self, items: list[tuple[str, pb.PlaceOrderRequest]], *, single: bool) -> None:
        """Ask until everything is answered, always with the same keys."""
        give_up_at = time.monotonic() + ORDER_SECONDS_MAX
        while items:
            outcomes = await (self._one(*items[0]) if single else self._many(items))
            for (key, _), outcome in zip(items, outcomes, strict=True):
                if isinstance(outcome, pb.Order):
                    self.answers.setdefault(key, outcome)
                    if outcome != self.answers[key]:
                        self.wrong.append(f"{key}: first {self.answers[key]}, then {outcome}")
                elif outcome.kind in (Kind.INVALID, Kind.REFUSED, Kind.NOT_FOUND):
                    self.wrong.append(f"{key}: {outcome}")
            items = [item for item, o in zip(items, outcomes, strict=True) if self._worth_repeating(o)]
            if items and time.monotonic() > give_up_at:
                self.wrong.append(f"not answered in {ORDER_SECONDS_MAX:.0f} s: {items[0][0]}, {outcomes}")
                return
            if items:
                self.repeats += 1
                await asyncio.sleep(REPEAT_SECONDS)

    @staticmethod
    def _worth_repeating(outcome: pb.Order | PaymeshCallError) -> bool:
        return isinstance(outcome, PaymeshCallError) and outcome.kind not in (
            Kind.INVALID,
            Kind.REFUSED,
            Kind.NOT_FOUND,
        )

    async def _one(self, key: str, request: pb.PlaceOrderRequest) -> list[pb.Order | PaymeshCallError]:
        try:
            answer = await self.shop.orders.PlaceOrder(request, metadata=with_key(key), timeout=CALL_SECONDS)
        except grpc.aio.AioRpcError as error:
            return [call_error(error)]
        return [answer.order]

    async def _many(self, items: list[tuple[str, pb.PlaceOrderRequest]]) -> list[pb.Order | PaymeshCallError]:
        try:
            answer = await self.shop.orders.BatchPlaceOrders(batch(items), timeout=CALL_SECONDS)
        except grpc.aio.AioRpcError as error:
            return [call_error(error)] * len(items)
        return [
            r.response.order if r.HasField("response") else failure_error(r.failure) for r in answer.results
        ]


async def _arm_faults(shop: Shop) -> None:
    """Have the bank misbehave. It forgets that when it is killed."""
    for kind, chance in FAULTS_PPM.items():
        fault = bank_pb2.Fault(kind=kind, probability_ppm=chance)
        await shop.faults.InjectFault(bank_pb2.InjectFaultRequest(fault=fault), wait_for_ready=True)


async def _break_everything(shop: Shop, load: Load) -> Counter[str]:
    """Kill in turn until the time is up, but everybody once; after each kill, orders must go on ending."""
    killed: Counter[str] = Counter()
    give_up_at = time.monotonic() + SECONDS
    for name in itertools.cycle(VICTIMS):
        if time.monotonic() > give_up_at and len(killed) == len(VICTIMS):
            return killed
        shop.mesh.kill(name, signal.SIGKILL)
        killed[name] += 1
        await shop.mesh.wait_ready(name)
        if name == "bank":
            await _arm_faults(shop)
        enough = len(load.answers) + PROGRESS

        async def went_on(enough: int = enough) -> bool:
            return len(load.answers) >= enough

        await until(went_on, PROGRESS_SECONDS_MAX, f"{PROGRESS} orders end after {name} was killed")
    raise AssertionError("unreachable")


async def _in_flight(shop: Shop) -> int:
    """Sagas and payments that have not come to an end."""
    sagas = await shop.rows(
        "orchestrator", "SELECT count(*) FROM sagas WHERE state IN ('RUNNING', 'COMPENSATING')"
    )
    payments = await shop.rows(
        "payment",
        "SELECT count(*) FROM payments WHERE unknown_outcome <> '' OR pending_minor > 0"
        " OR state IN ('AUTHORIZING', 'VOIDING')",
    )
    return int(sagas[0][0]) + int(payments[0][0])


async def _held(shop: Shop) -> dict[str, set[str]]:
    """The orders that each service, and the bank, holds something for."""
    held: dict[str, set[str]] = {}
    for database, table in (
        ("inventory", "reservations"),
        ("payment", "payments"),
        ("shipping", "shipments"),
    ):
        rows = await shop.rows(
            database, f"SELECT order_id FROM {table} WHERE state = ANY(%(held)s)", held=list(HELD)
        )
        assert len(rows) == len({row[0] for row in rows}), f"{database} holds something twice"
        held[database] = {row[0] for row in rows}
    of_payment = dict(await shop.rows("payment", "SELECT payment_id || '/authorize', order_id FROM payments"))
    approved = await shop.rows("bank", "SELECT key FROM authorizations WHERE state = 'APPROVED'")
    held["bank"] = {of_payment.get(key, f"unknown to payment: {key}") for (key,) in approved}
    return held


async def test_whatever_is_killed_every_order_ends_and_the_books_agree(mesh_to_break: Shop) -> None:
    shop = mesh_to_break
    load = Load(shop, [await shop.merchant(cup=100_000, gem=40) for _ in range(3)])
    await _arm_faults(shop)
    callers = asyncio.create_task(load.run())
    try:
        killed = await _break_everything(shop, load)
    finally:
        load.stopping = True
        await shop.faults.ClearFaults(bank_pb2.ClearFaultsRequest(), wait_for_ready=True)
        await callers
    assert load.wrong == []

    async def at_rest() -> bool:
        return await _in_flight(shop) == 0

    await until(at_rest, SETTLE_SECONDS, "nothing is in flight")
    assert set(load.answers) == set(load.requests)
    assert set(killed) == set(VICTIMS)

    # Every order has come to one end, and says why if it was not completed.
    sagas = {
        saga_order: (state, reason)
        for saga_order, state, reason in await shop.rows(
            "orchestrator", "SELECT order_id, state, reason::text FROM sagas"
        )
    }
    placed = {one.order_id: one for one in load.answers.values()}
    assert len(placed) == len(load.requests), "two keys share an order"
    assert set(sagas) == set(placed), "an order that nobody placed"
    for order_id, one in placed.items():
        state, reason = sagas[order_id]
        assert pb.SagaState.Name(one.state) == f"SAGA_STATE_{state}"
        assert one.state in ENDED
        assert state == "COMPLETED" or reason

    # Repeats return the same orders, and change nothing.
    before = await shop.everything()
    items = list(load.requests.items())
    for start in range(0, len(items), 500):
        await load.place(items[start : start + 500], single=False)
    assert load.wrong == []
    assert await shop.everything() == before

    # What is held is held for completed orders and for no others; what is parked, a person looks at.
    parked = {order_id for order_id, (state, _) in sagas.items() if state == "PARKED"}
    completed = {order_id for order_id, (state, _) in sagas.items() if state == "COMPLETED"}
    for name, orders in (await _held(shop)).items():
        assert orders - parked == completed, name
    report = await run_audit({name: shop.mesh.dsn(name) for name in AUDITED}, wait_seconds=10)
    assert report.settled
    assert report.ok, [f"{offence}" for line in report.lines for offence in line.first]
    states = Counter(state for state, _ in sagas.values())
    print(f"{dict(states)}; killed {dict(killed)}; {load.repeats} calls had to be repeated")
    assert states["COMPLETED"] > PROGRESS
    assert states["COMPENSATED"] > 0
