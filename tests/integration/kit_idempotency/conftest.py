"""A database with keys, and with a table of effects."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from importlib.resources import files

import psycopg
import pytest
import pytest_asyncio

from deploy.local.stores import EmbeddedPostgres
from services.kit.db import Database

POOL_SIZE = 12


@pytest.fixture(scope="module")
def dsn(postgres: EmbeddedPostgres) -> Iterator[str]:
    name = f"kit_{os.urandom(4).hex()}"
    made = postgres.create_database(name)
    tables = files("services.kit").joinpath("migrations/0001_idempotency_and_outbox.sql").read_text()
    with psycopg.connect(made, autocommit=True) as connection:
        connection.execute(tables.encode())
        connection.execute("CREATE TABLE effects (resource_id text PRIMARY KEY, key text, body text)")
    yield made
    postgres.drop_database(name)


@pytest_asyncio.fixture
async def database(dsn: str) -> AsyncIterator[Database]:
    opened = Database(dsn, pool_size_max=POOL_SIZE)
    await opened.open()
    try:
        await opened.transact(lambda tx: tx.execute("TRUNCATE idempotency, effects"))
        yield opened
    finally:
        await opened.close()
