"""A whole mesh as a shop and its auditor see it: placing orders, and looking at what every service holds for them."""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import grpc.aio
import psycopg
from psycopg import sql

from deploy.local import mesh as layout
from deploy.local.ports import free_base_port
from deploy.local.restarts import RestartPolicy
from deploy.local.supervisor import Mesh
from paymesh.bank.v1.bank_pb2_grpc import BankServiceStub, FaultServiceStub
from paymesh.channel import open_channel, with_key
from paymesh.errors import PaymeshCallError, call_error
from paymesh.fraud.v1.fraud_pb2_grpc import FraudServiceStub
from paymesh.inventory.v1 import inventory_pb2
from paymesh.inventory.v1.inventory_pb2_grpc import InventoryServiceStub
from paymesh.money.v1 import money_pb2
from paymesh.orchestrator.v1 import orchestrator_pb2 as pb
from paymesh.orchestrator.v1.orchestrator_pb2_grpc import OrchestratorServiceStub
from paymesh.payment.v1 import payment_pb2
from paymesh.payment.v1.payment_pb2_grpc import PaymentServiceStub
from paymesh.shipping.v1 import shipping_pb2
from paymesh.shipping.v1.shipping_pb2_grpc import ShippingServiceStub
from tests.processes import spawn

T = TypeVar("T")

DATABASES = ("orchestrator", "payment", "inventory", "shipping", "fraud", "bank")
AUDITED = (*DATABASES, "edge", "reconciler")
PRICE_MINOR = 2_500
"""Too much for the rule that looks for card testing, too little for those that look for large payments."""
CALLER = "shop"
ENDED = (pb.SAGA_STATE_COMPLETED, pb.SAGA_STATE_COMPENSATED, pb.SAGA_STATE_PARKED)

HELD = {"reservation": "RESERVED", "payment": "AUTHORIZED", "bank": "APPROVED", "shipment": "CREATED"}
"""`Shop.holdings` of a completed order."""
UNDONE_AT_SHIP = {"reservation": "RELEASED", "payment": "VOIDED", "bank": "VOIDED", "shipment": None}
"""`Shop.holdings` of an order that the carrier refused."""
DISPATCHED = {"reservation": "COMMITTED", "payment": "CAPTURED", "bank": "CAPTURED", "shipment": "DISPATCHED"}
"""… of one that has left."""
CANCELLED = {"reservation": "RELEASED", "payment": "VOIDED", "bank": "VOIDED", "shipment": "CANCELLED"}
"""… of one that was cancelled."""
NOTHING = dict.fromkeys(HELD)

_numbers = itertools.count(1)


def new_merchant() -> str:
    """A merchant nobody has used before, so that tests can share a mesh."""
    return f"mer_{uuid.uuid4().hex[:12]}"


def new_key() -> str:
    """An idempotency key nobody has used before."""
    return f"key-{uuid.uuid4().hex}"


def order(
    merchant: str,
    *,
    sku: str = "cup",
    quantity: int = 1,
    token: str = "tok_visa",
    amount_minor: int = PRICE_MINOR,
    country: str = "GB",
    reference: str = "",
) -> pb.PlaceOrderRequest:
    """A good order of one line, by a customer and card of its own, so that no velocity rule has anything to count."""
    number = next(_numbers)
    return pb.PlaceOrderRequest(
        merchant_id=merchant,
        order_reference=reference,
        lines=[pb.OrderLine(sku=sku, quantity=quantity)],
        amount=money_pb2.Money(amount_minor=amount_minor, currency="USD"),
        card=payment_pb2.Card(token=f"{token}_n{os.getpid()}-{number}"),
        customer=payment_pb2.Customer(
            customer_id=f"cus_{number}",
            email=f"buyer{number}@example.com",
            ip_address=f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}",
            billing_country="GB",
        ),
        shipping_address=shipping_pb2.Address(name="A. Buyer", city="York", country=country),
    )


def batch(items: Sequence[tuple[str, pb.PlaceOrderRequest]]) -> pb.BatchPlaceOrdersRequest:
    """(key, order) pairs as one request."""
    return pb.BatchPlaceOrdersRequest(
        items=[pb.PlaceOrderItem(idempotency_key=key, request=request) for key, request in items]
    )


