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
from datetime import UTC, datetime, timedelta
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
from paymesh.bank.v1 import statement_pb2, statement_pb2_grpc
from paymesh.channel import open_channel, with_key
from paymesh.cli.bank import DETAILS, FORMATS
from paymesh.inventory.v1 import inventory_pb2, inventory_pb2_grpc
from paymesh.orchestrator.v1 import orchestrator_pb2 as pb
from paymesh.orchestrator.v1 import orchestrator_pb2_grpc
from paymesh.payment.v1 import settlement_pb2, settlement_pb2_grpc
from paymesh.reconciler.v1 import reconciler_pb2, reconciler_pb2_grpc
from paymesh.reconciliation.sending import examine, reconcile
from tests.breakages import ALL, Breakage
from tests.processes import spawn

DATABASES = ("edge", "orchestrator", "inventory", "shipping", "reconciler", "payment", "fraud", "bank")
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
    mesh = Mesh(folder, base_port=free_base_port(plan()), spawn=spawn, durable=False)
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
        await _reconcile(mesh, folder)
        with psycopg.connect(mesh.dsn("edge")) as connection:
            connection.execute(WEBHOOK.encode())
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
        open_ones = settlement_pb2.ListSettlementsRequest(merchant_id=MERCHANT, open_only=True)
        while (await stub.ListSettlements(open_ones)).settlements:
            await asyncio.sleep(0.05)


async def _reconcile(mesh: Mesh, folder: Path) -> None:
    """Hold the day against the bank's statement, on which are two lines that nobody knows. One of them is corrected."""
    day = datetime.now(UTC).date()
    async with open_channel(mesh.targets["bank"]) as channel:
        bank = statement_pb2_grpc.StatementServiceStub(channel)
        unknown = statement_pb2.StatementErrorCount(kind=statement_pb2.STATEMENT_ERROR_KIND_UNKNOWN, count=2)
        await bank.InjectStatementErrors(
            statement_pb2.InjectStatementErrorsRequest(
                merchant_id=MERCHANT, date=day.isoformat(), seed=1, late_days=1, counts=[unknown]
            )
        )
        request = statement_pb2.GetStatementRequest(
            merchant_id=MERCHANT, date=day.isoformat(), format=FORMATS["csv"], detail=DETAILS["items"]
        )
        path = folder / "statement.csv"
        path.write_bytes(b"".join([answer.chunk async for answer in bank.GetStatement(request)]))
    async with open_channel(mesh.targets["reconciler"]) as channel:
        stub: Any = reconciler_pb2_grpc.ReconcilerServiceStub(channel)
        begin = reconciler_pb2.ReconcileRequest.Begin(
            merchant_id=MERCHANT, date=(day + timedelta(days=2)).isoformat(), differences_max=10
        )
        found = await reconcile(stub, begin, [examine(path)], lambda *_: None)
        case = found.differences[0].case
        named: dict[str, Any] = {"merchant_id": MERCHANT, "case_id": case.case_id}
        correction = reconciler_pb2.Correction(debit_account="cash", credit_account="suspense")
        correction.amount.amount_minor, correction.amount.currency = abs(case.at_bank.amount_minor), "USD"
        propose = reconciler_pb2.ProposeResolutionRequest(
            **named, reason="not ours", actor="ann", correction=correction
        )
        await stub.ProposeResolution(propose, metadata=with_key("propose"))
        approve = reconciler_pb2.ApproveResolutionRequest(**named, proposal=1, actor="bob")
        await stub.ApproveResolution(approve, metadata=with_key("approve"))
        state = reconciler_pb2.CASE_STATE_RESOLVING
        while state == reconciler_pb2.CASE_STATE_RESOLVING:
            state = (await stub.GetCase(reconciler_pb2.GetCaseRequest(**named))).case.state


