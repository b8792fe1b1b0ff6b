"""A history to lay hands on: payments in a database of their own, sealed, and verified.

The service's own statements write them, and its own sealer seals them, without the service around.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from audit.trail.report import TrailReport
from audit.trail.verify import verify
from bench.history import write_history
from deploy.local.postgres import EmbeddedPostgres
from services.kit.db import Database
from services.kit.migrate import migrate
from services.payment.config import PaymentConfig
from services.payment.domain import PaymentKey
from services.payment.trail import checkpoint
from services.payment.trail.folder import CheckpointFolder
from services.payment.trail.sealer import Sealer

MERCHANT = "mer_trail"


@dataclass
class Trail:
    """A payment database with its checkpoints."""

    dsn: str
    admin_dsn: str
    """The same database with an administrator's role, who may do everything."""
    database: Database
    folder: CheckpointFolder
    key: Ed25519PrivateKey

    def sealer(self, folder: Path | None = None) -> Sealer:
        """A sealer that has just started."""
        config = PaymentConfig(
            listen="127.0.0.1:1",
            database_dsn=self.dsn,
            fraud_target="none",
            bank_target="none",
            seal_settle_seconds=0.0,
        )
        return Sealer(self.database, folder or self.folder.path, self.key, config)

    async def seal(self) -> int:
        """What a process does that starts, seals and ends."""
        return await self.sealer().seal_all()

    async def write(self, payments: int) -> list[PaymentKey]:
        """Write so many payments, with four events each."""
        return await write_history(self.database, MERCHANT, payments)

    async def verify(self, dsn: str = "") -> TrailReport:
        """Verify with the right key."""
        public = self.key.public_key()
        return await verify(dsn or self.admin_dsn, self.folder.path, {checkpoint.key_id_of(public): public})

    def tamper(self, statements: str, **names: object) -> None:
        """What somebody does who may do everything."""
        with psycopg.connect(self.admin_dsn) as connection:
            connection.execute("SET session_replication_role = replica")
            connection.execute(statements.format(**names).encode())

    def rows(self, query: str, *params: object) -> list[tuple[Any, ...]]:
        """Rows of the database."""
        with psycopg.connect(self.admin_dsn) as connection:
            return connection.execute(query.encode(), params).fetchall()


@asynccontextmanager
async def open_trail(postgres: EmbeddedPostgres, folder: Path) -> AsyncIterator[Trail]:
    """A new one, empty."""
    name = f"trail_{os.urandom(4).hex()}"
    dsn = postgres.create_database(name)
    await migrate(dsn, "services.payment")
    database = Database(dsn, pool_size_max=4)
    await database.open()
    key = checkpoint.read_private_key(checkpoint.new_private_key())
    admin_dsn = postgres.admin_dsn.rpartition("/")[0] + f"/{name}"
    try:
        yield Trail(dsn, admin_dsn, database, CheckpointFolder(folder / "checkpoints"), key)
    finally:
        await database.close()
        postgres.drop_database(name)


def named(report: TrailReport) -> set[tuple[str, str, int]]:
    """(kind, id, version) of everything that is wrong."""
    return {(one.kind, one.id, one.version) for one in report.first}
