"""What the saga buys, measured: `make bench-two-phase-commit`, or `python -m bench.two_phase_commit`.

THIS IS AN EXPERIMENT AND NO PRODUCTION PATH. No service prepares a transaction, and none ever should.

The same reserve and authorize are done twice, on two databases of a server of its own, with the same rows: once as
one distributed transaction (PREPARE TRANSACTION in both databases, a decision on record, COMMIT PREPARED in both), once
as a saga (a start on record, a commit for the stock, one for the intent, the bank, one for the outcome, an end on
record). Both ways are driven by the same code, without services between, so that nothing else is compared. Between
intent and outcome the card's bank is asked, which takes its time: within the distributed transaction its locks are held
meanwhile.

Then the coordinator of either is killed in its middle, between prepare and commit and between reserve and authorize,
and another order of the same product comes along.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psycopg
from psycopg import AsyncConnection

from bench.machine import machine_facts
from deploy.local.mesh import ROOT
from deploy.local.postgres import EmbeddedPostgres

WARNING = "an experiment, and no production path: nothing in paymesh prepares transactions"
MERCHANT = "mer_bench"
PATIENCE_SECONDS = 3.0
"""How long the order that comes after a killed coordinator waits for the product before it gives up."""
PREPARED_MAX = 256

STOCK = """
CREATE TABLE products (merchant_id text, sku text, on_hand bigint NOT NULL, reserved bigint NOT NULL,
    PRIMARY KEY (merchant_id, sku), CHECK (reserved BETWEEN 0 AND on_hand));
CREATE TABLE reservations (merchant_id text, order_id text, sku text NOT NULL, PRIMARY KEY (merchant_id, order_id));
CREATE TABLE outbox (id bigserial PRIMARY KEY, order_id text NOT NULL, type text NOT NULL);
"""
MONEY = """
CREATE TABLE payments (merchant_id text, order_id text, state text NOT NULL, amount_minor bigint NOT NULL,
    PRIMARY KEY (merchant_id, order_id)) WITH (fillfactor = 70);
CREATE TABLE payment_events (merchant_id text, order_id text, version int, type text NOT NULL,
    PRIMARY KEY (merchant_id, order_id, version));
CREATE TABLE journal_entries (merchant_id text, order_id text, line int, amount_minor bigint NOT NULL,
    PRIMARY KEY (merchant_id, order_id, line));
