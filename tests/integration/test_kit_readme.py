"""The handler that the kit's README shows does what the text around it says."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

import psycopg
import pytest
import pytest_asyncio
from google.protobuf.wrappers_pb2 import Int64Value

from deploy.local.stores import EmbeddedPostgres
from services.kit.db import Database
from services.kit.deadline import Deadline
from services.kit.ids import new_id
from services.kit.sets import Answer, Command, Failed
from tests.processes import ROOT

KIT = ROOT / "services" / "kit"


@pytest.fixture(scope="module")
def dsn(postgres: EmbeddedPostgres) -> Iterator[str]:
    name = f"kit_{os.urandom(4).hex()}"
    made = postgres.create_database(name)
    with psycopg.connect(made, autocommit=True) as connection:
        connection.execute((KIT / "migrations" / "0001_idempotency_and_outbox.sql").read_text().encode())
        connection.execute("CREATE TABLE jars (merchant_id text PRIMARY KEY, coins bigint NOT NULL)")
    yield made
    postgres.drop_database(name)


@pytest_asyncio.fixture
async def database(dsn: str) -> AsyncIterator[Database]:
    opened = Database(dsn, pool_size_max=8)
    await opened.open()
    yield opened
    await opened.close()


@pytest.fixture(scope="module")
def take() -> Any:
    """The README's handler."""
    (code,) = re.findall(r"^```python\n(.*?)^```", (KIT / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    names: dict[str, Any] = {}
    exec(compile(code, "services/kit/README.md", "exec"), names)
    return names["take"]


def wish(merchant: str, key: str, coins: int) -> Command[int]:
    return Command(merchant, "reader", key, str(coins).encode(), new_id("coins"), coins, None)


def left(outcomes: Sequence[Answer[Int64Value] | Failed]) -> list[int | str]:
    return [o.message.value if isinstance(o, Answer) else o.error.reason for o in outcomes]


async def test_the_readmes_handler_takes_coins_once_and_never_too_many(database: Database, take: Any) -> None:
    await database.transact(lambda tx: tx.execute("INSERT INTO jars VALUES ('m1', 10), ('m2', 3)"))
    set_ = [("m1", "a", 4), ("m2", "a", 4), ("m1", "b", 7), ("m1", "c", 6), ("m1", "a", 4)]
    first = await take(database, [wish(*item) for item in set_], Deadline.after(10))
    assert left(first) == [6, "JAR_TOO_EMPTY", "JAR_TOO_EMPTY", 0, 6]
    again = await take(database, [wish(*item) for item in reversed(set_)], Deadline.after(10))
    assert left(again) == left(first)[::-1]
    assert all(outcome.replayed for outcome in again)
    assert await database.fetch("SELECT * FROM jars ORDER BY 1") == [("m1", 0), ("m2", 3)]
    assert await database.fetch("SELECT merchant_id FROM outbox") == [("m1",), ("m1",)]


async def test_the_readmes_handler_stands_a_rush(database: Database, take: Any) -> None:
    await database.transact(lambda tx: tx.execute("INSERT INTO jars VALUES ('m3', 25)"))
    calls = [take(database, [wish("m3", f"k{n % 40}", 1)], Deadline.after(10)) for n in range(80)]
    outcomes = [outcome for (outcome,) in await asyncio.gather(*calls)]
    assert sum(isinstance(o, Answer) and not o.replayed for o in outcomes) == 25
    assert await database.fetch("SELECT coins FROM jars WHERE merchant_id = 'm3'") == [(0,)]
