"""What it costs to find out who is asking: look-ups in a real database, counted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest_asyncio
from prometheus_client import REGISTRY

from services.edge import merchants
from services.edge.domain.keys import new_api_key
from services.edge.service.gate import STRANGERS_MAX, Grants
from services.kit.db import Database
from services.kit.migrate import migrate
from tests.conftest import Services

SECRET = "a secret of the tests, long enough to be one"
FOR_LONG = 3_600.0


@pytest_asyncio.fixture
async def database(services: Services) -> AsyncIterator[Database]:
    dsn = services.dsn("edge")
    await migrate(dsn, "services.edge")
    async with asyncio.timeout(60):
        opened = Database(dsn, pool_size_max=4)
        await opened.open()
        yield opened
        await opened.close()


def _lookups() -> float:
    return sum(
        REGISTRY.get_sample_value("paymesh_edge_key_lookups_total", {"found": found}) or 0.0
        for found in ("yes", "no")
    )


async def test_a_key_that_nobody_has_is_looked_up_once_in_a_while(database: Database) -> None:
    grants, forgetful = Grants(database, SECRET, FOR_LONG), Grants(database, SECRET, 0.0)
    old = new_api_key("mer_1")
    before = _lookups()
    assert [await grants.of(old) for _ in range(100)] == [None] * 100
    assert _lookups() - before == 1
    assert [await forgetful.of(old) for _ in range(3)] == [None] * 3
    assert _lookups() - before == 4
    assert await grants.of("no key at all") is None
    assert _lookups() - before == 4


async def test_a_new_key_works_at_once_whatever_was_tried_before(database: Database) -> None:
    grants = Grants(database, SECRET, FOR_LONG)
    assert await grants.of(new_api_key("mer_1")) is None
    made = await merchants.create(database, SECRET, "mer_1")
    before = _lookups()
    for _ in range(10):
        found = await grants.of(made.api_key)
        assert found is not None
        assert found.key_id == made.grant.key_id
    assert _lookups() - before == 1
    await merchants.revoke(database, "mer_1")
    fresh = Grants(database, SECRET, FOR_LONG)  # as another process, or this one after GRANT_SECONDS
    assert await fresh.of(made.api_key) is None


async def test_whoever_tries_many_keys_fills_no_memory_and_locks_nobody_out(database: Database) -> None:
    grants = Grants(database, SECRET, FOR_LONG)
    made = await merchants.create(database, SECRET, "mer_1")
    assert await grants.of(made.api_key) is not None
    for _ in range(STRANGERS_MAX // 100 + 1):
        await asyncio.gather(*(grants.of(new_api_key("mer_1")) for _ in range(100)))
    assert len(grants._strangers) == STRANGERS_MAX
    before = _lookups()
    assert await grants.of(made.api_key) is not None
    assert _lookups() == before
