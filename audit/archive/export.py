"""Writes the archive of a month: from one snapshot of payment's database, after everything in it was verified."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from datetime import UTC, datetime
from math import inf
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from audit.archive.files import (
    CHECKPOINTS,
    ENTRIES,
    ENTRIES_SCHEMA,
    EVENTS,
    EVENTS_SCHEMA,
    MANIFEST,
    Writer,
    files_of,
    hash_of,
)
from audit.archive.manifest import Manifest
from audit.archive.month import Month, month_at
from audit.archive.sealed import read_sealed
from audit.report import AuditError
from audit.snapshot import Row, Snapshot, open_snapshot
from audit.trail.histories import read_histories
from audit.trail.payments import EVENT_COLUMNS, PAYMENTS_COLUMNS, History
from audit.trail.report import CHECKPOINT, Fault, TrailReport
from audit.trail.spool import Spool
from audit.trail.verify import Progress, judge_apart
from services.kit.clock import now_ms
from services.payment.trail.checkpoint import NoCheckpoint
from services.payment.trail.folder import CheckpointFolder

_RANGE = "{column} >= '{first}' AND {column} < '{following}'"
_PAYMENTS = (
    f"SELECT {PAYMENTS_COLUMNS} FROM payments WHERE {{range}}"
    " ORDER BY merchant_id/*bytes*/, payment_id/*bytes*/"
)
_EVENTS = (
    f"SELECT {EVENT_COLUMNS} FROM payment_events WHERE {{range}}"
    " ORDER BY merchant_id/*bytes*/, payment_id/*bytes*/, version"
)
_ENTRIES = """
SELECT merchant_id, journal_id, line, account, currency, amount_minor,
       (extract(epoch FROM posted_at) * 1000000)::bigint
FROM journal_entries WHERE {range} ORDER BY merchant_id/*bytes*/, journal_id/*bytes*/, line
"""
LISTED_MAX = 3
"""Reasons that a refusal tells."""


async def export(
    dsn: str,
    folder: Path,
    key: Ed25519PrivateKey,
    keys: Mapping[str, Ed25519PublicKey],
    month: Month,
    to: Path,
    progress: Progress = lambda what, done, of: None,
) -> Manifest:
    """Write the archive of a month below `to`, signed with `key`; it is there whole or not at all. `folder` has the
    checkpoints, `keys` are those that may have signed them. Raises AuditError, also when history is not as it was
    written, or not sealed yet."""
    if month >= month_at_now():
        raise AuditError(f"{month} is not over yet: payments still begin in it")
    target = to / str(month)
    if target.exists():
        raise AuditError(f"{target} is there already: name another folder, or take it away first")
    draft = to / f".{month}.draft"
    shutil.rmtree(draft, ignore_errors=True)
    (draft / CHECKPOINTS).mkdir(parents=True)
    try:
        told = await _write(dsn, CheckpointFolder(folder), keys, month, draft, progress)
        told = told._replace(files={name: hash_of(draft / name) for name in files_of(draft)}).sign(key)
        (draft / MANIFEST).write_bytes(told.text())
        draft.rename(target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return told


def month_at_now() -> Month:
    """The month that is under way."""
    return month_at(datetime.fromtimestamp(now_ms() / 1000, UTC))


async def _write(
    dsn: str,
    folder: CheckpointFolder,
    keys: Mapping[str, Ed25519PublicKey],
    month: Month,
    draft: Path,
    progress: Progress,
) -> Manifest:
    report = TrailReport()
    try:
        # Before the snapshot: whatever they seal is in it.
        numbers = folder.numbers()
    except FileNotFoundError as error:
        raise AuditError(f"there are no checkpoints in {folder.path}") from error
    async with open_snapshot("payment", dsn) as snapshot:
        events = await snapshot.fetch(
            f"SELECT count(*) FROM payment_events WHERE {_range(month, 'payment_id')}"
        )
        if not events[0][0]:
            raise AuditError(f"no payment began in {month}")
        with Spool(events[0][0]) as spool:
            await _write_events(snapshot, month, draft / EVENTS, spool, report, progress)
            with Writer(draft / ENTRIES, ENTRIES_SCHEMA) as entries:
                async for batch in snapshot.batches(_ENTRIES.format(range=_range(month, "journal_id"))):
                    entries.write(batch)
            kept = []
            wrong = report.offend
            sealed = read_sealed(
                folder,
                numbers,
                keys,
                month,
                spool,
                lambda number, what: wrong("", f"checkpoint {number}", Fault(CHECKPOINT, 0, what)),
            )
            for number, of_month in sealed:
                progress("checkpoints", number, numbers[-1])
                if of_month:
                    shutil.copyfile(folder.file(number), CheckpointFolder(draft / CHECKPOINTS).file(number))
                    kept.append(number)
            try:
                for apart in spool.compare():
                    judge_apart(apart, report, due_us=-inf)
            except NoCheckpoint as error:
                report.offend("", "checkpoints", Fault(CHECKPOINT, 0, str(error)))
    _refuse(report, month)
    return Manifest(
        month=str(month),
        payments=report.payments,
        events=report.events,
        entries=entries.count,
        checkpoints=kept,
        files={},
        exported_ms=now_ms(),
        key_id="",
    )


async def _write_events(
    snapshot: Snapshot, month: Month, path: Path, spool: Spool, report: TrailReport, progress: Progress
) -> None:
    range_ = _range(month, "payment_id")
    ((count,),) = await snapshot.fetch(f"SELECT count(*) FROM payments WHERE {range_}")
    with Writer(path, EVENTS_SCHEMA) as file:
        payments = snapshot.batches(_PAYMENTS.format(range=range_))
        async for found in read_histories(payments, snapshot.batches(_EVENTS.format(range=range_))):
            for history in found:
                lines, faults = history.judge()
                if lines:
                    spool.put_present(lines)
                for fault in faults:
                    report.offend(history.merchant_id, history.payment_id, fault)
                file.write(_rows(history))
            report.payments += len(found)
            progress("payments", report.payments, count)
        report.events = file.count


def _rows(history: History) -> list[Row]:
    return [
        (history.merchant_id, history.payment_id, e.version, e.type, e.data_json, e.recorded_us, e.hash)
        for e in history.events
    ]


def _range(month: Month, column: str) -> str:
    return _RANGE.format(column=column, first=month.first_id, following=month.following.first_id)


def _refuse(report: TrailReport, month: Month) -> None:
    """Raise AuditError unless all is as it was written, and sealed."""
    if not report.ok:
        told = "; ".join(str(one) for one in report.first[:LISTED_MAX])
        raise AuditError(f"{month} is not as it was written, see `paymesh audit verify`: {told}")
    if report.unsealed:
        raise AuditError(
            f"{report.unsealed} events of {month} are not sealed yet: try again when the sealer has been round"
        )
