"""The sealer: what it seals, in which order, and what becomes of it when it is killed, when two are at work, when a
transaction is slow, and when rows are from before there was a chain.
"""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator
from pathlib import Path

import psycopg
import pytest

from bench.history import append, initiate_set, write_set
from deploy.local.postgres import EmbeddedPostgres
from services.payment.domain import Event, EventType, Payment
from services.payment.trail import checkpoint
from services.payment.trail.sealer import TrailBroken
from tests.processes import ROOT
from tests.trail import MERCHANT, Trail, open_trail


@pytest.fixture
async def trail(postgres: EmbeddedPostgres, tmp_path: Path) -> AsyncIterator[Trail]:
    async with open_trail(postgres, tmp_path) as trail:
        yield trail


def _failed(payment: Payment) -> Event:
    return Event(EventType.FAILED, {"reason": "TEST"})


async def _whole(trail: Trail, events: int) -> None:
    """Every event is sealed once, and all is as it was written."""
    report = await trail.verify()
    assert report.ok, report.first
    assert (report.events, report.sealed, report.unsealed) == (events, events, 0)


async def test_nothing_new_makes_no_checkpoint(trail: Trail) -> None:
    assert await trail.seal() == 0
    await trail.write(3)
    sealer = trail.sealer()
    assert await sealer.seal_all() == 12
    assert await sealer.seal_all() == 0
    assert trail.folder.numbers() == [1]
    await _whole(trail, 12)


async def test_a_slow_transactions_events_are_neither_missed_nor_added_to_a_sealed_batch(
    trail: Trail,
) -> None:
    """It began first, and commits last; what came after it waits for it."""
    sealer = trail.sealer()
    with psycopg.connect(trail.dsn) as slow:
        slow.execute("SELECT now()")  # its time stands from here on
        await asyncio.to_thread(trail.rows, "SELECT pg_sleep(0.05)")
        await trail.write(2)
        assert await sealer.seal_all() == 0
        slow.execute(
            "INSERT INTO payment_events (merchant_id, payment_id, version, type, data) VALUES"
            " ('mer_slow', 'pay_slow', 1, 'PaymentInitiated', '{}')"
        )
    assert await sealer.seal_all() == 9
    (first, *_) = trail.folder.entries(1)
    assert first.payment_id == "pay_slow"


async def test_an_event_that_comes_late_is_sealed_in_the_next_checkpoint(trail: Trail) -> None:
    """As after the server's clock was set back: its time is before what is sealed already."""
    sealer = trail.sealer()
    await trail.write(2)
    await sealer.seal_all()
    (key,) = await write_set(trail.database, MERCHANT, 1)
    back = "UPDATE payment_events SET recorded_at = recorded_at - interval '{}' WHERE payment_id = '{}'"
    trail.tamper(back.format("3 seconds", key[1]))
    sealed = trail.folder.file(1).read_bytes()
    assert await sealer.seal_all() == 4
    assert await sealer.seal_all() == 0
    # Longer ago than a round looks back; a start looks back for an hour.
    (key,) = await write_set(trail.database, MERCHANT, 1)
    trail.tamper(back.format("20 minutes", key[1]))
    assert await sealer.seal_all() == 0
    assert await trail.seal() == 4
    assert await trail.seal() == 0
    assert trail.folder.file(1).read_bytes() == sealed
    await _whole(trail, 16)


async def test_of_two_sealers_each_event_is_sealed_by_one(trail: Trail) -> None:
    sealers = [trail.sealer() for _ in range(4)]
    sealed = 0
    for _ in range(5):
        await trail.write(4)
        sealed += sum(await asyncio.gather(*(sealer.seal_all() for sealer in sealers)))
    assert sealed == 80
    assert [number for (number,) in trail.rows("SELECT number FROM event_checkpoints ORDER BY 1")] == (
        trail.folder.numbers()
    )
    await _whole(trail, 80)


