"""The switch that turns the ledger and the chain of hashes off works in a database that a bench has made, and nowhere
else: no setting alone is enough, and where anything was ever written in the ordinary way it is refused.
"""

from __future__ import annotations

import os
from pathlib import Path

import psycopg
import pytest

from bench.history import write_history
from deploy.local.postgres import EmbeddedPostgres
from services.kit.db import Database
from services.kit.migrate import grant, migrate
from services.payment import ledger
from services.payment.bench_only import forgo_history
from services.payment.store import payments
from services.payment.store.mark import MARK
from tests.conftest import Services
from tests.trail import MERCHANT, Trail, open_trail

SECRET = "a secret that only the bench knows"
NONE = "is for databases that `paymesh bench` has made, and this is none"


@pytest.fixture(autouse=True)
def restored(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the switch replaces is there again after the test."""
    monkeypatch.setattr(payments, "event_hash", payments.event_hash)  # type: ignore[attr-defined]
    monkeypatch.setattr(ledger, "entries", ledger.entries)


def _describe(trail: Trail, text: str) -> None:
    with psycopg.connect(trail.admin_dsn, autocommit=True) as connection:
        connection.execute(f"COMMENT ON DATABASE {connection.info.dbname} IS '{text}'".encode())


@pytest.mark.parametrize(
    "described", [None, "", SECRET, MARK, f"{MARK}another secret", f"{SECRET}{MARK}", f"x{MARK}{SECRET}"]
)
async def test_without_the_right_mark_nothing_is_switched_off(
    postgres: EmbeddedPostgres, tmp_path: Path, described: str | None
) -> None:
    async with open_trail(postgres, tmp_path) as trail:
        if described is not None:
            _describe(trail, described)
        with pytest.raises(RuntimeError, match=NONE):
            await forgo_history(trail.database, SECRET)
        await trail.write(1)
        assert trail.rows("SELECT count(*) FROM journal_entries") == [(7,)]


async def test_where_there_is_money_the_mark_does_not_help(
    postgres: EmbeddedPostgres, tmp_path: Path
) -> None:
    async with open_trail(postgres, tmp_path) as trail:
        await trail.write(1)
        _describe(trail, MARK + SECRET)
        with pytest.raises(RuntimeError, match="there is money in this database"):
            await forgo_history(trail.database, SECRET)


async def test_in_a_database_of_the_bench_there_is_neither_ledger_nor_chain(
    postgres: EmbeddedPostgres, tmp_path: Path
) -> None:
    async with open_trail(postgres, tmp_path) as trail:
        _describe(trail, MARK + SECRET)
        for _ in range(2):  # a process that was started again finds what the one before has written
            await forgo_history(trail.database, SECRET)
            await trail.write(2)
        assert trail.rows("SELECT count(*) FROM journal_entries") == [(0,)]
        assert trail.rows("SELECT count(*), max(length(hash)) FROM payment_events") == [(16, 1)]
        assert trail.rows("SELECT DISTINCT state FROM payments") == [("CAPTURED",)]
        assert not (await trail.verify()).ok, "nobody takes it for history"


def test_a_process_with_the_setting_does_not_start_on_a_database_of_its_own(services: Services) -> None:
    with pytest.raises(AssertionError, match=f"ended with 1:(.|\n)*{NONE}"):
        services.start(
            "payment",
            fraud_target="127.0.0.1:1",
            bank_target="127.0.0.1:1",
            bench_without_history=SECRET,
        )


async def test_the_role_that_payment_works_under_cannot_write_the_mark(postgres: EmbeddedPostgres) -> None:
    name = f"mark_{os.urandom(4).hex()}"
    dsn, owner_dsn = postgres.create_apart(name)
    try:
        await migrate(owner_dsn, "services.payment")
        await grant(owner_dsn, dsn)
        with (
            psycopg.connect(dsn, autocommit=True) as connection,
            pytest.raises(psycopg.errors.InsufficientPrivilege),
        ):
            connection.execute(f"COMMENT ON DATABASE {name} IS '{MARK}{SECRET}'".encode())
        database = Database(dsn, pool_size_max=4)
        await database.open()
        try:
            with pytest.raises(RuntimeError, match=NONE):
                await forgo_history(database, SECRET)
            assert len(await write_history(database, MERCHANT, 1)) == 1
        finally:
            await database.close()
    finally:
        postgres.drop_database(name)
