"""Bug 15: whatever is done to history behind the service's back, `verify` names it.

A history of payments is written and sealed as the service does it. Then somebody who may do everything in the database,
or in the folder of the checkpoints, does one thing to it, and the verification says what, where, and nothing else.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import psycopg
import pytest

from audit.trail.report import (
    CHANGED,
    CHECKPOINT,
    CUT_OFF,
    DELETED,
    PROJECTION,
    REORDERED,
    UNSEALED,
)
from bench.history import write_history
from deploy.local.postgres import EmbeddedPostgres
from services.kit.db import Database
from services.kit.migrate import grant, migrate
from services.payment.trail import checkpoint
from services.payment.trail.chain import GENESIS, event_hash
from services.payment.trail.checkpoint import Header
from tests.trail import MERCHANT, Trail, named, open_trail

PAYMENTS = 6
WHERE = "WHERE payment_id = '{id}'"


@pytest.fixture
async def trail(postgres: EmbeddedPostgres, tmp_path: Path) -> AsyncIterator[Trail]:
    """Payments with four events each, sealed in two checkpoints, and one that is not sealed yet."""
    async with open_trail(postgres, tmp_path) as trail:
        for _ in range(2):
            await trail.write(PAYMENTS)
            assert await trail.seal() == 4 * PAYMENTS
        await trail.write(1)
        yield trail


def _rehash(trail: Trail, payment_id: str) -> None:
    """Make a payment's chain whole again, as one would who knows how it is made."""
    previous = GENESIS
    rows = trail.rows(
        "SELECT version, type, data::text FROM payment_events WHERE payment_id = %s ORDER BY version",
        payment_id,
    )
    for version, type_, data in rows:
        previous = event_hash(previous, MERCHANT, payment_id, version, type_, data)
        trail.tamper(
            "UPDATE payment_events SET hash = '\\x{hash}' WHERE payment_id = '{id}' AND version = {version};"
            "UPDATE payments SET event_hash = '\\x{hash}' WHERE payment_id = '{id}'",
            hash=previous.hex(),
            id=payment_id,
            version=version,
        )


def _sealed(trail: Trail, number: int = 1) -> str:
    """A payment of a checkpoint."""
    return next(trail.folder.entries(number)).payment_id


async def test_an_honest_history_is_whole(trail: Trail) -> None:
    report = await trail.verify()
    assert report.ok, report.first
    assert (report.payments, report.events, report.unhashed) == (2 * PAYMENTS + 1, 8 * PAYMENTS + 4, 0)
    assert (report.checkpoints, report.sealed, report.unsealed) == (2, 8 * PAYMENTS, 4)


async def test_bug_15_a_changed_row_is_named(trail: Trail) -> None:
    id_ = _sealed(trail)
    change = "UPDATE payment_events SET data = replace(data::text, 'A1B2C3', 'A1B2C4')::json " + WHERE
    trail.tamper(change + " AND version = 2", id=id_)
    report = await trail.verify()
    assert named(report) == {(CHANGED, id_, 2), (PROJECTION, id_, 0)}
    assert f"{MERCHANT} {id_} event 2 (PaymentAuthorized) does not say what it said" in str(report.first[0])


async def test_bug_15_a_row_changed_with_its_hash_is_named(trail: Trail) -> None:
    id_ = _sealed(trail)
    trail.tamper(
        "UPDATE payment_events SET data = replace(data::text, '\"fee_minor\":29', '\"fee_minor\":28')::json "
        + WHERE
        + " AND version > 2; UPDATE payments SET fee_minor = 28 "
        + WHERE,
        id=id_,
    )
    _rehash(trail, id_)
    # The payment is whole in itself; only what was sealed knows better, about what was changed and all behind it.
    assert named(await trail.verify()) == {(CHANGED, id_, 3), (CHANGED, id_, 4)}


async def test_bug_15_a_row_that_was_backdated_is_named(trail: Trail) -> None:
    id_ = _sealed(trail)
    trail.tamper(
        "UPDATE payment_events SET recorded_at = recorded_at - interval '1 day' "
        + WHERE
        + " AND version = 3",
        id=id_,
    )
    report = await trail.verify()
    assert named(report) == {(CHANGED, id_, 3)}
    assert "was recorded at another time" in report.first[0].what


async def test_bug_15_a_deleted_row_is_named(trail: Trail) -> None:
    id_ = _sealed(trail)
    trail.tamper("DELETE FROM payment_events " + WHERE + " AND version = 2", id=id_)
    report = await trail.verify()
    assert named(report) == {(DELETED, id_, 2)}
    assert {one.what for one in report.first} == {
        "is missing between others",
        "was sealed by checkpoint 1 and is gone",
    }


