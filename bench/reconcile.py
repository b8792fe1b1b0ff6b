"""How long a run of the reconciler takes: `make bench-reconcile`, or `python -m bench.reconcile --lines 100000 --format
camt053`.

As many lines of a statement as items of payment, on a server of its own that writes to disk, in a temporary folder. Of
a hundred items ninety are booked one by one, the others in settlements of a thousand less the bank's fees; one line in
five thousand has a wrong amount. The statement is what the sandbox bank would write, CSV and camt.053 by default; it
is read by the readers that banks' files are read by. What is timed is all that a run does: read, check, copy, match,
look for differences, commit. Processor time is counted apart for Python and for PostgreSQL.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import itertools
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from itertools import pairwise
from pathlib import Path

import psycopg

from bench.meters import postgres_cpu_seconds
from deploy.local.postgres import EmbeddedPostgres
from sandbox.bank.statements.formats import WRITERS
from sandbox.bank.statements.statement import Entry, Head, Kind, Part, write
from services.kit.migrate import migrate
from services.reconciler.reconciliation import Job, Report, StatementFile, reconcile
from services.reconciler.rule_file import BUILT_IN_RULES, read_rules
from services.reconciler.statements.formats import read_statement
from services.reconciler.store.connection import Connection, Stop

LINES = (10_000, 100_000, 1_000_000)
FORMATS = ("csv", "camt053")
MERCHANT = "mer_bench"
ACCOUNT = "bench.GBP"
FIRST_DAY = date(2026, 11, 2)
DAYS = 28
BATCH_SIZE = 1_000
BATCHED_OF_A_HUNDRED = 10
WRONG_ONE_IN = 5_000
FEE_SHARE_PPM = 14_000


@dataclass(frozen=True, slots=True)
class Figures:
    """What was measured of one size."""

    format: str
    lines: int
    items: int
    file_bytes: int
    seconds: float
    our_cpu_seconds: float
    server_cpu_seconds: float
    """Of this process and of PostgreSQL. On a machine that has other work to do the time on the clock says little."""
    phases: dict[str, float]
    wrong: int
    found: int
    our_memory_mib: float
    """Of this process, over everything so far."""
    run_memory_mib: float
    """Of the server's process for the run, at most; what it shares with the others, its page cache, not counted."""


@dataclass(frozen=True, slots=True)
class _Item:
    key: str
    reference: str
    batch: str
    amount_minor: int
    fee_minor: int
    day: date


def _items(count: int) -> Iterator[_Item]:
    for number in range(count):
        batched = number % 100 < BATCHED_OF_A_HUNDRED
        amount_minor = 100 + number * 7_919 % 500_000
        # A settlement is of one day.
        batch = number // 100 * BATCHED_OF_A_HUNDRED // BATCH_SIZE
        yield _Item(
            key=f"pay_{number:020d}/capture/3",
            reference=f"cap_{number:020d}",
            batch=f"batch_{batch:08d}" if batched else "",
            amount_minor=amount_minor,
            fee_minor=amount_minor * FEE_SHARE_PPM // 1_000_000 if batched else 0,
            day=FIRST_DAY + timedelta(days=(batch if batched else number) % DAYS),
        )


def _write_items(connection: Connection, count: int) -> None:
    with connection.cursor().copy(
        "COPY items (merchant_id, item_id, kind, payment_id, settlement_id, bank_reference, batch_reference,"
        " amount_minor, fee_minor, currency, booked_on, value_on) FROM STDIN"
    ) as copy:
        for item in _items(count):
            payment = item.key.partition("/")[0]
            copy.write_row(
                (MERCHANT, item.key, "CAPTURE", payment, "", item.reference, item.batch, item.amount_minor,
                 item.fee_minor, "GBP", item.day, item.day)
            )  # fmt: skip
    connection.execute("INSERT INTO open_items (merchant_id, item_no) SELECT merchant_id, item_no FROM items")


def _entries(count: int) -> Iterator[Entry]:
    """One for each item that is booked alone, then one for each settlement, net; some of them wrong."""
    batches: dict[str, tuple[int, date]] = {}
    places = itertools.count(1)

    def booked(kind: Kind, day: date, amount_minor: int, reference: str, theirs: str, batch: str) -> Entry:
        wrong = next(places) % WRONG_ONE_IN == 0
        return Entry(Part(kind, amount_minor + wrong, 0, reference, theirs, batch, "sale"), day, day)

    for item in _items(count):
        if item.batch:
            net_minor, _ = batches.get(item.batch, (0, item.day))
            batches[item.batch] = (net_minor + item.amount_minor - item.fee_minor, item.day)
        else:
            yield booked(Kind.CAPTURE, item.day, item.amount_minor, item.key, item.reference, "")
    for batch, (net_minor, day) in batches.items():
        yield booked(Kind.SETTLEMENT, day, net_minor, "", batch, batch)


def _write_statement(path: Path, format_name: str, count: int) -> int:
    """Returns how many lines there are."""
    lines = total_minor = 0
    for entry in _entries(count):
        lines += 1
        total_minor += entry.whole.amount_minor
    head = Head(1, ACCOUNT, "GBP", FIRST_DAY, 0, FIRST_DAY + timedelta(days=DAYS), total_minor)
    with path.open("wb") as file:
        for chunk in write(WRITERS[format_name](), head.day, [(head, _entries(count))]):
            file.write(chunk)
    return lines


