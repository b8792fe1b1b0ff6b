"""Bugs that other systems had, each tried here. The names say what must not happen again.

Two orchestrators share the work of one mesh, with a short lease. Waiting is for facts in the databases; where a
process is frozen (SIGSTOP), it is one that has certainly been asked by then.
"""

from __future__ import annotations

import asyncio
import json
import signal
import statistics
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import grpc
import grpc.aio
import pytest
import pytest_asyncio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from deploy.local import mesh as layout
from paymesh.bank.v1 import bank_pb2
from paymesh.channel import open_channel, with_key
from paymesh.errors import Kind, PaymeshCallError, call_error, failure_error
from paymesh.inventory.v1 import inventory_pb2
from paymesh.money.v1 import money_pb2
from paymesh.orchestrator.v1 import orchestrator_pb2 as pb
from paymesh.orchestrator.v1.orchestrator_pb2_grpc import OrchestratorServiceStub
from paymesh.payment.v1 import payment_pb2
from paymesh.shipping.v1 import shipping_pb2
from services.kit.db import Database
from services.orchestrator import domain, store
from services.orchestrator.domain import Finish, Saga, State
from tests.orders import (
    CALLER,
    HELD,
    NOTHING,
    UNDONE_AT_SHIP,
    Shop,
    batch,
    new_key,
    order,
    refusal,
    running_shop,
    until,
)

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(180)]

LEASE_SECONDS = 2
CROWD = 10_000
CROWD_SECONDS_MAX = 200.0
PROBE_SECONDS_MAX = 10.0
PROBE_MEDIAN_SECONDS_MAX = 2.0
"""Ten thousand requests that come at once have to be read before the next one. Who stood behind them until they are
answered would wait several times as long."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pair() -> AsyncIterator[Shop]:
    """A mesh with two orchestrators, `orchestrator` and `orchestrator-2`."""
    lease = {
        "PAYMESH_ORCHESTRATOR_LEASE_SECONDS": str(LEASE_SECONDS),
        "PAYMESH_ORCHESTRATOR_HEARTBEAT_SECONDS": "0.4",
    }
    async with running_shop(environment=lease, replicas={"orchestrator": 2}) as shop:
        yield shop


@pytest_asyncio.fixture(loop_scope="module")
async def each(pair: Shop) -> AsyncIterator[list[OrchestratorServiceStub]]:
    """A client for each of the two orchestrators, that does not repeat by itself."""
    addresses = [one.address for one in pair.mesh.plan.of(layout.ORCHESTRATOR)]
    channels = [open_channel(address, caller=CALLER, attempts_max=1) for address in addresses]
    yield [OrchestratorServiceStub(channel) for channel in channels]
    for channel in channels:
        await channel.close()


@contextmanager
def frozen(shop: Shop, name: str) -> Iterator[None]:
    """A process that is stopped in the midst of everything, and goes on afterwards as if nothing had been."""
    shop.mesh.kill(name, signal.SIGSTOP)
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            shop.mesh.kill(name, signal.SIGCONT)


async def _arm(shop: Shop, merchant: str, target: bank_pb2.FaultTarget.ValueType, delay_ms: int) -> None:
    """Have the bank carry out every such operation of the merchant late."""
    fault = bank_pb2.Fault(
        kind=bank_pb2.FAULT_KIND_DELAY,
        target=target,
        probability_ppm=1_000_000,
        delay_ms=delay_ms,
        merchant_id=merchant,
    )
    await shop.faults.InjectFault(bank_pb2.InjectFaultRequest(fault=fault))


async def _saga(shop: Shop, merchant: str) -> tuple[str, str, int] | None:
    """(order, state, epoch of the owner) of a merchant's only saga."""
    rows = await shop.rows(
        "orchestrator",
        "SELECT order_id, state, owner_epoch FROM sagas WHERE merchant_id = %(m)s",
        m=merchant,
    )
    assert len(rows) <= 1
    return rows[0] if rows else None


async def _begun(shop: Shop, merchant: str, state: str = "RUNNING") -> tuple[str, int]:
    """(order, owner) of a merchant's only order once it stands in `state`."""
    found: list[tuple[str, int]] = []

    async def there() -> bool:
        saga = await _saga(shop, merchant)
        if saga is not None and saga[1] == state:
            found.append((saga[0], saga[2]))
        return bool(found)

    await until(there, 15, f"the order is {state}")
    return found[0]


