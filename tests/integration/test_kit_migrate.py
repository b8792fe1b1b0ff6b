"""Migrations on a real, empty PostgreSQL: applied once and in order, whoever starts at the same time; all or nothing;
and never a second time with another text."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from deploy.local.stores import EmbeddedPostgres
from services.kit.migrate import MigrationEdited, migrate

KIT = [
    "services.kit/0001_idempotency_and_outbox.sql",
    "services.kit/0002_event_log_and_inbox.sql",
    "services.kit/0003_relays_that_stand_by.sql",
]
KIT_TABLES = {"idempotency", "outbox", "event_log", "event_batches", "inbox", "events_set_aside"}


class Package:
    """An importable package with migrations that a test writes."""

    def __init__(self, folder: Path) -> None:
        self.name = f"shop_{os.urandom(4).hex()}"
        self._folder = folder / self.name / "migrations"
        self._folder.mkdir(parents=True)
        (self._folder.parent / "__init__.py").touch()

    def write(self, name: str, text: str) -> str:
        """Write a migration; returns the name it goes by."""
        (self._folder / name).write_text(text)
        return f"{self.name}/{name}"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Package:
    monkeypatch.syspath_prepend(tmp_path)
    return Package(tmp_path)


@pytest.fixture
def dsn(postgres: EmbeddedPostgres) -> Iterator[str]:
    name = f"kit_{os.urandom(4).hex()}"
    yield postgres.create_database(name)
    postgres.drop_database(name)


def tables(dsn: str) -> set[str]:
    """The tables that there are."""
    with psycopg.connect(dsn) as connection:
        rows = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
    return {name for (name,) in rows}


async def test_kits_tables_come_first_and_then_the_services_in_order(dsn: str, package: Package) -> None:
    second = package.write(
        "0002_more.sql", "ALTER TABLE orders ADD COLUMN note text; INSERT INTO orders VALUES ('50%')"
    )
    first = package.write("0001_orders.sql", "CREATE TABLE orders (order_id text PRIMARY KEY);")
    package.write("README.md", "no migration")
    assert await migrate(dsn, package.name) == [*KIT, first, second]
    assert tables(dsn) == {"schema_migrations", *KIT_TABLES, "orders"}


async def test_a_second_run_finds_nothing_to_do(dsn: str, package: Package) -> None:
    package.write("0001_orders.sql", "CREATE TABLE orders (order_id text)")
    await migrate(dsn, package.name)
    assert await migrate(dsn, package.name) == []


async def test_a_later_release_applies_what_is_new(dsn: str, package: Package) -> None:
    package.write("0001_orders.sql", "CREATE TABLE orders (order_id text)")
    await migrate(dsn, package.name)
    added = package.write("0002_items.sql", "CREATE TABLE items (item_id text)")
    assert await migrate(dsn, package.name) == [added]


async def test_of_many_that_start_at_once_one_does_the_work(dsn: str, package: Package) -> None:
    # Not repeatable, and slow enough that the others are there before it has ended.
    first = package.write("0001_orders.sql", "CREATE TABLE orders (order_id text); SELECT pg_sleep(0.2)")
    second = package.write("0002_items.sql", "CREATE TABLE items (item_id text)")
    applied = await asyncio.gather(*(migrate(dsn, package.name) for _ in range(10)))
    assert sorted(applied, key=len) == [[]] * 9 + [[*KIT, first, second]]


async def test_an_edited_migration_is_refused_and_nothing_else_is_applied(dsn: str, package: Package) -> None:
    name = package.write("0001_orders.sql", "CREATE TABLE orders (order_id text)")
    await migrate(dsn, package.name)
    package.write("0001_orders.sql", "CREATE TABLE orders (order_id text, note text)")
    package.write("0000_earlier.sql", "CREATE TABLE earlier (id text)")
    package.write("0002_items.sql", "CREATE TABLE items (item_id text)")
    with pytest.raises(MigrationEdited, match=name):
        await migrate(dsn, package.name)
    assert tables(dsn) == {"schema_migrations", *KIT_TABLES, "orders"}


async def test_a_migration_that_fails_leaves_nothing_behind(dsn: str, package: Package) -> None:
    first = package.write("0001_orders.sql", "CREATE TABLE orders (order_id text)")
    package.write("0002_items.sql", "CREATE TABLE items (item_id text); SELECT 1/0")
    with pytest.raises(psycopg.errors.DivisionByZero):
        await migrate(dsn, package.name)
    assert tables(dsn) == {"schema_migrations"}
    second = package.write("0002_items.sql", "CREATE TABLE items (item_id text)")
    assert await migrate(dsn, package.name) == [*KIT, first, second]


async def test_a_process_that_is_killed_while_migrating_leaves_nothing_behind(
    dsn: str, package: Package
) -> None:
    first = package.write("0001_orders.sql", "CREATE TABLE orders (order_id text)")
    second = package.write("0002_slow.sql", "CREATE TABLE items (item_id text); SELECT pg_sleep(0.5)")
    migrating = asyncio.create_task(migrate(dsn, package.name))
    with psycopg.connect(dsn, autocommit=True) as connection:
        query = "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
        async with asyncio.timeout(10):
            while not connection.execute(query).fetchall():
                await asyncio.sleep(0.01)
    with pytest.raises(psycopg.OperationalError):
        await migrating
    assert tables(dsn) == {"schema_migrations"}
    assert await migrate(dsn, package.name) == [*KIT, first, second]