class Shop:
    """Clients of every service of a running mesh, and a look into every database."""

    def __init__(self, mesh: Mesh, channels: Mapping[str, grpc.aio.Channel], spans_file: Path) -> None:
        self.mesh = mesh
        self.spans_file = spans_file
        self.channels = channels
        self._tables: dict[str, list[str]] = {}
        self._connections: dict[str, psycopg.AsyncConnection] = {}
        self.orders = OrchestratorServiceStub(channels["orchestrator"])
        self.payment = PaymentServiceStub(channels["payment"])
        self.inventory = InventoryServiceStub(channels["inventory"])
        self.shipping = ShippingServiceStub(channels["shipping"])
        self.fraud = FraudServiceStub(channels["fraud"])
        self.bank = BankServiceStub(channels["bank"])
        self.faults = FaultServiceStub(channels["bank"])

    async def merchant(self, **stock: int) -> str:
        """A new merchant with that many pieces of each product; 1,000 cups if nothing is said."""
        merchant = new_merchant()
        products = [
            inventory_pb2.CreateProductItem(
                idempotency_key=f"create/{sku}",
                request=inventory_pb2.CreateProductRequest(
                    merchant_id=merchant, sku=sku, name=sku, initial_quantity=pieces
                ),
            )
            for sku, pieces in (stock or {"cup": 1_000}).items()
        ]
        made = await self.inventory.BatchCreateProducts(
            inventory_pb2.BatchCreateProductsRequest(items=products)
        )
        assert all(result.HasField("response") for result in made.results), made
        return merchant

    async def place(
        self, request: pb.PlaceOrderRequest, key: str | None = None, *, timeout_seconds: float = 30.0
    ) -> pb.Order:
        """Place one order and wait for its end."""
        answer = await self.orders.PlaceOrder(
            request, metadata=with_key(key or new_key()), timeout=timeout_seconds
        )
        return answer.order

    async def place_all(
        self, items: Sequence[tuple[str, pb.PlaceOrderRequest]], *, timeout_seconds: float = 30.0
    ) -> list[pb.PlaceOrderResult]:
        """Place a batch."""
        answer = await self.orders.BatchPlaceOrders(batch(items), timeout=timeout_seconds)
        return list(answer.results)

    async def placed(self, merchant: str, *, quantity: int = 1, **more: Any) -> pb.Order:
        """A good order that is placed."""
        made = await self.place(order(merchant, quantity=quantity, **more))
        assert made.state == pb.SAGA_STATE_COMPLETED, made
        return made

    async def dispatch(self, placed: pb.Order, key: str | None = None) -> pb.DispatchOrderResponse:
        """Send an order out of the door."""
        request = pb.DispatchOrderRequest(merchant_id=placed.merchant_id, order_id=placed.order_id)
        return await insist(lambda k: self.orders.DispatchOrder(request, metadata=with_key(k)), key)

    async def cancel(self, placed: pb.Order, key: str | None = None) -> pb.CancelOrderResponse:
        """Cancel an order."""
        request = pb.CancelOrderRequest(merchant_id=placed.merchant_id, order_id=placed.order_id, note="test")
        return await insist(lambda k: self.orders.CancelOrder(request, metadata=with_key(k)), key)

    async def take_back(
        self, placed: pb.Order, pieces: int = 0, amount_minor: int = 0, key: str | None = None
    ) -> pb.ReturnOrderResponse:
        """Return so many pieces of an order of one line, or all that is left."""
        request = return_request(placed, pieces, amount_minor)
        return await insist(lambda k: self.orders.ReturnOrder(request, metadata=with_key(k)), key)

    async def get(self, placed: pb.Order) -> pb.GetOrderResponse:
        """An order as it stands."""
        request = pb.GetOrderRequest(merchant_id=placed.merchant_id, order_id=placed.order_id)
        return await self.orders.GetOrder(request)

    async def stock(self, merchant: str, sku: str = "cup") -> tuple[int, int]:
        """Pieces of a product: there, and set aside."""
        request = inventory_pb2.GetProductRequest(merchant_id=merchant, sku=sku)
        product = (await self.inventory.GetProduct(request)).product
        return product.on_hand_quantity, product.reserved_quantity

    async def money(self, placed: pb.Order) -> tuple[int, int]:
        """What was captured for an order and what was refunded, by payment's books."""
        query = "SELECT captured_minor, refunded_minor FROM payments WHERE merchant_id = %(m)s AND order_id = %(o)s"
        ((captured, refunded),) = await self.rows("payment", query, m=placed.merchant_id, o=placed.order_id)
        return captured, refunded

    async def story(self, placed: pb.Order) -> list[tuple[str, str, str]]:
        """(step, direction, outcome) of every attempt, oldest first."""
        request = pb.GetSagaRequest(merchant_id=placed.merchant_id, saga_id=placed.saga_id)
        saga = (await self.orders.GetSaga(request)).saga
        return [
            (
                a.step,
                pb.Direction.Name(a.direction).removeprefix("DIRECTION_"),
                pb.AttemptOutcome.Name(a.outcome).removeprefix("ATTEMPT_OUTCOME_"),
            )
            for a in saga.history
        ]

    async def reserved(self, merchant: str, sku: str = "cup") -> int:
        """How many pieces of a product are set aside."""
        request = inventory_pb2.GetProductRequest(merchant_id=merchant, sku=sku)
        return (await self.inventory.GetProduct(request)).product.reserved_quantity

    async def rows(self, database: str, query: str, **params: Any) -> list[tuple[Any, ...]]:
        """What a service's own database answers."""
        connection = await self._connection(database)
        return await (await connection.execute(query.encode(), params)).fetchall()

    async def close(self) -> None:
        """Close what `rows` has opened."""
        for connection in self._connections.values():
            await connection.close()

    async def _connection(self, database: str) -> psycopg.AsyncConnection:
        connection = self._connections.get(database)
        if connection is None or connection.closed:
            connection = await psycopg.AsyncConnection.connect(self.mesh.dsn(database), autocommit=True)
            self._connections[database] = connection
        return connection

    async def holdings(self, merchant: str, order_id: str) -> dict[str, str | None]:
        """What each service has on record for an order; None where it has nothing."""
        found: dict[str, str | None] = dict.fromkeys(("reservation", "payment", "bank", "shipment"))
        for name, database, query in (
            ("reservation", "inventory", "SELECT state FROM reservations WHERE"),
            ("payment", "payment", "SELECT state FROM payments WHERE"),
            ("shipment", "shipping", "SELECT state FROM shipments WHERE"),
        ):
            where = "merchant_id = %(merchant)s AND order_id = %(order)s"
            rows = await self.rows(database, f"{query} {where}", merchant=merchant, order=order_id)
            assert len(rows) <= 1, f"{order_id} has {len(rows)} of {name}"
            found[name] = rows[0][0] if rows else None
        payments = await self.rows(
            "payment",
            "SELECT payment_id FROM payments WHERE merchant_id = %(merchant)s AND order_id = %(order)s",
            merchant=merchant,
            order=order_id,
        )
        for (payment_id,) in payments:
            rows = await self.rows(
                "bank",
                "SELECT state FROM authorizations WHERE merchant_id = %(merchant)s AND key = %(key)s",
                merchant=merchant,
                key=f"{payment_id}/authorize",
            )
            found["bank"] = rows[0][0] if rows else None
        return found

    async def everything(self) -> dict[str, tuple[int, int]]:
        """For every table of every database, its number of rows and the sum of the transactions that wrote them: equal
        before and after means that not a row was added, changed or taken away anywhere. Aside from what changes by
        itself: leases, how far events have travelled, and what was captured, gathered for its settlement."""
        tables = await asyncio.gather(*(self._written(database) for database in DATABASES))
        return {name: written for found in tables for name, written in found.items()}

    async def _written(self, database: str) -> dict[str, tuple[int, int]]:
        connection = await self._connection(database)
        if database not in self._tables:
            cursor = await connection.execute(
                "SELECT table_name FROM information_schema.tables"
                " WHERE table_schema = 'public' AND table_type = 'BASE TABLE' AND NOT table_name = ANY (%s)",
                (
                    [
                        "instances",
                        "event_log",
                        "event_batches",
                        "inbox",
                        "settlement_items",
                        "settlement_sweep",
                    ],
                ),
            )
            self._tables[database] = [name for (name,) in await cursor.fetchall()]
        counted = sql.SQL("SELECT {}, count(*), coalesce(sum(xmin::text::bigint), 0)::bigint FROM {}")
        query = sql.SQL(" UNION ALL ").join(
            counted.format(sql.Literal(name), sql.Identifier(name)) for name in self._tables[database]
        )
        rows = await (await connection.execute(query)).fetchall()
        return {f"{database}.{name}": (count, total) for name, count, total in rows}