async def test_bug_15_a_tail_that_was_cut_off_is_named(trail: Trail) -> None:
    id_ = _sealed(trail)
    trail.tamper("DELETE FROM payment_events " + WHERE + " AND version > 2", id=id_)
    report = await trail.verify()
    assert named(report) == {(CUT_OFF, id_, 3), (CUT_OFF, id_, 4), (DELETED, id_, 3), (DELETED, id_, 4)}


async def test_bug_15_a_tail_cut_off_with_the_row_set_back_is_named(trail: Trail) -> None:
    """The refusal never came, says whoever owns the database: all that it holds agrees. The checkpoint does not."""
    id_ = _sealed(trail)
    trail.tamper(
        "DELETE FROM payment_events " + WHERE + " AND version > 2;"
        "UPDATE payments SET state = 'AUTHORIZED', version = 2, hashed_version = 2, captured_minor = 0, fee_minor = 0,"
        " rest_released = false " + WHERE,
        id=id_,
    )
    _rehash(trail, id_)
    assert named(await trail.verify()) == {(DELETED, id_, 3), (DELETED, id_, 4)}


async def test_bug_15_two_swapped_rows_are_named(trail: Trail) -> None:
    id_ = _sealed(trail)
    swap = "UPDATE payment_events SET version = {to} " + WHERE + " AND version = {of};"
    for of, to in ((2, 9), (3, 2), (9, 3)):
        trail.tamper(swap, id=id_, of=of, to=to)
    found = named(await trail.verify())
    assert {(REORDERED, id_, 2), (REORDERED, id_, 3)} <= found
    assert {id_ for _, id_, _ in found} == {id_}


async def test_bug_15_a_changed_projection_is_named(trail: Trail) -> None:
    id_ = _sealed(trail)
    trail.tamper("UPDATE payments SET captured_minor = captured_minor - 1 " + WHERE, id=id_)
    report = await trail.verify()
    assert named(report) == {(PROJECTION, id_, 0)}
    assert "has captured_minor" in report.first[0].what


async def test_bug_15_a_payment_that_is_gone_altogether_is_named(trail: Trail) -> None:
    id_ = _sealed(trail, 2)
    trail.tamper("DELETE FROM payment_events " + WHERE + "; DELETE FROM payments " + WHERE, id=id_)
    report = await trail.verify()
    assert named(report) == {(DELETED, id_, version) for version in (1, 2, 3, 4)}
    assert {one.what for one in report.first} == {"was sealed by checkpoint 2 and is gone"}


async def test_bug_15_a_truncated_table_is_told_to_the_last_row(trail: Trail) -> None:
    trail.tamper("TRUNCATE payment_events; TRUNCATE payments")
    report = await trail.verify()
    assert report.kinds == {DELETED: 8 * PAYMENTS}


async def test_bug_15_a_payment_that_was_slipped_in_is_named(trail: Trail) -> None:
    (key,) = await trail.write(1)
    trail.tamper("UPDATE payment_events SET recorded_at = recorded_at - interval '1 day' " + WHERE, id=key[1])
    report = await trail.verify()
    assert named(report) == {(UNSEALED, key[1], version) for version in (1, 2, 3, 4)}


async def test_a_row_whose_events_are_gone_and_an_end_that_is_another_are_named(trail: Trail) -> None:
    (key,) = await trail.write(1)
    trail.tamper("UPDATE payments SET event_hash = '\\x00' " + WHERE, id=key[1])
    assert named(await trail.verify()) == {(CHANGED, key[1], 4)}
    trail.tamper("DELETE FROM payments " + WHERE, id=key[1])
    assert named(await trail.verify()) == {(PROJECTION, key[1], 0)}


async def test_bug_15_a_removed_checkpoint_is_named(trail: Trail) -> None:
    trail.folder.file(1).unlink()
    report = await trail.verify()
    assert [str(one) for one in report.first] == ["checkpoint: checkpoint 1 is missing between others"]


async def test_bug_15_a_removed_last_checkpoint_is_named(trail: Trail) -> None:
    trail.folder.file(2).unlink()
    report = await trail.verify()
    assert [one.what for one in report.first] == ["is on record in the database and missing in the folder"]


async def test_bug_15_checkpoints_that_are_all_gone_are_named(trail: Trail) -> None:
    for number in (1, 2):
        trail.folder.file(number).unlink()
    assert (await trail.verify()).kinds == {CHECKPOINT: 2}