async def _until_owned_by_another(shop: Shop, merchant: str, owner: int) -> None:
    async def taken_over() -> bool:
        saga = await _saga(shop, merchant)
        return saga is not None and saga[2] != owner

    await until(taken_over, 20, f"the saga of epoch {owner} is taken over")


async def _until_ended(shop: Shop, merchant: str, state: str) -> None:
    async def ended() -> bool:
        saga = await _saga(shop, merchant)
        return saga is not None and saga[1] == state

    await until(ended, 40, f"the order is {state}")


async def _placed(stub: OrchestratorServiceStub, request: pb.PlaceOrderRequest, key: str) -> pb.Order:
    """Place an order and ask again, with the key, for as long as it makes sense."""
    for _ in range(100):
        try:
            return (await stub.PlaceOrder(request, metadata=with_key(key), timeout=30)).order
        except grpc.aio.AioRpcError as error:
            failure = call_error(error)
            if not failure.kind.worth_repeating:
                raise failure from error
            await asyncio.sleep(failure.retry_after.total_seconds() if failure.retry_after else 0.2)
    raise AssertionError(f"no answer for {key}")


# 3: the undo comes before the do, and then the do comes


def _reserve(merchant: str) -> inventory_pb2.ReserveStockRequest:
    lines = [inventory_pb2.StockLine(sku="cup", quantity=2)]
    return inventory_pb2.ReserveStockRequest(merchant_id=merchant, order_id="ord_1", lines=lines)


def _authorize(merchant: str) -> payment_pb2.AuthorizePaymentRequest:
    placed = order(merchant)
    return payment_pb2.AuthorizePaymentRequest(
        merchant_id=merchant,
        order_id="ord_1",
        amount=money_pb2.Money(amount_minor=2_500, currency="USD"),
        card=placed.card,
        customer=placed.customer,
    )


def _ship(merchant: str) -> shipping_pb2.CreateShipmentRequest:
    address = shipping_pb2.Address(name="A. Buyer", country="GB")
    return shipping_pb2.CreateShipmentRequest(merchant_id=merchant, order_id="ord_1", address=address)


def _do_and_undo(shop: Shop, participant: str, merchant: str) -> tuple[Any, Any, Any, Any]:
    """(method, request, undoing method, undoing request) of a participant; the do's key is "do"."""
    match participant:
        case "inventory":
            release = inventory_pb2.ReleaseStockRequest(merchant_id=merchant, reserve_key="do")
            return shop.inventory.ReserveStock, _reserve(merchant), shop.inventory.ReleaseStock, release
        case "payment":
            void = payment_pb2.VoidPaymentRequest(merchant_id=merchant, authorize_key="do")
            return shop.payment.AuthorizePayment, _authorize(merchant), shop.payment.VoidPayment, void
    cancel = shipping_pb2.CancelShipmentRequest(merchant_id=merchant, create_key="do")
    return shop.shipping.CreateShipment, _ship(merchant), shop.shipping.CancelShipment, cancel


PARTICIPANTS = pytest.mark.parametrize("participant", ["inventory", "payment", "shipping"])


@PARTICIPANTS
async def test_3_a_do_that_comes_after_its_undo_is_refused(pair: Shop, participant: str) -> None:
    merchant = await pair.merchant()
    do, request, undo, undoing = _do_and_undo(pair, participant, merchant)
    await undo(undoing, metadata=with_key("do/undo"))
    await undo(undoing, metadata=with_key("do/undo"))
    for _ in range(2):
        error = await refusal(do(request, metadata=with_key("do")))
        assert (error.kind, error.reason) == (Kind.REFUSED, "UNDONE_BEFORE_ARRIVAL")
    assert await pair.holdings(merchant, "ord_1") == NOTHING
    # The order itself is not barred: the same wish under a new key is another one.
    await do(request, metadata=with_key("another"))
    assert await pair.holdings(merchant, "ord_1") != NOTHING