def return_request(placed: pb.Order, pieces: int = 0, amount_minor: int = 0) -> pb.ReturnOrderRequest:
    """For so many pieces of an order of one line, or for all that is left."""
    request = pb.ReturnOrderRequest(merchant_id=placed.merchant_id, order_id=placed.order_id)
    if pieces:
        request.lines.add(sku=placed.lines[0].sku, quantity=pieces)
        request.amount.amount_minor = amount_minor
        request.amount.currency = placed.amount.currency
    return request


async def insist(call: Callable[[str], Awaitable[T]], key: str | None = None, *, seconds: float = 60.0) -> T:
    """Make a call again and again, with one key, until its answer is final. Raises PaymeshCallError for a no."""
    key = key or new_key()
    give_up_at = time.monotonic() + seconds
    while True:
        try:
            return await call(key)
        except grpc.aio.AioRpcError as error:
            failure = call_error(error)
            if not failure.kind.worth_repeating or time.monotonic() > give_up_at:
                raise failure from error
        await asyncio.sleep(0.1)


async def refusal(call: Awaitable[Any]) -> PaymeshCallError:
    """What a call that must fail was told."""
    try:
        answer = await call
    except grpc.aio.AioRpcError as error:
        return call_error(error)
    except PaymeshCallError as error:
        return error
    raise AssertionError(f"not refused: {answer}")