def measure(server: EmbeddedPostgres, folder: Path, format_name: str, count: int) -> Figures:
    """One run over about so many lines and items, on an empty database."""
    name = f"reconciler_{format_name}_{count}"
    dsn = server.create_database(name)
    asyncio.run(migrate(dsn, "services.reconciler"))
    path = folder / f"{count}.{format_name}"
    lines = _write_statement(path, format_name, count)
    with psycopg.connect(dsn) as connection:
        _write_items(connection, count)
    # Items were copied on other days: whatever the server does once about new rows is no part of the run.
    with psycopg.connect(server.admin_dsn.rpartition("/")[0] + f"/{name}", autocommit=True) as connection:
        connection.execute("VACUUM ANALYZE")
        connection.execute("CHECKPOINT")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").digest()
    phases: dict[str, float] = {}
    memory_mib = 0.0
    phase, last = "importing", time.monotonic()

    def tell(name: str, *_: object) -> None:
        nonlocal phase, last
        now = time.monotonic()
        phases[phase] = phases.get(phase, 0.0) + now - last
        phase, last = name, now

    def keep(connection: Connection, _: Report) -> None:
        nonlocal memory_mib
        memory_mib = _memory_mib(connection.info.backend_pid)

    job = Job(
        merchant_id=MERCHANT,
        until=FIRST_DAY + timedelta(days=DAYS),
        files=[StatementFile(path.name, path, digest, path.stat().st_size)],
        differences_max=lines,
    )
    started, ours, theirs = time.monotonic(), time.process_time(), _server_cpu_seconds(server)
    report = reconcile(dsn, job, read_rules(BUILT_IN_RULES), read_statement, tell, Stop(), keep)
    tell("")
    seconds = time.monotonic() - started
    ours, theirs = time.process_time() - ours, _server_cpu_seconds(server) - theirs
    size_bytes = path.stat().st_size
    path.unlink()
    server.drop_database(name)
    return Figures(
        format=format_name,
        lines=lines,
        items=count,
        file_bytes=size_bytes,
        seconds=seconds,
        our_cpu_seconds=ours,
        server_cpu_seconds=theirs,
        phases=phases,
        wrong=lines // WRONG_ONE_IN,
        found=len(report.differences),
        our_memory_mib=_memory_mib(os.getpid()),
        run_memory_mib=memory_mib,
    )


def _server_cpu_seconds(server: EmbeddedPostgres) -> float:
    return postgres_cpu_seconds(server.pid) if server.pid else 0.0


def _memory_mib(pid: int) -> float:
    """The most that a process has had in memory, less what it shares with others."""
    facts = dict(
        line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line
    )
    kib = {name: int(facts[name].split()[0]) for name in ("VmHWM", "RssShmem")}
    return (kib["VmHWM"] - kib["RssShmem"]) / 1024


def show(figures: Sequence[Figures]) -> None:
    """Print it. Processor time and memory are of Python + PostgreSQL."""
    print(
        f"{'format':>7} {'lines':>9} {'items':>9} {'file':>7} {'time':>8} {'of it':>42} {'processor':>15}"
        f" {'memory':>14}  differences"
    )
    for one in figures:
        phases = ", ".join(f"{name.split()[0]} {seconds:.1f}" for name, seconds in one.phases.items())
        processor = f"{one.our_cpu_seconds:.1f} + {one.server_cpu_seconds:.1f} s"
        memory = f"{one.our_memory_mib:.0f} + {one.run_memory_mib:.0f} MiB"
        print(
            f"{one.format:>7} {one.lines:>9,} {one.items:>9,} {one.file_bytes / 1e6:>4.0f} MB {one.seconds:>6.1f} s"
            f" {phases:>42} {processor:>15} {memory:>14}  {one.found} of {one.wrong}"
        )
    for before, after in pairwise(figures):
        if before.format == after.format:
            times = after.seconds / before.seconds
            print(
                f"{after.format}: {after.lines / before.lines:.0f} times the lines took {times:.1f} times as long"
            )


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0 when every run has found what is wrong, and nothing else."""
    parser = argparse.ArgumentParser(prog="python -m bench.reconcile", description=__doc__)
    parser.add_argument(
        "--lines", type=int, action="append", help="repeatable; 10^4, 10^5 and 10^6 by default"
    )
    parser.add_argument(
        "--format", choices=sorted(WRITERS), action="append", help="repeatable; csv and camt053"
    )
    options = parser.parse_args(arguments)
    folder = Path(tempfile.mkdtemp(prefix="paymesh-bench-reconcile-"))
    figures = []
    try:
        with EmbeddedPostgres(folder) as server:
            for format_name, count in itertools.product(options.format or FORMATS, options.lines or LINES):
                if sys.stderr.isatty():
                    print(f"\r\033[K{count:,} lines of {format_name}", end="", file=sys.stderr, flush=True)
                figures.append(measure(server, folder, format_name, count))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    show(figures)
    return 0 if all(one.found == one.wrong for one in figures) else 1


if __name__ == "__main__":
    sys.exit(main())
