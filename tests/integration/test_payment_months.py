"""History is kept by months, and no month that is missing ever refuses money.

The migration is carried out on a database that has history already; months are made as the service makes them; and what
has no month is written all the same.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import psycopg
import pytest

from bench.history import write_set
from deploy.local.postgres import EmbeddedPostgres
from services.kit import migrate as migrating
from services.kit.migrate import grant, migrate
from services.payment import store
from services.payment.trail.months import MONTHS_AHEAD
from tests.trail import MERCHANT, Trail, named, open_trail

MONTHS = "0005_history_by_months.sql"


@pytest.fixture
async def trail(postgres: EmbeddedPostgres, tmp_path: Path) -> AsyncIterator[Trail]:
    async with open_trail(postgres, tmp_path) as trail:
        yield trail


def _parts(trail: Trail, table: str) -> dict[str, int]:
    names = trail.rows(
        "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = %s::regclass ORDER BY 1", table
    )
    return {name: trail.rows(f"SELECT count(*) FROM {name}")[0][0] for (name,) in names}


async def test_months_are_made_ahead_and_making_them_again_changes_nothing(trail: Trail) -> None:
    assert await store.create_months(trail.database, MONTHS_AHEAD) == MONTHS_AHEAD
    first = _parts(trail, "payment_events")
    assert await store.create_months(trail.database, MONTHS_AHEAD) == MONTHS_AHEAD
    assert _parts(trail, "payment_events") == first
    assert len(first) == 2 + MONTHS_AHEAD, "the first part, that of no month, and those to come"
    assert len(_parts(trail, "journal_entries")) == len(first)


async def test_months_made_by_many_at_once_are_made_once(trail: Trail) -> None:
    await asyncio.gather(*(store.create_months(trail.database, MONTHS_AHEAD) for _ in range(4)))
    assert await store.create_months(trail.database, MONTHS_AHEAD) == MONTHS_AHEAD


async def test_history_from_before_the_months_stays_where_it_is_and_is_whole(
    postgres: EmbeddedPostgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = migrating._files
    with monkeypatch.context() as older:
        older.setattr(
            migrating,
            "_files",
            lambda package: [one for one in files(package) if not one[0].endswith(MONTHS)],
        )
        async with open_trail(postgres, tmp_path) as trail:
            await trail.write(6)
            await trail.seal()
            before = trail.rows("SELECT * FROM payment_events ORDER BY 1, 2, 3")
            older.undo()
            assert await migrate(trail.dsn, "services.payment") == [f"services.payment/{MONTHS}"]
            assert trail.rows("SELECT * FROM payment_events ORDER BY 1, 2, 3") == before
            assert _parts(trail, "payment_events")["payment_events_before"] == 24
            # A new payment, and a second one whose clock is a month ahead.
            await trail.write(6)
            await trail.seal()
            report = await trail.verify()
            assert (report.ok, report.payments, report.sealed) == (True, 12, 48)


async def test_a_month_that_is_missing_refuses_no_money(
    trail: Trail, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody has made months for a year, and the clock goes on."""
    ids = iter(f"pay_{0x01AFFFFFF000:012x}7000800000000000{number:04x}" for number in range(100))
    monkeypatch.setattr("bench.history.new_id", lambda prefix: next(ids))
    keys = await write_set(trail.database, MERCHANT, 3)
    assert len(keys) == 3
    assert await store.count_elsewhere(trail.database) == 12
    assert _parts(trail, "journal_entries")["journal_entries_other"] > 0
    # Months that have no rows elsewhere are made nevertheless.
    assert await store.create_months(trail.database, MONTHS_AHEAD) == MONTHS_AHEAD
    await trail.seal()
    assert (await trail.verify()).ok


async def test_a_month_whose_first_rows_lie_elsewhere_is_left_out(
    trail: Trail, monkeypatch: pytest.MonkeyPatch
) -> None:
    ((bound,),) = trail.rows(
        "SELECT history_bound(date_trunc('month', now() AT TIME ZONE 'UTC') + interval '2 months' + interval '1 day')"
    )
    ids = iter(f"{bound}7000800000000000{number:04x}" for number in range(100))
    monkeypatch.setattr("bench.history.new_id", lambda prefix: next(ids))
    await write_set(trail.database, MERCHANT, 1)
    assert await store.create_months(trail.database, MONTHS_AHEAD) == 1
    assert len(_parts(trail, "payment_events")) == 2 + MONTHS_AHEAD - 1


async def test_somebody_who_reads_for_long_holds_the_months_up_and_nobody_else(trail: Trail) -> None:
    with psycopg.connect(trail.admin_dsn) as audit:
        audit.execute("SELECT count(*) FROM payment_events")
        assert await store.create_months(trail.database, MONTHS_AHEAD) < MONTHS_AHEAD
        assert len(await write_set(trail.database, MERCHANT, 2)) == 2
    assert await store.create_months(trail.database, MONTHS_AHEAD) == MONTHS_AHEAD


async def test_a_role_that_owns_nothing_makes_months_and_changes_none(
    postgres: EmbeddedPostgres, tmp_path: Path
) -> None:
    name = f"months_{os.urandom(4).hex()}"
    dsn, owner_dsn = postgres.create_apart(name)
    try:
        await migrate(owner_dsn, "services.payment")
        await grant(owner_dsn, dsn)
        with psycopg.connect(dsn, autocommit=True) as payment:
            assert payment.execute("SELECT create_history_months(3)").fetchone() == (MONTHS_AHEAD,)
            parts = payment.execute(
                "SELECT oid::regclass::text FROM pg_class WHERE relispartition AND relkind = 'r'"
            ).fetchall()
            tables = [part for (part,) in parts]
            assert len(tables) == 2 * (2 + MONTHS_AHEAD)
            await grant(owner_dsn, dsn)
            for table in (*tables, "payment_events", "journal_entries"):
                for statement in (
                    "DELETE FROM {}",
                    "TRUNCATE {}",
                    "DROP TABLE {}",
                    "UPDATE {} SET merchant_id = ''",
                ):
                    with pytest.raises(psycopg.errors.InsufficientPrivilege):
                        payment.execute(statement.format(table).encode())
        with psycopg.connect(owner_dsn, autocommit=True) as owner:
            for table in tables:
                with pytest.raises(psycopg.errors.InsufficientPrivilege, match="history is never changed"):
                    owner.execute(f"DELETE FROM {table}".encode())
    finally:
        postgres.drop_database(name)


async def test_a_payment_has_one_event_of_a_number_whatever_its_month(trail: Trail) -> None:
    await store.create_months(trail.database, MONTHS_AHEAD)
    ((key, payment_id),) = await trail.write(1)
    with pytest.raises(psycopg.errors.UniqueViolation):
        trail.tamper(
            "INSERT INTO payment_events (merchant_id, payment_id, version, type, data)"
            " SELECT merchant_id, payment_id, version, type, data FROM payment_events WHERE payment_id = '{id}'",
            id=payment_id,
        )
    assert named(await trail.verify()) == set(), key