async def test_bug_15_a_checkpoint_with_a_changed_entry_is_named(trail: Trail) -> None:
    file = trail.folder.file(1)
    lines = file.read_bytes().splitlines()
    lines[3], lines[4] = lines[4], lines[3]
    file.write_bytes(b"\n".join(lines) + b"\n")
    report = await trail.verify()
    assert [one.what for one in report.first] == ["has entries (24) that are not those that were signed"]
    file.write_bytes(b"\n".join(lines[:-1]) + b"\n")
    report = await trail.verify()
    assert [one.what for one in report.first] == [
        "has entries (23 of 24) that are not those that were signed"
    ]


def _replace_header(trail: Trail, number: int, header: Header) -> None:
    file = trail.folder.file(number)
    _, *lines = file.read_bytes().splitlines()
    file.write_bytes(b"\n".join([header.line(), *lines]) + b"\n")


async def test_bug_15_a_wrong_signature_is_named(trail: Trail) -> None:
    header = trail.folder.header(2)
    _replace_header(trail, 2, header._replace(sealed_ms=header.sealed_ms - 1))
    report = await trail.verify()
    assert {one.id for one in report.first} == {"checkpoint 2"}
    assert "has a signature that is wrong" in report.first[0].what
    assert report.first[1].what == "is not the one that the database has on record"


async def test_bug_15_a_forged_checkpoint_is_named(trail: Trail) -> None:
    """Signed by somebody else; and, with the right key, but not the one that checkpoint 2 follows."""
    entries = list(trail.folder.entries(1))
    stranger = checkpoint.read_private_key(checkpoint.new_private_key())
    for key, told in (
        (stranger, "none of those that were given"),
        (trail.key, "not chained to checkpoint 1"),
    ):
        forged, _ = checkpoint.make(entries, None, 1, key)
        _replace_header(trail, 1, forged)
        report = await trail.verify()
        assert any(told in one.what for one in report.first), report.first
        assert report.kinds.keys() == {CHECKPOINT}


async def test_no_checkpoint_at_all_is_told_in_words(trail: Trail) -> None:
    trail.folder.file(2).write_bytes(b"hello\n")
    report = await trail.verify()
    assert ["has a header" in one.what or "header" in one.what for one in report.first] == [True]


HISTORY = (("payment_events", "type"), ("journal_entries", "account"), ("event_checkpoints", "header"))


def _refused(dsn: str, *statements: str) -> None:
    for statement in statements:
        with psycopg.connect(dsn) as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute(statement.encode())


def _changes(table: str, column: str) -> tuple[str, ...]:
    return f"UPDATE {table} SET {column} = 'x'", f"DELETE FROM {table}", f"TRUNCATE {table}"


async def test_a_role_that_owns_the_tables_is_refused_to_change_history(trail: Trail) -> None:
    """As where a service has only one role: the tables refuse."""
    for table, column in HISTORY:
        _refused(trail.dsn, *_changes(table, column))
    assert (await trail.verify()).ok


async def test_the_role_of_the_service_may_read_history_and_append_to_it(postgres: EmbeddedPostgres) -> None:
    """As on a local mesh, on a database that belonged to the service's role until now: what was there stays, work goes
    on, and history cannot be changed, whether the tables refuse or not, nor can that be undone."""
    name = f"apart_{os.urandom(4).hex()}"
    try:
        await migrate(postgres.create_database(name), "services.payment")
        dsn, owner_dsn = postgres.create_apart(name)
        assert postgres.create_apart(name) == (dsn, owner_dsn)
        assert await migrate(owner_dsn, "services.payment") == []
        for _ in "12":
            await grant(owner_dsn, dsn)
        assert await migrate(dsn, "services.payment") == []
        database = Database(dsn, pool_size_max=2)
        await database.open()
        await write_history(database, MERCHANT, 3)
        await database.close()
        for table, column in HISTORY:
            undo = (f"ALTER TABLE {table} DISABLE TRIGGER USER", f"SET ROLE {name}_owner")
            _refused(dsn, *_changes(table, column), *undo)
            with psycopg.connect(owner_dsn) as owner:
                owner.execute(f"DROP TRIGGER history_is_kept ON {table}".encode())
            _refused(dsn, *_changes(table, column), "CREATE TABLE mine (x int)")
        with psycopg.connect(dsn) as connection:
            assert connection.execute("SELECT count(*) FROM payment_events").fetchone() == (12,)
    finally:
        postgres.drop_database(name)
