"""`paymesh audit` on the books of a real mesh: clean beside load and at rest, and each invariant, broken by hand, is
named.

One mesh places good orders, declined ones, some that are out of stock and some to a country that no carrier goes to,
while audits run beside it. Then it stops. Every test copies the databases that it breaks, so that it breaks nothing for
the next one, and runs the command in this process.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest
import typer
from psycopg import sql
from typer.testing import CliRunner, Result

from audit.cli import audit
from audit.dsns import found_dsns
from audit.invariants import INVARIANTS
from audit.report import Report
from audit.run import run_audit
from deploy.local.mesh import plan
from deploy.local.ports import free_base_port
from deploy.local.postgres import EmbeddedPostgres
from deploy.local.supervisor import Mesh
from paymesh.channel import open_channel, with_key
from paymesh.inventory.v1 import inventory_pb2, inventory_pb2_grpc
from paymesh.orchestrator.v1 import orchestrator_pb2 as pb
from paymesh.orchestrator.v1 import orchestrator_pb2_grpc
from paymesh.payment.v1 import settlement_pb2, settlement_pb2_grpc

DATABASES = ("orchestrator", "inventory", "shipping", "payment", "fraud", "bank")
MERCHANT = "mer_audit"
ORDERS = 480
KINDS = ("good", "good", "good", "declined", "out of stock", "unserved")

program = typer.Typer()
program.command()(audit)


@dataclass(frozen=True)
class Books:
    """A mesh at rest."""

    folder: Path
    server: EmbeddedPostgres
    dsns: Mapping[str, str]
    """With an administrator's role, for copies of databases belong to him."""
    beside_load: list[Report]
    """Audits that ran while orders were placed."""
    orders: Mapping[str, pb.Order]
    """One order of each kind."""


@pytest.fixture(scope="module")
def books() -> Iterator[Books]:
    # Not below pytest's own folder, which is closed to the account that PostgreSQL runs as.
    folder = Path(tempfile.mkdtemp(prefix="paymesh-audit-"))
    try:
        beside_load, orders = asyncio.run(_make_books(folder))
        with EmbeddedPostgres(folder, durable=False) as server:
            dsns = {name: _dsn(server, name) for name in DATABASES}
            _keep_pristine(server)
            yield Books(folder, server, dsns, beside_load, orders)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _keep_pristine(server: EmbeddedPostgres) -> None:
    """Copies that nobody connects to: only such a database can be copied again."""
    with psycopg.connect(server.admin_dsn, autocommit=True) as connection:
        for name in DATABASES:
            statement = sql.SQL("CREATE DATABASE {} TEMPLATE {} ALLOW_CONNECTIONS false")
            connection.execute(statement.format(sql.Identifier(f"pristine_{name}"), sql.Identifier(name)))


async def _make_books(folder: Path) -> tuple[list[Report], dict[str, pb.Order]]:
    mesh = Mesh(folder, base_port=free_base_port(plan()))
    await mesh.start()
    try:
        async with open_channel(mesh.targets["inventory"]) as channel:
            stock = inventory_pb2_grpc.InventoryServiceStub(channel)
            for sku, quantity in (("mug", 100_000), ("pot", 100_000), ("rare", 0)):
                product = inventory_pb2.CreateProductRequest(
                    merchant_id=MERCHANT, sku=sku, name=sku, initial_quantity=quantity
                )
                await stock.CreateProduct(product, metadata=with_key(sku))
        dsns = {name: mesh.dsn(name) for name in DATABASES}
        placing = asyncio.create_task(_place(mesh.targets["orchestrator"]))
        reports = []
        while not placing.done():
            reports.append(await run_audit(dsns))
        orders = await placing
        await _settle(mesh.targets["payment"])
        with found_dsns(folder, {}) as found:
            reports.append(await run_audit(found, wait_seconds=10))
        return reports, orders
    finally:
        await mesh.stop()


async def _settle(target: str) -> None:
    """Settle what was captured and given back so far, while an audit looks on later."""
    async with open_channel(target) as channel:
        stub = settlement_pb2_grpc.SettlementServiceStub(channel)
        day = datetime.now(UTC).date().isoformat()
        await stub.RunSettlement(settlement_pb2.RunSettlementRequest(merchant_id=MERCHANT, date=day))


LATER = 120
"""Of the first so many orders some are not left as they were placed."""


async def _go_on(stub: orchestrator_pb2_grpc.OrchestratorServiceStub, number: int, placed: pb.Order) -> str:
    """What becomes of a good order after it was placed, and the kind that it is then."""
    what = number % 6 if number < LATER else 0
    if what == 0:
        return "good"
    named: dict[str, Any] = {"merchant_id": MERCHANT, "order_id": placed.order_id}
    if what == 2:
        await stub.CancelOrder(pb.CancelOrderRequest(**named), metadata=with_key(f"cancel-{number}"))
        return "cancelled"
    await stub.DispatchOrder(pb.DispatchOrderRequest(**named), metadata=with_key(f"dispatch-{number}"))
    if number % 12 == 1:
        return "dispatched"
    back = pb.ReturnOrderRequest(**named)
    back.lines.add(sku="pot", quantity=1)
    back.amount.amount_minor, back.amount.currency = 300, placed.amount.currency
    await stub.ReturnOrder(back, metadata=with_key(f"return-{number}"))
    return "returned"


