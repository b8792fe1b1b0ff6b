"""How statements are planned: sets take their keys to an index, whatever the table held when the plan was made, and
searches are planned for what is asked."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator

import pytest_asyncio

from deploy.local.stores import EmbeddedPostgres
from services.kit.db import Database, Transaction
from services.kit.statements import Row

ROWS = 20_000

LOOK_UP = "SELECT n FROM things WHERE (owner, n) IN (SELECT * FROM unnest(%(owners)s::text[], %(ns)s::int[]))"
CHANGE = """
UPDATE things SET note = new.note
FROM unnest(%(owners)s::text[], %(ns)s::int[], %(notes)s::text[]) AS new (owner, n, note)
WHERE things.owner = new.owner AND things.n = new.n
"""
SCANS = "SELECT seq_scan FROM pg_stat_xact_user_tables WHERE relname = 'things'"
MODE = "SELECT current_setting('plan_cache_mode'), current_setting('enable_seqscan')"


@pytest_asyncio.fixture
async def database(postgres: EmbeddedPostgres) -> AsyncIterator[Database]:
    """One connection, so that what is prepared stays in sight, to a database with an empty table."""
    name = f"plans_{os.urandom(4).hex()}"
    opened = Database(postgres.create_database(name), pool_size_max=2)
    await opened.open()
    await opened.transact(create)
    yield opened
    await opened.close()
    postgres.drop_database(name)


async def create(tx: Transaction) -> None:
    await tx.execute("CREATE TABLE things (owner text, n int, note text, PRIMARY KEY (owner, n))")
    await tx.execute("ANALYZE things")  # from now on the planner knows that it is empty


async def touch(tx: Transaction) -> list[Row]:
    some = [1, ROWS // 2, ROWS]
    await tx.fetch(LOOK_UP, {"owners": ["o"] * 3, "ns": some})
    await tx.execute(CHANGE, {"owners": ["o"] * 3, "ns": some, "notes": ["new"] * 3})
    return await tx.fetch(SCANS)


async def test_a_plan_made_for_an_empty_table_still_looks_rows_up_when_it_is_full(database: Database) -> None:
    async def fill_between(tx: Transaction) -> list[Row]:
        before = await touch(tx)
        await tx.execute(
            "INSERT INTO things SELECT 'o', n, '' FROM generate_series(1, %(n)s::int) AS n", {"n": ROWS}
        )
        await touch(tx)
        assert before == [(0,)]
        return await touch(tx)

    assert await database.transact(fill_between) == [(0,)]


async def test_statements_of_a_set_are_planned_once(database: Database) -> None:
    async def several_times(tx: Transaction) -> list[Row]:
        for _ in range(8):
            await touch(tx)
        return await tx.fetch(
            "SELECT generic_plans, custom_plans FROM pg_prepared_statements WHERE statement LIKE '%%UPDATE things%%'"
            " AND statement NOT LIKE '%%pg_prepared_statements%%'"
        )

    assert await database.transact(several_times) == [(8, 0)]


async def test_a_search_is_planned_for_what_is_asked_and_the_next_set_is_not(database: Database) -> None:
    async def mode(tx: Transaction) -> list[Row]:
        return await tx.fetch(MODE)

    assert await database.fetch(MODE) == [("force_custom_plan", "on")]
    assert await database.transact(mode) == [("force_generic_plan", "off")]
    assert await database.transact(mode, plan_anew=True) == [("force_custom_plan", "on")]
    assert await database.transact(mode) == [("force_generic_plan", "off")]