@PARTICIPANTS
async def test_3_a_do_and_its_undo_at_once_leave_nothing_held(pair: Shop, participant: str) -> None:
    merchants = await asyncio.gather(*(pair.merchant() for _ in range(20)))
    for merchant in merchants:
        do, request, undo, undoing = _do_and_undo(pair, participant, merchant)
        calls: list[Any] = [
            do(request, metadata=with_key("do")),
            undo(undoing, metadata=with_key("do/undo")),
        ]
        done, undone = await asyncio.gather(*calls, return_exceptions=True)
        if isinstance(undone, grpc.aio.AioRpcError):
            # It met the do half-way and was told to come back.
            assert call_error(undone).kind.worth_repeating, undone
            await _until_undone(undo, undoing)
        if isinstance(done, grpc.aio.AioRpcError) and call_error(done).kind is not Kind.IN_PROGRESS:
            assert call_error(done).reason == "UNDONE_BEFORE_ARRIVAL"
        held = set((await pair.holdings(merchant, "ord_1")).values())
        assert held <= {None, "RELEASED", "VOIDED", "CANCELLED"}


async def _until_undone(undo: Any, undoing: Any) -> None:
    async def accepted() -> bool:
        try:
            await undo(undoing, metadata=with_key("do/undo"))
        except grpc.aio.AioRpcError as error:
            if not call_error(error).kind.worth_repeating:
                raise
            return False
        return True

    await until(accepted, 10, "the undo is accepted")


# 4: the orchestrator crashes with replies outstanding, and nobody places an order to wake the next


@pytest.mark.parametrize("outstanding", ["the first step", "a step in the middle", "an undo"])
async def test_4_a_crash_with_replies_outstanding_is_picked_up_by_itself(
    pair: Shop, each: list[OrchestratorServiceStub], outstanding: str
) -> None:
    merchant, key = await pair.merchant(), new_key()
    back = outstanding == "an undo"
    request = order(merchant, country="AQ" if back else "GB")
    if not outstanding.startswith("the first"):
        target = bank_pb2.FAULT_TARGET_VOID if back else bank_pb2.FAULT_TARGET_AUTHORIZE
        await _arm(pair, merchant, target, delay_ms=3_000)
    if outstanding == "the first step":
        with frozen(pair, "inventory"):
            placing = asyncio.create_task(_answer_of(each[0], request, key))
            order_id, owner = await _begun(pair, merchant)
            pair.mesh.kill("orchestrator")
            await _until_owned_by_another(pair, merchant, owner)
    else:
        placing = asyncio.create_task(_answer_of(each[0], request, key))
        order_id, owner = await _begun(pair, merchant, "COMPENSATING" if back else "RUNNING")
        if not back:
            await _until_asked(pair, merchant)
        pair.mesh.kill("orchestrator")
        await _until_owned_by_another(pair, merchant, owner)
    assert isinstance(await placing, PaymeshCallError), "its caller has lost the connection"
    await _until_ended(pair, merchant, "COMPENSATED" if back else "COMPLETED")
    assert await pair.holdings(merchant, order_id) == (UNDONE_AT_SHIP if back else HELD)
    await pair.mesh.wait_ready("orchestrator")
    placed = await _placed(pair.orders, request, key)
    assert placed.order_id == order_id


async def _answer_of(
    stub: OrchestratorServiceStub, request: pb.PlaceOrderRequest, key: str
) -> pb.Order | PaymeshCallError:
    try:
        return (await stub.PlaceOrder(request, metadata=with_key(key), timeout=30)).order
    except grpc.aio.AioRpcError as error:
        return call_error(error)


async def _until_asked(shop: Shop, merchant: str) -> None:
    """Until payment has been asked for the order."""

    async def asked() -> bool:
        query = "SELECT state FROM payments WHERE merchant_id = %(m)s"
        return await shop.rows("payment", query, m=merchant) == [("AUTHORIZING",)]

    await until(asked, 10, "the payment is being authorized")


# 5: what was read before the lock is taken is not what is true under it


