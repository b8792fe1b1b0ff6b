"""The mesh under test: fresh, in a folder of its own, on ports nobody uses, with products to sell."""

from __future__ import annotations

import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import psycopg

from bench.floor import TABLE
from bench.machine import filesystem_of
from bench.movements import Made
from bench.orders import SKUS
from bench.phases import Phase, What
from deploy.local.mesh import EDGE, SERVICES, plan, secret_name
from deploy.local.ports import free_base_port
from deploy.local.stores import POSTGRES_VARIABLE, VALKEY_VARIABLE, EmbeddedPostgres
from deploy.local.supervisor import Mesh
from paymesh.channel import open_channel
from paymesh.errors import failure_error, typed_errors
from paymesh.inventory.v1 import inventory_pb2, inventory_pb2_grpc
from services.edge.merchants import create as create_key
from services.kit.db import Database
from services.payment.store.mark import MARK

IN_MEMORY = frozenset({"tmpfs", "ramfs"})
FOLDERS = (tempfile.gettempdir(), "/var/tmp")  # noqa: S108 - only ever a new folder in it, by mkdtemp
STOCK_QUANTITY = 1_000_000_000
"""Nothing sells out: refused orders would measure something else."""
PRODUCTS_PER_CALL = 1_000
STOCK_SECONDS_MAX = 60.0
SECRET_WORDS = ("DSN", "KEY", "PASSWORD", "SECRET", "TOKEN", "URL")
TRACING_VARIABLES = ("OTEL_EXPORTER_OTLP_ENDPOINT", "PAYMESH_TRACE_FILE", "OTEL_TRACES_SAMPLER_ARG")
WITHOUT_HISTORY = "PAYMESH_PAYMENT_BENCH_WITHOUT_HISTORY"

_COUNTS = {
    What.ORDERS: ("orchestrator", "sagas WHERE state = 'COMPLETED' AND"),
    What.CHOREOGRAPHED_ORDERS: ("orchestrator", "sagas WHERE state = 'COMPLETED' AND"),
    What.AUTHORIZATIONS: ("payment", "payments WHERE state = 'AUTHORIZED' AND"),
    What.CAPTURES: ("payment", "payments WHERE state = 'CAPTURED' AND"),
    What.REFUNDS: ("payment", "payments WHERE state = 'REFUNDED' AND"),
    What.HTTP_PAYMENTS: ("payment", "payments WHERE state = 'AUTHORIZED' AND"),
}
_LEAVE_NOTHING = (What.CALLS, What.HTTP_READS)


class Subject:
    """A mesh and what the bench needs of it."""

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh
        self.keep_logs = True
        """Of use when something went wrong; whoever finds that all is well says so."""
        self._floor_dsn = ""

    @property
    def dsns(self) -> dict[str, str]:
        """Of every service."""
        return {service.name: self.mesh.dsn(service.name) for service in self.mesh.plan.services}

    def target(self, what: What) -> str:
        """Where such a phase sends: an address, or a DSN."""
        if what is What.ROWS:
            return self.floor_dsn()
        if what is What.CALLS:
            return self.mesh.targets["orchestrator"]
        if what in (What.HTTP_PAYMENTS, What.HTTP_READS):
            return self.mesh.targets["edge"]
        return self.mesh.targets[_COUNTS[what][0]]

    def floor_dsn(self) -> str:
        """A database on the same server that belongs to no service."""
        server = self.mesh.stores.embedded_postgres
        assert server is not None  # the environment of the mesh names no other
        self._floor_dsn = self._floor_dsn or server.create_database("bench_floor")
        return self._floor_dsn

    async def count(self, phase: Phase, merchants: Iterable[str]) -> int | None:
        """Items of these merchants that the database has in the state that counts; None for a phase that leaves
        nothing in one."""
        if phase.what in _LEAVE_NOTHING:
            return None
        if phase.what is What.ROWS:
            dsn, rows = self.floor_dsn(), f"{TABLE} WHERE"
        else:
            service, rows = _COUNTS[phase.what]
            dsn = self.mesh.dsn(service)
        query = f"SELECT count(*) FROM {rows} merchant_id = ANY(%(merchants)s)"  # noqa: S608 - constants
        async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
            cursor = await connection.execute(query.encode(), {"merchants": list(merchants)})
            row = await cursor.fetchone()
            if phase.what is What.ROWS:
                # Nothing of it shall be vacuumed while the next phase is measured.
                await connection.execute(f"DROP TABLE {TABLE}".encode())
        return int(row[0]) if row else 0

    async def count_entries(self) -> int:
        """Ledger entries that payment has."""
        async with await psycopg.AsyncConnection.connect(self.mesh.dsn("payment")) as connection:
            row = await (await connection.execute("SELECT count(*) FROM journal_entries")).fetchone()
            return int(row[0]) if row else 0

    async def made(self, what: What, merchants: Iterable[str]) -> list[Made]:
        """The payments of merchants that a phase has brought to its end. One that ends by the clock leaves others."""
        service, rows = _COUNTS[what]
        query = (
            f"SELECT merchant_id, payment_id FROM {rows} merchant_id = ANY(%(merchants)s)"  # noqa: S608 - constants
            " ORDER BY payment_id"
        )
        dsn = self.mesh.dsn(service)
        async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
            cursor = await connection.execute(query.encode(), {"merchants": list(merchants)})
            return [Made(*row) for row in await cursor.fetchall()]

    async def api_keys(self, merchants: Iterable[str]) -> dict[str, str]:
        """A new key for each merchant, by merchant."""
        secret = self.mesh.folder.password(secret_name(EDGE, "KEY_SECRET"))
        database = Database(self.mesh.dsn(EDGE.name), pool_size_max=2)
        await database.open()
        try:
            return {one: (await create_key(database, secret, one)).api_key for one in merchants}
        finally:
            await database.close()

    async def stock(self, merchants: Iterable[str]) -> None:
        """Give every merchant the whole catalogue, with more than anybody can buy.

        Raises PaymeshCallError when inventory does not take it.
        """
        requests = [
            inventory_pb2.CreateProductRequest(
                merchant_id=merchant, sku=sku, name=f"Product {sku}", initial_quantity=STOCK_QUANTITY
            )
            for merchant in merchants
            for sku in SKUS
        ]
        target = self.mesh.targets["inventory"]
        async with open_channel(target, caller="bench", deadline_seconds=STOCK_SECONDS_MAX) as channel:
            stub = inventory_pb2_grpc.InventoryServiceStub(channel)
            for first in range(0, len(requests), PRODUCTS_PER_CALL):
                batch = inventory_pb2.BatchCreateProductsRequest()
                for request in requests[first : first + PRODUCTS_PER_CALL]:
                    key = f"{request.merchant_id}/{request.sku}"
                    batch.items.add(idempotency_key=key, request=request)
                with typed_errors():
                    answer = await stub.BatchCreateProducts(batch)
                for result in answer.results:
                    if result.HasField("failure"):
                        raise failure_error(result.failure)

    def restarted(self) -> dict[str, int]:
        """Processes that ended under the load, by name, with how often."""
        return {name: keeper.restarts for name, keeper in self.mesh.keepers.items() if keeper.restarts}