async def test_more_than_fits_into_one_checkpoint_goes_into_several(
    trail: Trail, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.payment.trail.sealer.ENTRIES_MAX", 50)
    monkeypatch.setattr("services.payment.trail.sealer.FETCH_EVENTS", 20)
    await trail.write(40)
    assert await trail.seal() == 160
    assert [trail.folder.header(number).events for number in trail.folder.numbers()] == [50, 50, 50, 10]
    await _whole(trail, 160)


async def test_rows_from_before_there_was_a_chain_are_sealed_and_vouched_for(trail: Trail) -> None:
    """Two payments from before, of which one goes on under the new code, beside one whose last event an older process
    has written."""
    keys = await initiate_set(trail.database, MERCHANT, 3)
    trail.tamper(
        "UPDATE payment_events SET hash = NULL; UPDATE payments SET event_hash = NULL, hashed_version = 0;"
    )
    await append(trail.database, keys[:1], _failed)
    assert trail.rows("SELECT hashed_version FROM payments WHERE payment_id = %s", keys[0][1]) == [(2,)]
    (other,) = await initiate_set(trail.database, MERCHANT, 1)
    trail.tamper(
        "INSERT INTO payment_events (merchant_id, payment_id, version, type, data)"
        " VALUES ('{merchant}', '{id}', 2, 'PaymentOutcomeUnknown', '{{}}');"
        " UPDATE payments SET version = 2, unknown_outcome = 'AUTHORIZATION' WHERE payment_id = '{id}'",
        merchant=other[0],
        id=other[1],
    )
    await append(trail.database, [other], _failed)
    assert await trail.seal() == 7
    await _whole(trail, 7)
    report = await trail.verify()
    assert report.unhashed == 4
    change = "UPDATE payment_events SET data = replace(data::text, 'tok_visa', 'tok_vira')::json "
    trail.tamper(f"{change} WHERE payment_id = '{keys[1][1]}'")
    report = await trail.verify()
    assert [(one.kind, one.id, one.version) for one in report.first] == [("changed", keys[1][1], 1)]


async def test_a_checkpoint_that_was_taken_away_stops_the_sealer(trail: Trail) -> None:
    await trail.write(1)
    await trail.seal()
    trail.folder.file(1).unlink()
    await trail.write(1)
    with pytest.raises(TrailBroken, match=r"checkpoint 1 is on record, and .* is gone"):
        await trail.seal()
    assert trail.folder.numbers() == []


async def test_a_checkpoint_that_somebody_else_put_there_stops_the_sealer(trail: Trail) -> None:
    await trail.write(1)
    await trail.seal()
    stranger = checkpoint.read_private_key(checkpoint.new_private_key())
    forged, lines = checkpoint.make(list(trail.folder.entries(1)), trail.folder.header(1), 1, stranger)
    trail.folder.write(forged, lines)
    with pytest.raises(TrailBroken, match="none of those that were given"):
        await trail.seal()


STEPS = {
    "before the file": "sealer.CheckpointFolder.write = die",
    "in the middle of the file": "os.fsync = die",
    "before the file has its name": "os.link = die",
    "before it is on record": "store.insert_checkpoint = die",
    "after it is on record": "sealer.SEALED.inc = die",
}


@pytest.mark.parametrize("step", STEPS)
async def test_a_sealer_that_is_killed_at_any_step_loses_and_doubles_nothing(trail: Trail, step: str) -> None:
    await trail.write(2)
    await trail.seal()
    await trail.write(3)
    pem = trail.folder.path.parent / "key.pem"
    pem.write_bytes(_private_pem(trail))
    program = f"""
        import asyncio, os, signal
        from pathlib import Path
        from services.kit.db import Database
        from services.payment import store
        from services.payment.config import PaymentConfig
        from services.payment.trail import sealer

        def die(*_, **__):
            os.kill(os.getpid(), signal.SIGKILL)

        async def main():
            config = PaymentConfig(listen="127.0.0.1:1", database_dsn={trail.dsn!r}, fraud_target="-",
                bank_target="-", seal_settle_seconds=0, seal_folder={str(trail.folder.path)!r},
                seal_key_file={str(pem)!r})
            database = Database(config.database_dsn, pool_size_max=4)
            await database.open()
            killed = sealer.open_sealer(database, config)
            {STEPS[step]}
            await killed.seal_all()

        asyncio.run(main())
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    ended = await asyncio.to_thread(subprocess.run, command, cwd=ROOT, capture_output=True, check=False)
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()
    await trail.write(1)
    await trail.seal()
    await _whole(trail, 24)


def _private_pem(trail: Trail) -> bytes:
    from cryptography.hazmat.primitives import serialization

    return trail.key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