CREATE TABLE outbox (id bigserial PRIMARY KEY, order_id text NOT NULL, type text NOT NULL);
"""
LOG = "CREATE TABLE log (id text PRIMARY KEY, state text NOT NULL) WITH (fillfactor = 70)"
"""The coordinator's: its decisions, or the saga's start and end."""


@dataclass(frozen=True)
class Load:
    """What is done."""

    orders: int
    workers: int
    set_size: int
    products: int
    bank_ms: float


@dataclass(frozen=True)
class Speed:
    """How quickly it was done."""

    way: str
    set_size: int
    products: int
    orders_per_s: float
    p50_ms: float
    p95_ms: float


@dataclass(frozen=True)
class Blocked:
    """What a killed coordinator leaves to the next order of the same product."""

    way: str
    same_product: str
    """What became of it."""
    same_product_ms: float
    other_product_ms: float
    left_prepared: int
    """Transactions that hold locks until a person decides."""


class Server(EmbeddedPostgres):
    """One that may prepare transactions; those of meshes may not."""

    def _settings(self) -> Mapping[str, str]:
        return {**super()._settings(), "max_prepared_transactions": str(PREPARED_MAX)}


@dataclass(frozen=True)
class Databases:
    """Where the three are."""

    stock: str
    money: str
    log: str

    @classmethod
    def create(cls, server: EmbeddedPostgres, products: int) -> Databases:
        """Empty ones, with products that never run out."""
        made = cls(*(server.create_database(name) for name in ("stock", "money", "coordinator")))
        for dsn, schema in ((made.stock, STOCK), (made.money, MONEY), (made.log, LOG)):
            with psycopg.connect(dsn) as connection:
                connection.execute(schema.encode())
        with psycopg.connect(made.stock) as connection:
            connection.execute(
                "INSERT INTO products SELECT %s, 'sku_' || n, 1000000000, 0 FROM generate_series(0, %s) AS n",
                (MERCHANT, products - 1),
            )
        return made


class Worker:
    """Does one set of orders after the other, with a connection to each database."""

    def __init__(self, stock: AsyncConnection, money: AsyncConnection, log: AsyncConnection) -> None:
        self._stock, self._money, self._log = stock, money, log

    @classmethod
    async def connect(cls, databases: Databases) -> Worker:
        """A new one."""
        dsns = (databases.stock, databases.money, databases.log)
        return cls(*[await AsyncConnection.connect(dsn, autocommit=True) for dsn in dsns])

    async def close(self) -> None:
        """Close its connections."""
        for connection in (self._stock, self._money, self._log):
            await connection.close()

    async def saga(self, orders: Sequence[tuple[str, str]], bank_seconds: float) -> None:
        """(order, product)s, one commit after the other. Nothing is locked between two of them."""
        first = orders[0][0]
        await self._log.execute("INSERT INTO log VALUES (%s, 'RUNNING')", (first,))
        async with self._stock.transaction():
            await reserve(self._stock, orders)
        async with self._money.transaction():
            await intend(self._money, orders)
        await asyncio.sleep(bank_seconds)
        async with self._money.transaction():
            await conclude(self._money, orders)
        await self._log.execute("UPDATE log SET state = 'COMPLETED' WHERE id = %s", (first,))

    async def two_phase(self, orders: Sequence[tuple[str, str]], bank_seconds: float) -> None:
        """The same as one distributed transaction. The bank is asked within it: its answer decides how it ends."""
        name = await self.prepare(orders, bank_seconds)
        await self._log.execute("INSERT INTO log VALUES (%s, 'COMMIT')", (name,))
        await self._both("COMMIT PREPARED", name)

    async def prepare(self, orders: Sequence[tuple[str, str]], bank_seconds: float) -> str:
        """The first phase: everything is done, and held. Returns the name that the second phase needs."""
        name = orders[0][0]
        for connection in (self._stock, self._money):
            await connection.execute("BEGIN")
        await reserve(self._stock, orders)
        await intend(self._money, orders)
        await asyncio.sleep(bank_seconds)
        await conclude(self._money, orders)
        await self._both("PREPARE TRANSACTION", name)
        return name

    async def _both(self, what: str, name: str) -> None:
        # Names are a server's, and both databases are on one.
        await asyncio.gather(
            self._stock.execute(f"{what} '{name}/stock'".encode()),
            self._money.execute(f"{what} '{name}/money'".encode()),
        )

    async def reserve_alone(self, orders: Sequence[tuple[str, str]]) -> None:
        """What a saga has done that is killed behind its first step."""
        await self._log.execute("INSERT INTO log VALUES (%s, 'RUNNING')", (orders[0][0],))
        async with self._stock.transaction():
            await reserve(self._stock, orders)

    async def tries_to_reserve(self, order: tuple[str, str]) -> str:
        """ "reserved", or "blocked" when the product is not to be had within `PATIENCE_SECONDS`."""
        try:
            async with self._stock.transaction():
                await self._stock.execute(f"SET LOCAL lock_timeout = {int(PATIENCE_SECONDS * 1000)}".encode())
                await reserve(self._stock, [order])
        except psycopg.errors.LockNotAvailable:
            return "blocked"
        return "reserved"


async def reserve(stock: AsyncConnection, orders: Sequence[tuple[str, str]]) -> None:
    """Two rows an order, and one update a product, in the order of products: two sets wait in one direction only."""
    wanted = Counter(sku for _, sku in orders)
    skus = sorted(wanted)
    await stock.execute(
        "SELECT 1 FROM products WHERE merchant_id = %s AND sku = ANY (%s) ORDER BY sku FOR NO KEY UPDATE",
        (MERCHANT, skus),
    )
    await stock.execute(
        "UPDATE products AS p SET reserved = p.reserved + n.pieces"
        " FROM unnest(%s::text[], %s::bigint[]) AS n (sku, pieces) WHERE p.merchant_id = %s AND p.sku = n.sku",
        (skus, [wanted[sku] for sku in skus], MERCHANT),
    )
    ids = [order for order, _ in orders]
    await stock.execute(
        "INSERT INTO reservations SELECT %s, * FROM unnest(%s::text[], %s::text[])",
        (MERCHANT, ids, [sku for _, sku in orders]),
    )
    await stock.execute(
        "INSERT INTO outbox (order_id, type) SELECT id, 'StockReserved' FROM unnest(%s::text[]) AS id", (ids,)
    )


async def intend(money: AsyncConnection, orders: Sequence[tuple[str, str]]) -> None:
    """What is on record before the bank is asked."""
    ids = [order for order, _ in orders]
    await money.execute(
        "INSERT INTO payments SELECT %s, id, 'AUTHORIZING', 1000 FROM unnest(%s::text[]) AS id",
        (MERCHANT, ids),
    )
    await money.execute(
        "INSERT INTO payment_events SELECT %s, id, 1, 'PaymentInitiated' FROM unnest(%s::text[]) AS id",
        (MERCHANT, ids),
    )


async def conclude(money: AsyncConnection, orders: Sequence[tuple[str, str]]) -> None:
    """What is on record of its answer."""
    ids = [order for order, _ in orders]
    await money.execute(
        "UPDATE payments SET state = 'AUTHORIZED' WHERE merchant_id = %s AND order_id = ANY (%s)",
        (MERCHANT, ids),
    )
    await money.execute(
        "INSERT INTO payment_events SELECT %s, id, 2, 'PaymentAuthorized' FROM unnest(%s::text[]) AS id",
        (MERCHANT, ids),
    )
    await money.execute(
        "INSERT INTO journal_entries SELECT %s, id, line, minor FROM unnest(%s::text[]) AS id"
        " CROSS JOIN (VALUES (1, 1000), (2, -1000)) AS lines (line, minor)",
        (MERCHANT, ids),
    )
    await money.execute(
        "INSERT INTO outbox (order_id, type) SELECT id, 'PaymentAuthorized' FROM unnest(%s::text[]) AS id",
        (ids,),
    )


async def measure(databases: Databases, way: str, load: Load) -> Speed:
    """Drive the load one way. The rows that it has left are counted afterwards: all, or it was no measurement."""
    workers = await asyncio.gather(*(Worker.connect(databases) for _ in range(load.workers)))
    prefix = f"{way}-{load.set_size}-{load.products}"
    orders = [(f"{prefix}-{n}", f"sku_{n % load.products}") for n in range(load.orders)]
    sets = [orders[i : i + load.set_size] for i in range(0, len(orders), load.set_size)]
    todo = iter(sets)
    took: list[float] = []

    async def drive(worker: Worker) -> None:
        do: Callable[[Sequence[tuple[str, str]], float], Awaitable[None]]
        do = worker.two_phase if way == "2pc" else worker.saga
        for one in todo:
            began = time.perf_counter()
            await do(one, load.bank_ms / 1000)
            took.append(time.perf_counter() - began)

    started = time.perf_counter()
    try:
        await asyncio.gather(*(drive(worker) for worker in workers))
        seconds = time.perf_counter() - started
    finally:
        for worker in workers:
            await worker.close()
    _assert_done(databases, prefix, load.orders)
    took.sort()
    p50, p95 = (1000 * took[int(len(took) * share)] for share in (0.5, 0.95))
    return Speed(way, load.set_size, load.products, load.orders / seconds, p50, p95)


def _assert_done(databases: Databases, prefix: str, orders: int) -> None:
    counted = []
    for dsn, query in (
        (databases.stock, "SELECT count(*) FROM reservations WHERE order_id LIKE %s"),
        (databases.money, "SELECT count(*) FROM payments WHERE state = 'AUTHORIZED' AND order_id LIKE %s"),
    ):
        with psycopg.connect(dsn) as connection:
            row = connection.execute(query, (f"{prefix}-%",)).fetchone()
            counted.append(row[0] if row else 0)
    assert counted == [orders, orders], f"{prefix}: {counted} where {orders} orders were due in both"


async def block(databases: Databases, way: str) -> Blocked:
    """Kill the coordinator in the middle, and send the next order. What it has left prepared is committed at the end,
    as a person would."""
    await asyncio.to_thread(_kill_halfway, way, databases)
    worker = await Worker.connect(databases)
    try:
        began = time.perf_counter()
        other = await worker.tries_to_reserve((f"other-{way}", "sku_1"))
        other_ms = 1000 * (time.perf_counter() - began)
        assert other == "reserved"
        began = time.perf_counter()
        same = await worker.tries_to_reserve((f"same-{way}", "sku_0"))
        same_ms = 1000 * (time.perf_counter() - began)
    finally:
        await worker.close()
    return Blocked(way, same, same_ms, other_ms, _commit_prepared(databases))


def _kill_halfway(way: str, databases: Databases) -> None:
    """Start a coordinator, and kill it when it has said that it is in the middle."""
    command = [sys.executable, "-m", "bench.two_phase_commit", "--half", way, json.dumps(asdict(databases))]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as coordinator:
        assert coordinator.stdout is not None
        said = coordinator.stdout.readline()
        coordinator.kill()
    assert said == b"half done\n", said


def _commit_prepared(databases: Databases) -> int:
    """Finish what a dead coordinator left, in both databases; how much it was."""
    left = 0
    for dsn in (databases.stock, databases.money):
        with psycopg.connect(dsn, autocommit=True) as connection:
            found = connection.execute(
                "SELECT gid FROM pg_prepared_xacts WHERE database = current_database()"
            ).fetchall()
            for (gid,) in found:
                connection.execute(f"COMMIT PREPARED '{gid}'".encode())
            left += len(found)
    return left


async def half(way: str, databases: Databases) -> None:
    """Be the coordinator that will be killed."""
    worker = await Worker.connect(databases)
    orders = [(f"half-{way}", "sku_0")]
    if way == "2pc":
        await worker.prepare(orders, 0.0)
    else:
        await worker.reserve_alone(orders)
    print("half done", flush=True)
    await asyncio.Event().wait()


async def run(loads: Sequence[Load]) -> tuple[list[Speed], list[Blocked]]:
    """Measure every load both ways, then kill both coordinators, on a server in a folder that is thrown away."""
    folder = Path(tempfile.mkdtemp(prefix="paymesh-2pc-"))
    server = Server(folder)
    try:
        await asyncio.to_thread(server.start)
        databases = Databases.create(server, max(2, *(load.products for load in loads)))
        speeds = [await measure(databases, way, load) for load in loads for way in ("saga", "2pc")]
        return speeds, [await block(databases, way) for way in ("saga", "2pc")]
    finally:
        await asyncio.to_thread(server.stop)
        shutil.rmtree(folder, ignore_errors=True)


def report(speeds: Sequence[Speed], blocked: Sequence[Blocked]) -> str:
    """For people."""
    lines = [f"THIS IS {WARNING.upper()}", ""]
    lines.append(
        f"{'way':<6}{'orders a set':>14}{'products':>10}{'orders/s':>12}{'p50 ms':>10}{'p95 ms':>10}"
    )
    lines += [
        f"{s.way:<6}{s.set_size:>14,}{s.products:>10,}{s.orders_per_s:>12,.0f}{s.p50_ms:>10.1f}{s.p95_ms:>10.1f}"
        for s in speeds
    ]
    lines += ["", "the coordinator is killed in the middle; another order comes along:"]
    for b in blocked:
        lines.append(
            f"{b.way:<6}same product: {b.same_product} after {b.same_product_ms:,.0f} ms;"
            f" another product: reserved after {b.other_product_ms:,.0f} ms;"
            f" transactions left prepared: {b.left_prepared}"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.two_phase_commit",
        description=f"Measures reserve and authorize as a saga and as a two-phase commit. It is {WARNING}.",
    )
    parser.add_argument("--orders", type=int, default=4_000, help="orders of one measurement (4000)")
    parser.add_argument("--workers", type=int, default=16, help="sets under way at once (16)")
    parser.add_argument("--bank-ms", type=float, default=20.0, help="how long the card's bank takes (20)")
    parser.add_argument("--sets", default="1,50", help="orders in a set, separated by commas (1,50)")
    parser.add_argument("--products", default="1,1000", help="products that they are of (1,1000)")
    parser.add_argument("--output", type=Path, help="also write the figures to this file, as JSON")
    parser.add_argument("--half", nargs=2, metavar=("WAY", "DATABASES"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.half:
        way, databases = options.half
        asyncio.run(half(way, Databases(**json.loads(databases))))
        return 0
    numbers = [[int(n) for n in text.split(",")] for text in (options.sets, options.products)]
    if options.orders < 1 or options.workers < 1 or min(map(min, numbers)) < 1:
        parser.error("all numbers must be at least 1")
    loads = [
        # Of one product all orders wait for each other anyway, one by one: fewer tell as much.
        Load(
            max(1, options.orders // (1 if p > 1 or s > 1 else 8)),
            options.workers,
            s,
            max(p, 1),
            options.bank_ms,
        )
        for s in numbers[0]
        for p in numbers[1]
    ]
    print(f"{WARNING}\n", flush=True)
    speeds, blocked = asyncio.run(run(loads))
    print(report(speeds, blocked))
    if options.output is not None:
        figures: dict[str, Any] = {
            "warning": WARNING,
            "machine": machine_facts(Path(tempfile.gettempdir())),
            "speeds": [asdict(one) for one in speeds],
            "blocked": [asdict(one) for one in blocked],
        }
        options.output.write_text(json.dumps(figures, indent=2, default=str) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