async def test_5_an_orchestrator_that_slept_through_its_lease_writes_nothing(
    pair: Shop, each: list[OrchestratorServiceStub]
) -> None:
    merchant, key = await pair.merchant(), new_key()
    request = order(merchant, country="AQ")
    # The void comes back late, so that the saga is not over when the sleeper wakes up.
    await _arm(pair, merchant, bank_pb2.FAULT_TARGET_VOID, delay_ms=2 * LEASE_SECONDS * 1_000)
    placing = asyncio.create_task(_answer_of(each[0], request, key))
    order_id, owner = await _begun(pair, merchant, "COMPENSATING")
    with frozen(pair, "orchestrator"):
        await _until_owned_by_another(pair, merchant, owner)
    assert (await _saga(pair, merchant) or ())[1:2] == ("COMPENSATING",), "over before the sleeper woke up"
    told = await placing
    if isinstance(told, PaymeshCallError):
        assert told.kind is Kind.IN_PROGRESS
        assert told.facts["order_id"] == order_id
    await _until_ended(pair, merchant, "COMPENSATED")
    saga = await _saga(pair, merchant)
    assert saga is not None
    assert saga[2] != owner, "the sleeper has taken the saga back"
    assert await pair.holdings(merchant, order_id) == UNDONE_AT_SHIP
    announced = "SELECT type FROM outbox WHERE merchant_id = %(m)s AND aggregate_id = %(o)s"
    events = await pair.rows("orchestrator", announced, m=merchant, o=order_id)
    assert [kind.rpartition(".")[2] for (kind,) in events] == ["OrderCompensated"], "it ended once"
    # The sleeper has noticed, joined again, and is as good as new.
    placed = await _placed(each[0], request, key)
    assert (placed.order_id, placed.state) == (order_id, pb.SAGA_STATE_COMPENSATED)
    fresh = await _placed(each[0], order(merchant), new_key())
    assert fresh.state == pb.SAGA_STATE_COMPLETED
    (row,) = await pair.rows(
        "orchestrator", "SELECT owner_epoch FROM sagas WHERE order_id = %(o)s", o=fresh.order_id
    )
    assert row[0] > owner


async def test_5_a_write_under_a_lost_epoch_touches_nothing(
    pair: Shop, each: list[OrchestratorServiceStub]
) -> None:
    merchant = await pair.merchant()
    placing = asyncio.create_task(_placed(each[0], order(merchant, token="tok_slow"), new_key()))
    _, owner = await _begun(pair, merchant)
    database = Database(pair.mesh.dsn("orchestrator"), pool_size_max=4)
    await database.open()
    try:
        (mine,) = await store.list_sagas(database, merchant, [], "", 10)
        assert mine.saga.state is State.RUNNING

        async def save(saga: Saga, epoch: int) -> set[str]:
            return await database.transact(lambda tx: store.save_sagas(tx, [saga], epoch))

        turned = mine.saga._replace(position=mine.saga.position._replace(state=State.COMPENSATING))
        assert await save(domain.ended(mine.saga, Finish(State.COMPLETED), 1), owner - 1) == set()
        assert await save(turned, owner + 1) == set()
        assert await save(mine.saga, owner) == {mine.saga.saga_id}, "only the owner's write counts"
    finally:
        await database.close()
    assert (await placing).state == pb.SAGA_STATE_COMPLETED


# 7: one key, many times at once


async def test_7_a_key_50_times_at_once_at_two_orchestrators_has_one_effect(
    pair: Shop, each: list[OrchestratorServiceStub]
) -> None:
    merchant, key = await pair.merchant(), new_key()
    request = order(merchant)
    placed = await asyncio.gather(*(_placed(each[n % 2], request, key) for n in range(50)))
    assert all(one == placed[0] for one in placed)
    assert placed[0].state == pb.SAGA_STATE_COMPLETED
    assert await pair.holdings(merchant, placed[0].order_id) == HELD
    for database, table in (("orchestrator", "sagas"), ("bank", "operations"), ("shipping", "shipments")):
        counted = f"SELECT count(*) FROM {table} WHERE merchant_id = %(m)s"
        assert await pair.rows(database, counted, m=merchant) == [(1,)], table