async def _place(target: str) -> dict[str, pb.Order]:
    found: dict[str, pb.Order] = {}
    async with open_channel(target) as channel:
        stub = orchestrator_pb2_grpc.OrchestratorServiceStub(channel)
        for first in range(0, ORDERS, 40):
            request = pb.BatchPlaceOrdersRequest()
            numbers = range(first, first + 40)
            for number in numbers:
                item = request.items.add(idempotency_key=f"order-{number}")
                item.request.CopyFrom(_order(number, KINDS[number % len(KINDS)]))
            response = await stub.BatchPlaceOrders(request, timeout=30)
            for number, result in zip(numbers, response.results, strict=True):
                assert result.WhichOneof("outcome") == "response", result
                kind, placed = KINDS[number % len(KINDS)], result.response.order
                if kind == "good":
                    kind = await _go_on(stub, number, placed)
                found.setdefault(kind, placed)
    return found


def _order(number: int, kind: str) -> pb.PlaceOrderRequest:
    request = pb.PlaceOrderRequest(merchant_id=MERCHANT)
    request.lines.add(sku="rare" if kind == "out of stock" else "mug", quantity=1 + number % 3)
    request.lines.add(sku="pot", quantity=2)
    request.amount.amount_minor = 1_000 + number
    request.amount.currency = "JPY" if number % 7 == 0 else "USD"
    request.card.token = f"tok_declined_{number}" if kind == "declined" else f"tok_visa_{number}"
    request.card.bin = "424242"
    request.customer.customer_id = f"cus_{number}"
    request.customer.email = f"buyer{number}@example.com"
    request.customer.ip_address = f"10.9.{number // 250}.{number % 250}"
    request.customer.billing_country = "US"
    request.shipping_address.name = "A. Buyer"
    request.shipping_address.country = "AQ" if kind == "unserved" else "US"
    return request


def _dsn(server: EmbeddedPostgres, database: str) -> str:
    return server.admin_dsn.rpartition("/")[0] + "/" + database


def _run(dsns: Mapping[str, str], *arguments: str) -> Result:
    environment = {f"PAYMESH_{name.upper()}_DATABASE_DSN": dsn for name, dsn in dsns.items()}
    return CliRunner().invoke(program, list(arguments), env=environment)


@contextmanager
def _broken(books: Books, breakage: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """DSNs in which some databases are copies that were changed by SQL."""
    dsns, copies = dict(books.dsns), []
    with psycopg.connect(books.server.admin_dsn, autocommit=True) as server:
        try:
            for name, statements in breakage.items():
                copy = f"broken_{name}_{os.urandom(4).hex()}"
                statement = sql.SQL("CREATE DATABASE {} TEMPLATE {}")
                server.execute(statement.format(sql.Identifier(copy), sql.Identifier(f"pristine_{name}")))
                copies.append(copy)
                dsns[name] = _dsn(books.server, copy)
                with psycopg.connect(dsns[name]) as connection:
                    # Who breaks history on purpose passes by the triggers that keep it.
                    connection.execute("SET session_replication_role = replica")
                    connection.execute(_filled_in(books, statements).encode())
            yield dsns
        finally:
            for copy in copies:
                server.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(copy)))


def _filled_in(books: Books, statements: str) -> str:
    """{good} is the good order's identifiers: {good.order_id}, {good.payment_id} and so on."""
    names: dict[str, Any] = {kind.replace(" ", "_"): order for kind, order in books.orders.items()}
    answers = {
        f"answer_of_{kind}": pb.PlaceOrderResponse(order=order).SerializeToString().hex()
        for kind, order in names.items()
    }
    return statements.format(merchant=MERCHANT, **names, **answers)


def _violated(result: Result) -> dict[str, list[str]]:
    """First offenders by name of invariant."""
    assert result.stdout, result.output
    report = json.loads(result.stdout)
    return {
        line["name"]: [f"{one['id']} {one['what']}" for one in line["first"]]
        for line in report["invariants"]
        if not line["ok"]
    }


@dataclass(frozen=True)
class Breakage:
    """What is broken by hand, by database, and which invariants then do not hold, no more and no less. `named` is part
    of what the first of them says."""

    story: str
    statements: Mapping[str, str]
    violated: set[str]
    named: str