WEBHOOK = f"""
INSERT INTO api_keys (merchant_id, key_id, hash, access)
VALUES ('{MERCHANT}', 'key_audit', sha256('secret'::bytea), 'full');
INSERT INTO webhook_endpoints (merchant_id, endpoint_id, url, events, description)
VALUES ('{MERCHANT}', 'whe_audit', 'https://shop.example/hook', '{{}}', '');
INSERT INTO webhook_secrets (merchant_id, endpoint_id, secret_id, sealed_secret, sealed_key, vault_key_id)
VALUES ('{MERCHANT}', 'whe_audit', 'sec_audit', '', '', 'v1');
INSERT INTO webhook_messages (merchant_id, message_id, type, body, occurred_at)
VALUES ('{MERCHANT}', 'evt_audit', 'payment.captured', '', now());
INSERT INTO webhook_deliveries
    (merchant_id, delivery_id, endpoint_id, message_id, state, attempts, retry_until, ended_at)
VALUES ('{MERCHANT}', 'dlv_audit', 'whe_audit', 'evt_audit', 'DELIVERED', 1, now(), now());
INSERT INTO webhook_attempts (merchant_id, delivery_id, number, ended_at, status)
VALUES ('{MERCHANT}', 'dlv_audit', 1, now(), 204);
"""
"""What the edge has of an endpoint that was told of one event."""
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


FORGET = """
    WITH gone AS (
        DELETE FROM event_batches WHERE first_position = (SELECT min(first_position) FROM event_batches)
        RETURNING outbox_ids
    )
    DELETE FROM outbox WHERE outbox_id IN (SELECT unnest(outbox_ids) FROM gone);
"""
"""What the relay does with announcements that are old enough (EVENTS_KEEP_DAYS)."""


@pytest.mark.parametrize(
    ("more", "violated"),
    [
        ("UPDATE event_batches SET numbered_at = now(); UPDATE event_log SET swept_at = now();", ()),
        # What is missing is younger than what is kept: that was not forgotten.
        (
            (
                "UPDATE event_batches SET numbered_at = now() - interval '2 days';"
                " UPDATE event_log SET swept_at = now() - interval '2 days';"
            ),
            ("0 times, 1 due",),
        ),
        # One too many is one too many, however old.
        (
            (
                "UPDATE event_batches SET numbered_at = now(); UPDATE event_log SET swept_at = now();"
                " INSERT INTO outbox (merchant_id, aggregate_id, type, payload) SELECT merchant_id, saga_id,"
                " 'paymesh.orchestrator.v1.OrderPlaced', '' FROM sagas WHERE saga_id = '{good.saga_id}';"
            ),
            ("{good.saga_id} was announced as paymesh.orchestrator.v1.OrderPlaced 1 times, 0 due",),
        ),
    ],
)
def test_what_was_forgotten_of_the_outbox_is_counted_and_not_missed(
    books: Books, more: str, violated: tuple[str, ...]
) -> None:
    databases = ("orchestrator",) if violated else ("orchestrator", "payment", "inventory", "shipping")
    with _broken(books, dict.fromkeys(databases, FORGET + more)) as dsns:
        result = _run(dsns)
    assert "outbox has forgotten the first" in result.stdout
    assert (result.exit_code, "VIOLATED" in result.stdout.upper()) == (
        (1, True) if violated else (0, False)
    ), result.stdout
    for text in violated:
        assert text.format(**books.orders) in result.stdout


def test_payments_at_another_processor_are_told_and_not_compared(books: Books) -> None:
    """A payment as it is, at a processor that is none of ours: only that fact is changed, in row, event and bank."""
    good = books.orders["good"]
    breakage = {
        "payment": "UPDATE payments SET processor = 'stripe' WHERE payment_id = '{good.payment_id}';"
        'UPDATE payment_events SET data = (data::jsonb || \'{{"processor": "stripe"}}\')::json'
        " WHERE payment_id = '{good.payment_id}' AND version = 1",
        "bank": "DELETE FROM operations WHERE key LIKE '{good.payment_id}/%'",
    }
    with _broken(books, breakage) as dsns:
        result = _run(dsns)
        report = json.loads(_run(dsns, "--json").stdout)
    assert result.exit_code == 0, result.stdout
    assert f"{good.payment_id} is at stripe, whose books are not here" in result.stdout
    assert "(1 not compared)" in result.stdout
    (line,) = (one for one in report["invariants"] if one["name"] == "bank-books")
    assert (line["ok"], line["notes"]) == (True, 1)


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