async def test_7_of_two_bodies_under_one_key_at_once_the_loser_commits_nothing(
    pair: Shop, each: list[OrchestratorServiceStub]
) -> None:
    merchant = await pair.merchant()
    for _ in range(10):
        key = new_key()
        outcomes = await asyncio.gather(
            _placed(each[0], order(merchant), key),
            _placed(each[1], order(merchant), key),
            return_exceptions=True,
        )
        (refused,) = [o for o in outcomes if isinstance(o, PaymeshCallError)]
        assert refused.reason == "IDEMPOTENCY_KEY_REUSED"
    for database, table in (("orchestrator", "sagas"), ("inventory", "reservations"), ("bank", "operations")):
        counted = f"SELECT count(*) FROM {table} WHERE merchant_id = %(m)s"
        assert await pair.rows(database, counted, m=merchant) == [(10,)], table


async def test_7_a_key_twice_in_one_batch_has_one_effect_and_two_equal_answers(pair: Shop) -> None:
    merchant, key = await pair.merchant(), new_key()
    request = order(merchant)
    answer = await pair.orders.BatchPlaceOrders(
        batch([(key, request), (key, request), (key, order(merchant))])
    )
    assert answer.results[0].response == answer.results[1].response
    assert [r.replayed for r in answer.results[:2]] == [False, True]
    assert failure_error(answer.results[2].failure).reason == "IDEMPOTENCY_KEY_REUSED"
    counted = "SELECT count(*) FROM sagas WHERE merchant_id = %(m)s"
    assert await pair.rows("orchestrator", counted, m=merchant) == [(1,)]


# 17: ten thousand who wait do not keep the others out


async def test_17_ten_thousand_waiting_callers_do_not_starve_the_rest(pair: Shop) -> None:
    merchant = await pair.merchant(cup=2 * CROWD)
    known = await _placed(pair.orders, order(merchant), new_key())
    target = pair.mesh.targets["orchestrator"]
    crowd = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.chaos.crowd",
        target,
        merchant,
        str(CROWD),
        cwd=layout.ROOT,
        stdout=asyncio.subprocess.PIPE,
    )
    waiting = asyncio.create_task(crowd.communicate())
    taken: list[float] = []
    give_up_at = time.monotonic() + CROWD_SECONDS_MAX
    async with open_channel(target, caller="probe", attempts_max=1) as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)
        orders = OrchestratorServiceStub(channel)
        while not waiting.done():
            assert time.monotonic() < give_up_at, "the crowd is still waiting"
            started = time.monotonic()
            serving = await health.Check(health_pb2.HealthCheckRequest(), timeout=PROBE_SECONDS_MAX)
            assert serving.status == health_pb2.HealthCheckResponse.SERVING
            taken.append(time.monotonic() - started)
            started = time.monotonic()
            request = pb.GetOrderRequest(merchant_id=merchant, order_id=known.order_id)
            found = await orders.GetOrder(request, timeout=PROBE_SECONDS_MAX)
            assert found.order.order_id == known.order_id
            taken.append(time.monotonic() - started)
            await asyncio.wait((waiting,), timeout=0.25)
    output, _ = await waiting
    assert crowd.returncode == 0
    told = json.loads(output)
    print(f"{told}; slowest of {len(taken)} probes {max(taken) * 1000:.0f} ms")
    assert len(taken) > 6, "the crowd was gone before anybody looked"
    assert statistics.median(taken) < PROBE_MEDIAN_SECONDS_MAX
    assert told["SAGA_STATE_COMPLETED"] == CROWD, "everybody was served in the end"
    assert set(told) <= {
        "SAGA_STATE_COMPLETED",
        "first answer",
        "later answer",
        "first RESOURCE_EXHAUSTED",
        "later RESOURCE_EXHAUSTED",
        "first ABORTED",
        "later ABORTED",
    }
    for database, table, state in (
        ("orchestrator", "sagas", "COMPLETED"),
        ("inventory", "reservations", "RESERVED"),
        ("payment", "payments", "AUTHORIZED"),
        ("bank", "authorizations", "APPROVED"),
        ("shipping", "shipments", "CREATED"),
    ):
        counted = f"SELECT state, count(*) FROM {table} WHERE merchant_id = %(m)s GROUP BY state"
        assert await pair.rows(database, counted, m=merchant) == [(state, CROWD + 1)], table