async def until(
    condition: Callable[[], Awaitable[bool]], seconds: float, what: str, *, poll_seconds: float = 0.05
) -> None:
    """Wait for something that only another process knows. Fails with `what` after `seconds`."""
    give_up_at = time.monotonic() + seconds
    while not await condition():
        if time.monotonic() > give_up_at:
            raise AssertionError(f"not within {seconds:g} s: {what}")
        await asyncio.sleep(poll_seconds)


@asynccontextmanager
async def running_shop(
    *,
    environment: Mapping[str, str] | None = None,
    replicas: Mapping[str, int] | None = None,
    policy: RestartPolicy | None = None,
    traced_share: str = "0",
) -> AsyncIterator[Shop]:
    """A whole mesh on free ports, with stores and data of its own; `environment` comes on top of ours. Spans go to
    `Shop.spans_file`; the mesh itself starts a trace for `traced_share` of the orders."""
    folder = Path(tempfile.mkdtemp(prefix="paymesh-test-"))
    spans_file = folder / "spans.jsonl"
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith(("PAYMESH_", "OTEL_"))
    }
    tracing = {"PAYMESH_TRACE_FILE": str(spans_file), "OTEL_TRACES_SAMPLER_ARG": traced_share}
    mesh = Mesh(
        folder,
        base_port=free_base_port(layout.plan(replicas=replicas)),
        replicas=replicas,
        environment=inherited | tracing | dict(environment or {}),
        policy=policy,
        spawn=spawn,
        durable=False,
    )
    try:
        await mesh.start()
        async with AsyncExitStack() as open_channels:
            channels = {
                name: await open_channels.enter_async_context(open_channel(target, caller=CALLER))
                for name, target in mesh.targets.items()
            }
            shop = Shop(mesh, channels, spans_file)
            open_channels.push_async_callback(shop.close)
            yield shop
    finally:
        # That services drain is said elsewhere; here nobody waits for it.
        for instance in mesh.plan.instances:
            with suppress(KeyError, ProcessLookupError):
                mesh.kill(instance.name)
        await mesh.stop()
        shutil.rmtree(folder, ignore_errors=True)