@asynccontextmanager
async def fresh_subject(
    environment: Mapping[str, str], *, keep: bool = False, without_history: bool = False
) -> AsyncIterator[Subject]:
    """A mesh that serves and is stopped in the end. Its folder is removed then, unless `keep`; its logs stay where they
    are if something went wrong. One without history has no ledger and no chain of hashes."""
    folder = Path(tempfile.mkdtemp(prefix="paymesh-bench-", dir=folder_on_disk()))
    if without_history:
        environment = {**environment, WITHOUT_HISTORY: mark_database(folder)}
    mesh = Mesh(folder, base_port=free_base_port(plan(SERVICES)), environment=environment)
    subject = Subject(mesh)
    try:
        await mesh.start()
        yield subject
    finally:
        await mesh.stop()
        if keep or subject.keep_logs:
            print(f"kept: {folder if keep else mesh.folder.logs}", file=sys.stderr)
        if not keep:
            remove(folder, spare="logs" if subject.keep_logs else "")


def mark_database(folder: Path) -> str:
    """Make payment's database, and write into its description that it is to be thrown away. Returns the secret that
    allows payment to go without history there."""
    secret = secrets.token_hex(16)
    with EmbeddedPostgres(folder) as server:
        server.create_apart("payment")
        with psycopg.connect(server.admin_dsn, autocommit=True) as connection:
            connection.execute(f"COMMENT ON DATABASE payment IS '{MARK}{secret}'".encode())
    return secret


def remove(folder: Path, *, spare: str = "") -> None:
    """Remove a folder with all that is in it, or all but one of its parts."""
    for part in folder.iterdir():
        if part.name == spare:
            continue
        if part.is_dir():
            shutil.rmtree(part, ignore_errors=True)
        else:
            part.unlink(missing_ok=True)
    if not spare:
        shutil.rmtree(folder, ignore_errors=True)


def folder_on_disk() -> str:
    """Where temporary folders go, but not into memory, where a commit costs nothing."""
    return next((folder for folder in FOLDERS if filesystem_of(Path(folder)) not in IN_MEMORY), FOLDERS[0])


def environment_of_subject(
    inherited: Mapping[str, str] = os.environ, *, trace_endpoint: str = "", trace_ratio: float = 0.0
) -> dict[str, str]:
    """Ours, so that a service's knobs can be turned, but with stores of its own and with tracing as asked for."""
    stores = {POSTGRES_VARIABLE, VALKEY_VARIABLE, "PAYMESH_FRAUD_VALKEY_URL"}
    stores.add(WITHOUT_HISTORY)
    stores |= {f"PAYMESH_{service.name.upper()}_DATABASE_DSN" for service in SERVICES}
    environment = {
        name: value
        for name, value in inherited.items()
        if name not in stores and name not in TRACING_VARIABLES
    }
    if trace_endpoint:
        environment["OTEL_EXPORTER_OTLP_ENDPOINT"] = trace_endpoint
        environment["OTEL_TRACES_SAMPLER_ARG"] = str(trace_ratio)
    return environment


def knobs(environment: Mapping[str, str]) -> dict[str, str]:
    """The services' settings that were not left at their defaults, without what may be secret."""
    prefixes = tuple(f"PAYMESH_{service.name.upper()}_" for service in SERVICES)
    return {
        name: value
        for name, value in sorted(environment.items())
        if name.startswith(prefixes) and not any(word in name for word in SECRET_WORDS)
    }