ALL = (
    Breakage(
        "half of a journal is gone",
        {"payment": "DELETE FROM journal_entries WHERE journal_id = '{good.payment_id}/2' AND line = 2;"},
        {"journals-balance", "accounts", "payments-are-their-events"},
        "{good.payment_id}/2",
    ),
    Breakage(
        "a balanced journal was booked for nothing",
        {
            "payment": "INSERT INTO journal_entries (merchant_id, journal_id, line, account, currency, amount_minor)"
            " VALUES ('{merchant}', '{unserved.payment_id}/9', 1, 'holds', '{unserved.amount.currency}', 5),"
            " ('{merchant}', '{unserved.payment_id}/9', 2, 'holds_control', '{unserved.amount.currency}', -5);"
        },
        {"accounts", "payments-are-their-events"},
        "{unserved.amount.currency}",
    ),
    Breakage(
        "a hold was booked twice as high",
        {
            "payment": "ALTER TABLE journal_entries DISABLE TRIGGER USER;"
            "UPDATE journal_entries SET amount_minor = 2 * amount_minor WHERE journal_id = '{good.payment_id}/2';"
        },
        {"amounts-in-bounds", "accounts", "payments-are-their-events"},
        "{good.payment_id}",
    ),
    Breakage(
        "a payment's row was changed",
        {"payment": "UPDATE payments SET fraud_score_milli = 7 WHERE payment_id = '{good.payment_id}';"},
        {"payments-are-their-events"},
        "{good.payment_id} has fraud_score_milli '7'",
    ),
    Breakage(
        "an event was changed",
        {
            "payment": "UPDATE payment_events SET data = jsonb_set(data::jsonb, '{{card_token}}', '5')"
            " WHERE payment_id = '{good.payment_id}' AND version = 1;"
            "UPDATE payment_events SET data = jsonb_set(data::jsonb, '{{amount_minor}}', '5')"
            " WHERE payment_id = '{good.payment_id}' AND version = 1;"
        },
        {"payments-are-their-events"},
        "{good.payment_id} has amount",
    ),
    Breakage(
        "an event is missing",
        {"payment": "DELETE FROM payment_events WHERE payment_id = '{unserved.payment_id}' AND version = 3;"},
        {"payments-are-their-events"},
        "{unserved.payment_id} has events [1, 2, 4]",
    ),
    Breakage(
        "the last event is missing",
        {"payment": "DELETE FROM payment_events WHERE payment_id = '{unserved.payment_id}' AND version = 4;"},
        {"payments-are-their-events", "announced-once"},
        "{unserved.payment_id} has state 'VOIDED'",
    ),
    Breakage(
        "an order has two live payments",
        {
            "payment": "DROP INDEX one_live_payment_per_order;"
            "UPDATE payments SET order_id = '{good.order_id}' WHERE payment_id ="
            " (SELECT max(payment_id) FROM payments WHERE state = 'AUTHORIZED');"
        },
        {"amounts-in-bounds", "payments-are-their-events", "orders-and-their-parts"},
        "{good.order_id} is paid 2 times",
    ),
    Breakage(
        "the bank carried one key out twice",
        {
            "bank": "ALTER TABLE operations DROP CONSTRAINT one_operation_per_key;"
            "INSERT INTO operations SELECT merchant_id, 'auth_twin', kind, key, fingerprint, undoes, amount_minor,"
            " currency, card_token, reference, result, auth_code, decline_reason, created_at"
            " FROM operations WHERE key = '{good.payment_id}/authorize';"
        },
        {"one-operation-per-key", "bank-books"},
        "{good.payment_id}/authorize is the key of 2 operations",
    ),
    Breakage(
        "the bank let one hold go twice",
        {
            "bank": "DROP INDEX one_effective_void_per_authorization;"
            "INSERT INTO operations SELECT merchant_id, 'void_twin', kind, 'twin', fingerprint, undoes, amount_minor,"
            " currency, card_token, reference, result, auth_code, decline_reason, created_at"
            " FROM operations WHERE key = '{unserved.payment_id}/void/3';"
        },
        {"one-operation-per-key"},
        "was let go 2 times",
    ),
    Breakage(
        "a capture was never settled",
        {
            "payment": "DELETE FROM settlement_items WHERE payment_id = '{dispatched.payment_id}';",
        },
        {"settled-once", "bank-settlements"},
        "{dispatched.payment_id} has CAPTURE 1001 for 0",
    ),
    Breakage(
        "a settlement has an amount that was not captured",
        {
            "payment": "UPDATE settlement_items SET amount_minor = amount_minor + 1"
            " WHERE payment_id = '{dispatched.payment_id}';"
        },
        {"settled-once", "bank-settlements"},
        "and payment has not",
    ),
    Breakage(
        "a payment was never told of its settlement",
        {
            "payment": "UPDATE settlement_items SET posted_version = NULL"
            " WHERE payment_id = '{dispatched.payment_id}';"
        },
        {"settled-once"},
        "{dispatched.payment_id} was told of the settlement stl_",
    ),
    Breakage(
        "items are in a settlement that does not exist",
        {
            "payment": "UPDATE settlement_items SET settlement_id = 'stl_ghost'"
            " WHERE payment_id = '{dispatched.payment_id}';"
        },
        {"settled-once", "bank-settlements"},
        "stl_ghost has the item {dispatched.payment_id}/",
    ),
    Breakage(
        "more is carried on than settlements say",
        {"payment": "UPDATE merchant_balances SET carried_minor = carried_minor + 5 WHERE currency = 'USD';"},
        {"settled-once"},
        "USD has 5 carried on",
    ),
    Breakage(
        "a settlement's sum was changed",
        {
            "payment": "ALTER TABLE settlements DROP CONSTRAINT what_is_due_is_paid;"
            "UPDATE settlements SET captured_minor = captured_minor + 7 WHERE currency = 'USD';"
        },
        {"settled-once", "bank-settlements"},
        "and items that make it (",
    ),
    Breakage(
        "a payout was booked and not made",
        {
            "payment": "UPDATE settlements SET payout_state = 'REFUSED' WHERE currency = 'USD';",
        },
        {"settled-once", "bank-settlements", "accounts"},
        "has a payout that is REFUSED",
    ),
    Breakage(
        "the bank settled an operation twice",
        {
            "bank": "ALTER TABLE settled_operations DROP CONSTRAINT settled_operations_pkey;"
            "INSERT INTO settled_operations SELECT * FROM settled_operations WHERE operation_id ="
            " (SELECT operation_id FROM operations WHERE key = '{dispatched.payment_id}/capture/3');"
        },
        {"one-operation-per-key", "bank-settlements"},
        "was settled 2 times",
    ),
    Breakage(
        "the bank settled less than it took",
        {
            "bank": "UPDATE settled_operations SET amount_minor = amount_minor - 1 WHERE operation_id ="
            " (SELECT operation_id FROM operations WHERE key = '{dispatched.payment_id}/capture/3');"
        },
        {"bank-settlements"},
        "at the bank, which moved",
    ),
    Breakage(
        "the bank paid a merchant out behind our back",
        {
            "bank": "INSERT INTO payouts SELECT merchant_id, 'pout_ghost', 'ghost', fingerprint, 'stl_ghost',"
            " amount_minor, currency, state, reason, booked_on, value_on, created_at FROM payouts LIMIT 1;"
        },
        {"bank-settlements"},
        "stl_ghost is unknown to payment, but the bank has paid out",
    ),
    Breakage(
        "the bank never paid the merchant out",
        {"bank": "DELETE FROM payouts;"},
        {"bank-settlements"},
        "and at the bank nothing",
    ),
    Breakage(
        "the bank holds another amount",
        {
            "bank": "UPDATE operations SET amount_minor = amount_minor + 1"
            " WHERE key = '{good.payment_id}/authorize';"
        },
        {"bank-books"},
        "{good.payment_id} has amount",
    ),
    Breakage(
        "the bank never heard of an authorization",
        {"bank": "DELETE FROM operations WHERE key = '{good.payment_id}/authorize';"},
        {"bank-books"},
        "{good.payment_id} is AUTHORIZED, and its authorization at the bank is ABSENT",
    ),
    Breakage(
        "the bank holds money that no payment knows of",
        {
            "bank": "INSERT INTO operations SELECT merchant_id, 'auth_ghost', kind, 'pay_ghost/authorize', fingerprint,"
            " undoes, amount_minor, currency, card_token, 'pay_ghost', result, auth_code, decline_reason, created_at"
            " FROM operations WHERE key = '{good.payment_id}/authorize';"
        },
        {"bank-books"},
        "pay_ghost is unknown to payment, but the bank has auth_ghost",
    ),
    Breakage(
        "the bank still holds what we believe it let go",
        {"bank": "DELETE FROM operations WHERE key = '{unserved.payment_id}/void/3';"},
        {"bank-books"},
        "{unserved.payment_id} is VOIDED, and its authorization at the bank is APPROVED",
    ),
    Breakage(
        "the bank let go of what we believe it holds",
        {
            "bank": "INSERT INTO operations SELECT merchant_id, 'void_stray', 'VOID', 'stray', fingerprint,"
            " operation_id, amount_minor, currency, '', '', 'VOIDED', '', '', created_at"
            " FROM operations WHERE key = '{good.payment_id}/authorize';"
        },
        {"bank-books"},
        "{good.payment_id} is AUTHORIZED, and its authorization at the bank is VOIDED",
    ),
    Breakage(
        "fraud had declined what reached the bank",
        {"fraud": "UPDATE assessments SET decision = 'decline' WHERE payment_id = '{good.payment_id}';"},
        {"fraud-first"},
        "{good.payment_id} reached the bank",
    ),
    Breakage(
        "fraud was never asked",
        {"fraud": "DELETE FROM assessments WHERE payment_id = '{good.payment_id}';"},
        {"fraud-first"},
        "{good.payment_id} reached the bank",
    ),
    Breakage(
        "a saga has no living owner",
        {
            "orchestrator": "UPDATE sagas SET state = 'RUNNING', ended_at = NULL WHERE saga_id = '{good.saga_id}';"
            "UPDATE idempotency SET result = NULL WHERE resource_id = '{good.saga_id}';"
            "DELETE FROM outbox WHERE aggregate_id = '{good.order_id}';"
        },
        {"sagas-are-driven"},
        "{good.saga_id} is RUNNING, and its owner (epoch 1) is gone",
    ),
    Breakage(
        "a product has more reserved than its reservations say",
        {"inventory": "UPDATE products SET reserved = reserved + 1 WHERE sku = 'mug';"},
        {"stock"},
        "mug has 99960 on hand",
    ),
    Breakage(
        "a product is oversold",
        {
            "inventory": "ALTER TABLE products DROP CONSTRAINT never_oversold;"
            "UPDATE products SET on_hand = 3 WHERE sku = 'pot';"
        },
        {"stock"},
        "pot has 3 on hand",
    ),
    Breakage(
        "a completed order's shipment was called off",
        {
            "shipping": "UPDATE shipments SET state = 'CANCELLED', ended_at = now()"
            " WHERE shipment_id = '{good.shipment_id}';"
            "INSERT INTO outbox (merchant_id, aggregate_id, type, payload) VALUES"
            " ('{merchant}', '{good.shipment_id}', 'paymesh.shipping.v1.ShipmentCancelled', '');"
        },
        {"orders-and-their-parts", "dispatched-orders"},
        "{good.order_id} is COMPLETED, but of its shipment there is {good.shipment_id} CANCELLED",
    ),
    Breakage(
        "a completed order's stock is not what was ordered",
        {
            "inventory": """UPDATE reservations SET lines = '{{"mug": 1}}'
            WHERE reservation_id = '{good.reservation_id}';
            UPDATE products SET reserved = reserved - 2 WHERE sku = 'pot';"""
        },
        {"orders-and-their-parts"},
        "but {good.reservation_id} is for {{'mug': 1}}",
    ),
    Breakage(
        "a compensated order still has its stock",
        {
            "inventory": "UPDATE reservations SET state = 'RESERVED', ended_at = NULL"
            " WHERE reservation_id = '{unserved.reservation_id}';"
            "UPDATE products SET reserved = reserved + (SELECT (lines->>sku)::bigint FROM reservations"
            " WHERE reservation_id = '{unserved.reservation_id}') WHERE sku IN ('mug', 'pot');"
            "DELETE FROM outbox WHERE aggregate_id = '{unserved.reservation_id}' AND type LIKE '%Released';"
        },
        {"orders-and-their-parts"},
        "{unserved.order_id} is COMPENSATED, but {unserved.reservation_id} is RESERVED",
    ),
    Breakage(
        "a dispatched order's money was never captured",
        {
            "payment": "UPDATE payment_events SET data = jsonb_set(data::jsonb, '{{caller}}', '\"somebody\"')"
            " WHERE payment_id = '{dispatched.payment_id}' AND type = 'PaymentCaptureRequested';"
        },
        {"dispatched-orders"},
        "{dispatched.order_id} is dispatched, but of {dispatched.payment_id} 0 of",
    ),
    Breakage(
        "a dispatched order's stock is still in the house",
        {
            "inventory": "UPDATE reservations SET state = 'RESERVED', ended_at = NULL"
            " WHERE reservation_id = '{dispatched.reservation_id}';"
            "UPDATE products SET on_hand = on_hand + (SELECT (lines->>sku)::bigint FROM reservations"
            " WHERE reservation_id = '{dispatched.reservation_id}'), reserved = reserved + (SELECT"
            " (lines->>sku)::bigint FROM reservations WHERE reservation_id = '{dispatched.reservation_id}')"
            " WHERE sku IN ('mug', 'pot');"
            "DELETE FROM outbox WHERE aggregate_id = '{dispatched.reservation_id}' AND type LIKE '%Committed';"
        },
        {"dispatched-orders"},
        "{dispatched.order_id} is dispatched, but {dispatched.reservation_id} is RESERVED",
    ),
    Breakage(
        "goods left that nobody has sent",
        {
            "shipping": "UPDATE shipments SET state = 'DISPATCHED', ended_at = now()"
            " WHERE shipment_id = '{good.shipment_id}';"
            "INSERT INTO outbox (merchant_id, aggregate_id, type, payload) VALUES"
            " ('{merchant}', '{good.shipment_id}', 'paymesh.shipping.v1.ShipmentDispatched', '');"
        },
        {"dispatched-orders"},
        "{good.order_id} is not dispatched, but {good.shipment_id} is DISPATCHED",
    ),
    Breakage(
        "the orchestrator forgot a dispatch",
        {
            "orchestrator": "DELETE FROM sagas WHERE kind = 'dispatch' AND order_id = '{dispatched.order_id}';"
            "DELETE FROM idempotency WHERE key = 'dispatch-1';"
            "DELETE FROM outbox WHERE aggregate_id = '{dispatched.order_id}' AND type LIKE '%Dispatched';"
        },
        {"dispatched-orders"},
        "{dispatched.order_id} is not dispatched, but {dispatched.reservation_id} is COMMITTED",
    ),
    Breakage(
        "a cancelled order still has its stock",
        {
            "inventory": "UPDATE reservations SET state = 'RESERVED', ended_at = NULL"
            " WHERE reservation_id = '{cancelled.reservation_id}';"
            "UPDATE products SET reserved = reserved + (SELECT (lines->>sku)::bigint FROM reservations"
            " WHERE reservation_id = '{cancelled.reservation_id}') WHERE sku IN ('mug', 'pot');"
            "DELETE FROM outbox WHERE aggregate_id = '{cancelled.reservation_id}' AND type LIKE '%Released';"
        },
        {"cancelled-orders"},
        "{cancelled.order_id} is cancelled, but {cancelled.reservation_id} is RESERVED",
    ),
    Breakage(
        "a cancelled order was dispatched as well",
        {
            "orchestrator": "UPDATE sagas SET order_id = '{cancelled.order_id}'"
            " WHERE kind = 'dispatch' AND order_id = '{dispatched.order_id}';"
            "UPDATE outbox SET aggregate_id = '{cancelled.order_id}'"
            " WHERE aggregate_id = '{dispatched.order_id}' AND type LIKE '%Dispatched';"
        },
        {"cancelled-orders", "dispatched-orders"},
        "{cancelled.order_id} is cancelled, but",
    ),
    Breakage(
        "more came back than was sold",
        {
            "inventory": """UPDATE returns SET lines = '{{"pot": 3}}' WHERE order_id = '{returned.order_id}';"""
        },
        {"returned-stock", "returned-orders"},
        "{returned.reservation_id} is COMMITTED for 2 of pot, and 3 came back",
    ),
    Breakage(
        "goods came back that no return tells of",
        {
            "orchestrator": "DELETE FROM sagas WHERE kind = 'return' AND order_id = '{returned.order_id}';"
            "DELETE FROM idempotency WHERE key = 'return-7';"
            "DELETE FROM outbox WHERE aggregate_id = '{returned.order_id}' AND type LIKE '%Returned';"
        },
        {"returned-orders"},
        "{returned.order_id} has returns for 0, and 300 of {returned.payment_id} were refunded for them",
    ),
    Breakage(
        "a return was refunded in part",
        {
            "payment": "UPDATE payment_events SET data = jsonb_set(data::jsonb, '{{amount_minor}}', '299')"
            " WHERE payment_id = '{returned.payment_id}' AND type = 'PaymentRefundRequested';"
        },
        {"returned-orders"},
        "{returned.order_id} has returns for 300, and 299 of {returned.payment_id} were refunded for them",
    ),
    Breakage(
        "a return cannot be read back",
        {
            "orchestrator": "UPDATE sagas SET input = '\\xff'"
            " WHERE kind = 'return' AND order_id = '{returned.order_id}';"
        },
        {"returned-orders", "answered-once"},
        "{returned.order_id} cannot be read back by saga_",
    ),
    Breakage(
        "a dispatch was begun by nobody",
        {"orchestrator": "DELETE FROM idempotency WHERE key = 'dispatch-1';"},
        {"answered-once"},
        "(dispatch) was begun by (anonymous, dispatch-1), and its accepted requests are none",
    ),
    Breakage(
        "a cancellation was accepted and not made",
        {
            "orchestrator": "INSERT INTO idempotency (merchant_id, caller, method, key, fingerprint, resource_id)"
            " VALUES ('{merchant}', 'shop', 'CancelOrder', 'lost', '', 'saga_lost');"
        },
        {"answered-once"},
        "lost of shop (CancelOrder) was accepted for saga_lost, which does not exist",
    ),
    Breakage(
        "a return was put back and not announced",
        {"inventory": "DELETE FROM outbox WHERE type LIKE '%StockReturned';"},
        {"announced-once"},
        "was announced as paymesh.inventory.v1.StockReturned 0 times, 1 due",
    ),
    Breakage(
        "a dispatch was not announced",
        {"orchestrator": "DELETE FROM outbox WHERE aggregate_id = '{dispatched.order_id}';"},
        {"announced-once"},
        "{dispatched.order_id} was announced as paymesh.orchestrator.v1.OrderDispatched 0 times, 1 due",
    ),
    Breakage(
        "the orchestrator forgot an order",
        {
            "orchestrator": "DELETE FROM sagas WHERE saga_id = '{good.saga_id}';"
            "DELETE FROM idempotency WHERE resource_id = '{good.saga_id}';"
            "DELETE FROM outbox WHERE aggregate_id = '{good.order_id}';"
        },
        {"no-strays"},
        "{good.order_id} is unknown to the orchestrator, but {good.reservation_id} is RESERVED",
    ),
    Breakage(
        "an order was answered like another",
        {
            "orchestrator": "UPDATE idempotency SET result = '\\x00{answer_of_declined}'"
            " WHERE resource_id = '{good.saga_id}';"
        },
        {"answered-once"},
        "{good.order_id} has state COMPLETED, and was answered COMPENSATED",
    ),
    Breakage(
        "an order was placed and refused",
        {"orchestrator": "UPDATE idempotency SET result = '\\x01' WHERE resource_id = '{good.saga_id}';"},
        {"answered-once"},
        "{good.order_id} is COMPLETED, but its stored answer is",
    ),
    Breakage(
        "an answer cannot be read",
        {"orchestrator": "UPDATE idempotency SET result = '\\x00ff' WHERE resource_id = '{good.saga_id}';"},
        {"answered-once"},
        "{good.order_id} is COMPLETED, but its stored answer is Error parsing message",
    ),
    Breakage(
        "an order cannot be read back",
        {"orchestrator": "UPDATE sagas SET input = '\\xff' WHERE saga_id = '{good.saga_id}';"},
        {"answered-once"},
        "{good.order_id} cannot be read back: Error parsing message",
    ),
    Breakage(
        "two accepted requests had one effect",
        {
            "orchestrator": "INSERT INTO idempotency (merchant_id, caller, method, key, fingerprint, resource_id,"
            " result) SELECT merchant_id, caller, method, 'twin', fingerprint, resource_id, result FROM idempotency"
            " WHERE resource_id = '{good.saga_id}';"
        },
        {"answered-once"},
        "{good.order_id} was begun by",
    ),
    Breakage(
        "an accepted request had no effect",
        {
            "orchestrator": "INSERT INTO idempotency (merchant_id, caller, method, key, fingerprint, resource_id)"
            " VALUES ('{merchant}', 'shop', 'PlaceOrder', 'lost', '', 'saga_lost');"
        },
        {"answered-once"},
        "ord_lost does not exist, but the key 'lost' of shop was accepted for it",
    ),
    Breakage(
        "a participant's reservation has no request",
        {
            "inventory": "DELETE FROM idempotency WHERE resource_id = '{unserved.reservation_id}';",
        },
        {"answered-once"},
        "{unserved.order_id} has {unserved.reservation_id}, made by 0 accepted requests",
    ),
    Breakage(
        "a void was never answered",
        {"payment": "UPDATE idempotency SET result = NULL WHERE key = '{unserved.saga_id}/authorize/undo';"},
        {"answered-once"},
        "{unserved.saga_id}/authorize/undo of orchestrator (VoidPayment) was accepted and never answered",
    ),
    Breakage(
        "a release was never answered",
        {"inventory": "UPDATE idempotency SET result = NULL WHERE key = '{unserved.saga_id}/reserve/undo';"},
        {"answered-once"},
        "{unserved.saga_id}/reserve/undo of orchestrator (ReleaseStock) was accepted and never answered",
    ),
    Breakage(
        "a payment was made and refused",
        {"payment": "UPDATE idempotency SET result = '\\x01' WHERE resource_id = '{good.payment_id}';"},
        {"answered-once"},
        "{good.order_id} has {good.payment_id} (AUTHORIZED), and the answer to '{good.saga_id}/authorize' is",
    ),
    Breakage(
        "a payment was accepted and not made",
        {
            "payment": "INSERT INTO idempotency (merchant_id, caller, method, key, fingerprint, resource_id)"
            " VALUES ('{merchant}', 'shop', 'AuthorizePayment', 'lost', '', 'pay_lost');"
        },
        {"answered-once"},
        "lost of shop (AuthorizePayment) was accepted for pay_lost, which does not exist",
    ),
    Breakage(
        "a shipment was accepted and not made",
        {
            "shipping": "INSERT INTO idempotency (merchant_id, caller, method, key, fingerprint, resource_id)"
            " VALUES ('{merchant}', 'shop', 'CreateShipment', 'lost', '', 'shp_lost');"
        },
        {"answered-once"},
        "lost of shop (CreateShipment) was accepted for shp_lost, which does not exist",
    ),
    *(
        Breakage(
            f"{database} announced nothing",
            {database: f"DELETE FROM outbox WHERE aggregate_id = '{{good.{identifier}}}';"},
            {"announced-once"},
            f"{{good.{identifier}}} was announced as paymesh.{database}.v1.{event} 0 times, 1 due",
        )
        for database, identifier, event in (
            ("orchestrator", "order_id", "OrderPlaced"),
            ("payment", "payment_id", "PaymentAuthorized"),
            ("inventory", "reservation_id", "StockReserved"),
            ("shipping", "shipment_id", "ShipmentCreated"),
        )
    ),
    Breakage(
        "an end was announced twice",
        {
            "orchestrator": "INSERT INTO outbox (merchant_id, aggregate_id, type, payload)"
            " SELECT merchant_id, aggregate_id, type, payload FROM outbox WHERE aggregate_id = '{good.order_id}';"
        },
        {"announced-once"},
        "{good.order_id} was announced as paymesh.orchestrator.v1.OrderPlaced 2 times, 1 due",
    ),
)


