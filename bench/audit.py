"""How long it takes to seal and to verify a history: `make bench-audit`, or `python -m bench.audit --events 1000000`.

A history is written as the service writes it, sealed by its sealer and verified by `audit.trail`, on a server of its
own in a temporary folder. With `--one-core` everything, the server included, is held on one core.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import resource
import shutil
import sys
import tempfile
import time
import timeit
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from audit.trail.verify import verify
from bench.history import EVENTS_EACH, write_history
from bench.meters import postgres_cpu_seconds
from deploy.local.postgres import EmbeddedPostgres
from services.kit.db import Database
from services.kit.migrate import migrate
from services.payment.config import PaymentConfig
from services.payment.trail import checkpoint
from services.payment.trail.chain import GENESIS, event_hash
from services.payment.trail.folder import CheckpointFolder
from services.payment.trail.sealer import Sealer

EVENTS = 1_000_000
MERCHANT = "mer_bench"
_DATA = (
    '{"order_id":"ord_0197a5b3f0c47d5e8a9b0c1d2e3f4a5b","amount_minor":1000,"currency":"USD","card_token":"tok_visa_1",'
    '"card_bin":"424242","customer_id":"cus_1","email":"buyer1@example.com","ip_address":"203.0.113.7",'
    '"billing_country":"US","caller":"orchestrator","idempotency_key":"saga_0197a5b3f0c47d5e/authorize"}'
)
HASHES = 200_000


@dataclass(frozen=True)
class Figures:
    """What was measured."""

    events: int
    write_seconds: float
    seal_seconds: float
    seal_cpu_seconds: float
    """Of this process and of the server. On a machine that has other work to do the time on the clock says little."""
    checkpoints: int
    checkpoint_bytes: int
    verify_seconds: float
    verify_cpu_seconds: float
    memory_mib_max: float
    """Of this process, over everything."""
    hash_us: float
    """One event's hash, best of five."""
    ok: bool


async def measure(events: int, folder: Path, *, say: bool = True) -> Figures:
    """Write, seal and verify that many events below a folder."""
    payments = -(-events // EVENTS_EACH)
    with EmbeddedPostgres(folder, durable=False) as server:
        dsn = server.create_database("payment")
        await migrate(dsn, "services.payment")
        database = Database(dsn, pool_size_max=4)
        await database.open()
        try:
            started = time.monotonic()
            await write_history(
                database,
                MERCHANT,
                payments,
                lambda done: _say(say, f"written {done:,} of {payments:,} payments"),
            )
            write_seconds = time.monotonic() - started
            key = checkpoint.read_private_key(checkpoint.new_private_key())
            checkpoints = CheckpointFolder(folder / "checkpoints")
            _say(say, "sealing")
            started, cpu = time.monotonic(), _cpu_seconds(server)
            sealed = await Sealer(database, checkpoints.path, key, _config(dsn)).seal_all()
            seal_seconds, seal_cpu = time.monotonic() - started, _cpu_seconds(server) - cpu
        finally:
            await database.close()
        started, cpu = time.monotonic(), _cpu_seconds(server)
        keys = {checkpoint.key_id_of(key.public_key()): key.public_key()}
        report = await verify(
            dsn,
            checkpoints.path,
            keys,
            lambda what, done, of: _say(say, f"verifying {what} {done:,} of {of:,}"),
        )
        verify_seconds, verify_cpu = time.monotonic() - started, _cpu_seconds(server) - cpu
    numbers = checkpoints.numbers()
    return Figures(
        events=report.events,
        write_seconds=write_seconds,
        seal_seconds=seal_seconds,
        seal_cpu_seconds=seal_cpu,
        checkpoints=len(numbers),
        checkpoint_bytes=sum(checkpoints.file(number).stat().st_size for number in numbers),
        verify_seconds=verify_seconds,
        verify_cpu_seconds=verify_cpu,
        memory_mib_max=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        hash_us=min(timeit.repeat(_hash_one, number=HASHES // 10, repeat=5)) / (HASHES // 10) * 1e6,
        ok=report.ok and sealed == report.sealed == report.events,
    )


def _cpu_seconds(server: EmbeddedPostgres) -> float:
    return time.process_time() + (postgres_cpu_seconds(server.pid) if server.pid else 0.0)


def _hash_one() -> None:
    event_hash(GENESIS, MERCHANT, "pay_0197a5b3f0c47d5e8a9b0c1d2e3f4a5b", 1, "PaymentInitiated", _DATA)


def _config(dsn: str) -> PaymentConfig:
    return PaymentConfig(
        listen="127.0.0.1:1", database_dsn=dsn, fraud_target="-", bank_target="-", seal_settle_seconds=0.0
    )


def _say(wanted: bool, what: str) -> None:
    if wanted and sys.stderr.isatty():
        print(f"\r\033[K{what}", end="", file=sys.stderr, flush=True)


def show(figures: Figures, cores: int) -> None:
    """Print it."""
    print(f"{figures.events:,} events on {cores} core{'s' if cores > 1 else ''}, PostgreSQL included")
    rows = (
        ("hash of an event", f"{figures.hash_us:.2f} us"),
        ("written (payment's own statements)", _rate(figures.events, figures.write_seconds)),
        ("sealed", _rate(figures.events, figures.seal_seconds)),
        ("  processor time, with the server", f"{figures.seal_cpu_seconds:.1f} s"),
        (
            "checkpoints",
            f"{figures.checkpoints}, {figures.checkpoint_bytes / figures.events:.0f} bytes an event",
        ),
        ("verified", _rate(figures.events, figures.verify_seconds)),
        ("  processor time, with the server", f"{figures.verify_cpu_seconds:.1f} s"),
        ("memory at most", f"{figures.memory_mib_max:.0f} MiB"),
        ("whole", "yes" if figures.ok else "NO"),
    )
    for name, value in rows:
        print(f"  {name:<36}{value}")


def _rate(events: int, seconds: float) -> str:
    return f"{seconds:.1f} s, {events / seconds:,.0f} events/s"


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0 when the history was found whole."""
    parser = argparse.ArgumentParser(prog="python -m bench.audit", description=__doc__)
    parser.add_argument("--events", type=int, default=EVENTS)
    parser.add_argument(
        "--one-core", action="store_true", help="hold this process and the server on one core"
    )
    options = parser.parse_args(arguments)
    cores = os.cpu_count() or 1
    if options.one_core:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        cores = 1
    folder = Path(tempfile.mkdtemp(prefix="paymesh-bench-audit-"))
    try:
        figures = asyncio.run(measure(options.events, folder))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    show(figures, cores)
    return 0 if figures.ok else 1


if __name__ == "__main__":
    sys.exit(main())