def test_the_books_of_a_mesh_agree_while_it_works_and_at_rest(books: Books) -> None:
    assert [report.violated for report in books.beside_load] == [()] * len(books.beside_load)
    at_rest = books.beside_load[-1]
    assert at_rest.settled
    counted = {line.name: line.counted for line in at_rest.lines}
    assert counted["orders-and-their-parts"] == {"orders": ORDERS}
    assert counted["bank-books"] == {"payments": ORDERS * 5 // 6}, "what is out of stock is never paid"
    assert all(sum(line.counted.values()) > 0 for line in at_rest.lines), "nothing was judged"
    states = {kind: pb.SagaState.Name(order.state) for kind, order in books.orders.items()}
    undone = {"declined", "out of stock", "unserved"}
    assert states == {
        kind: f"SAGA_STATE_COMP{'ENSAT' if kind in undone else 'LET'}ED"
        for kind in (*KINDS, "dispatched", "cancelled", "returned")
    }
    assert counted["cancelled-orders"] == {"orders": LATER // 6}
    assert counted["returned-stock"] == {"returns": LATER // 12}


def test_work_in_flight_was_seen_and_not_judged(books: Books) -> None:
    assert any(not report.settled for report in books.beside_load)


@pytest.mark.parametrize("breakage", ALL, ids=lambda breakage: breakage.story.replace(" ", "-"))
def test_what_is_broken_is_named(books: Books, breakage: Breakage) -> None:
    with _broken(books, breakage.statements) as dsns:
        result = _run(dsns, "--json")
    violated = _violated(result)
    assert result.exit_code == 1
    assert violated.keys() == breakage.violated
    told = [one for offenders in violated.values() for one in offenders]
    assert any(_filled_in(books, breakage.named) in one for one in told), told


def test_every_invariant_is_broken_by_some_test() -> None:
    assert {name for breakage in ALL for name in breakage.violated} == {one.name for one in INVARIANTS}


def test_the_readme_lists_the_invariants() -> None:
    text = (Path(__file__).parents[2] / "audit" / "README.md").read_text(encoding="utf-8")
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    listed = [(str(one.number), f"`{one.name}`", one.sentence, one.compared) for one in INVARIANTS]
    assert [tuple(row) for row in rows if row[0].isdigit()] == listed


def test_names_are_unique_and_numbers_ascend() -> None:
    names = [one.name for one in INVARIANTS]
    assert len(set(names)) == len(names)
    assert [one.number for one in INVARIANTS] == sorted(one.number for one in INVARIANTS)


def test_what_is_under_way_is_counted_and_not_judged(books: Books) -> None:
    """A saga that runs, and a payment whose answer is lost, with everything around them as a crash would leave it."""
    breakage = {
        "orchestrator": "INSERT INTO instances (host, lease_until) VALUES ('here', now() + interval '1 hour');"
        "UPDATE sagas SET state = 'RUNNING', ended_at = NULL, owner_epoch = (SELECT max(epoch) FROM instances)"
        " WHERE saga_id = '{good.saga_id}';"
        "UPDATE idempotency SET result = NULL WHERE resource_id = '{good.saga_id}';"
        "DELETE FROM outbox WHERE aggregate_id = '{good.order_id}';",
        "payment": "UPDATE payments SET state = 'AUTHORIZING', auth_code = '', processor_reference = '', version = 1,"
        " fraud_score_milli = 0, expires_at = NULL WHERE payment_id = '{good.payment_id}';"
        "DELETE FROM payment_events WHERE payment_id = '{good.payment_id}' AND version > 1;"
        "DELETE FROM journal_entries WHERE journal_id LIKE '{good.payment_id}/%';"
        "UPDATE idempotency SET result = NULL WHERE resource_id = '{good.payment_id}';"
        "DELETE FROM outbox WHERE aggregate_id = '{good.payment_id}';",
        "shipping": "DELETE FROM shipments WHERE shipment_id = '{good.shipment_id}';"
        "DELETE FROM idempotency WHERE resource_id = '{good.shipment_id}';"
        "DELETE FROM outbox WHERE aggregate_id = '{good.shipment_id}';",
    }
    with _broken(books, breakage) as dsns:
        result = _run(dsns, "--json", "--wait", "0.3")
    report = json.loads(result.stdout)
    assert _violated(result) == {}
    assert result.exit_code == 0
    assert report["in_flight"] == {"sagas": 1, "payments": 1, "settlements": 0}


def test_a_parked_saga_is_told_and_no_offence(books: Books) -> None:
    good = books.orders["good"]
    breakage = {
        "orchestrator": "UPDATE sagas SET state = 'PARKED', reason ="
        """ '{{"step": "authorize", "code": "VOID_REFUSED", "message": ""}}' WHERE saga_id = '{good.saga_id}';"""
        "UPDATE outbox SET type = 'paymesh.orchestrator.v1.OrderParked' WHERE aggregate_id = '{good.order_id}';"
    }
    with _broken(books, breakage) as dsns:
        result = _run(dsns)
    assert result.exit_code == 0, result.stdout
    assert f"{good.saga_id} is PARKED: authorize VOID_REFUSED" in result.stdout


def test_a_saga_that_was_taken_over_in_time_is_no_offence(
    books: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The owner died a moment ago; a second later another orchestrator has the saga."""
    breakage = {
        "orchestrator": "UPDATE sagas SET state = 'RUNNING', ended_at = NULL, owner_epoch = 777"
        " WHERE saga_id = '{good.saga_id}';"
        "UPDATE idempotency SET result = NULL WHERE resource_id = '{good.saga_id}';"
        "DELETE FROM outbox WHERE aggregate_id = '{good.order_id}';"
    }
    takeover = (
        "INSERT INTO instances (host, lease_until) VALUES ('here', now() + interval '1 hour');"
        "UPDATE sagas SET owner_epoch = (SELECT max(epoch) FROM instances) WHERE owner_epoch = 777;"
    )

    with _broken(books, breakage) as dsns:

        async def pause(seconds: float) -> None:
            async with await psycopg.AsyncConnection.connect(dsns["orchestrator"]) as connection:
                await connection.execute(takeover.encode())

        monkeypatch.setattr(asyncio, "sleep", pause)
        report = asyncio.run(run_audit(dsns))
    assert report.violated == ()
    assert report.in_flight["sagas"] == 1


def test_for_people_there_is_a_line_per_invariant_and_the_first_offenders(books: Books) -> None:
    with _broken(
        books, {"bank": "UPDATE operations SET amount_minor = 1 WHERE result = 'APPROVED';"}
    ) as dsns:
        result = _run(dsns)
    lines = result.stdout.splitlines()
    assert result.exit_code == 1
    for invariant in INVARIANTS:
        (line,) = [one for one in lines if f" {invariant.name} " in one]
        assert line.split()[:2] == [
            "VIOLATED" if invariant.name == "bank-books" else "ok",
            str(invariant.number),
        ]
    # Of six orders three are good, and one was paid and let go again, with a void that now has another amount, as have
    # those that were cancelled; what was captured now exceeds what was authorized.
    offences = ORDERS // 6 * (3 + 2) + LATER // 6
    assert f"({offences:,} offences)" in result.stdout
    assert f"and {offences - 3:,} more" in result.stdout
    assert lines[-1].startswith(f"1 violated of {len(INVARIANTS)} invariants")


def test_a_stopped_mesh_is_found_by_its_folder(books: Books, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("PAYMESH_")]:
        monkeypatch.delenv(name)
    copy = books.folder.with_name(books.folder.name + "-copy")
    books.server.stop()
    try:
        shutil.copytree(books.folder, copy)
    finally:
        books.server.start()
    try:
        result = CliRunner().invoke(program, ["--data", str(copy)])
        assert result.exit_code == 0, result.output
        assert f"all hold: {len(INVARIANTS)} invariants" in result.stdout
    finally:
        shutil.rmtree(copy)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"payment": "postgresql://nobody@127.0.0.1:1/payment"}, "the database of payment does not answer"),
        ({"payment": "what is this"}, "the database of payment cannot be read"),
        ({"bank": None}, "the database of bank does not have the tables of bank"),
    ],
)
def test_what_cannot_be_read_is_one_line_and_exit_code_2(
    books: Books, changed: dict[str, Any], told: str
) -> None:
    dsns = {**books.dsns, **{name: dsn or books.dsns["payment"] for name, dsn in changed.items()}}
    result = _run(dsns)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith(f"error: {told}")
    assert result.stderr.count("\n") == 1


def test_a_folder_without_a_mesh_is_a_mistake_and_stays_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith("PAYMESH_")]:
        monkeypatch.delenv(name)
    result = CliRunner().invoke(program, ["--data", str(tmp_path / "nothing")])
    assert result.exit_code == 2
    assert "no mesh has run on" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_audit_writes_nothing(books: Books) -> None:
    """Roles that may read and nothing else are enough, and the transactions are read-only anyway."""

    async def work() -> None:
        from audit.snapshot import open_snapshots

        async with open_snapshots(books.dsns) as snapshots:
            for fetch in (snapshots["payment"].fetch, snapshots["payment"].fetch_present):
                with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
                    await fetch("DELETE FROM payments")

    asyncio.run(work())
