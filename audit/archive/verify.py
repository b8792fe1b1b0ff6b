"""Verifies archives, with their files and a public key: without any database."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping
from math import inf
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from audit.archive.files import (
    CHECKPOINTS,
    ENTRIES,
    EVENTS,
    MANIFEST,
    entry_rows,
    event_batches,
    files_of,
    hash_of,
)
from audit.archive.manifest import Manifest, read_manifest
from audit.archive.sealed import read_sealed
from audit.report import AuditError
from audit.snapshot import Row
from audit.trail.histories import OutOfOrder, read_histories
from audit.trail.payments import History, booked_by
from audit.trail.report import ARCHIVE, CHECKPOINT, LEDGER, REORDERED, Fault, TrailReport
from audit.trail.spool import Spool
from audit.trail.verify import Progress, judge_apart
from services.kit.money import Money
from services.payment.ledger import Entry
from services.payment.trail.checkpoint import NoCheckpoint
from services.payment.trail.folder import CheckpointFolder


def archives_in(folder: Path) -> list[Path]:
    """The archive that a folder is, or those that lie in it, by month. Raises AuditError."""
    if (folder / MANIFEST).is_file():
        return [folder]
    found = sorted(path.parent for path in folder.glob(f"*/{MANIFEST}")) if folder.is_dir() else []
    if not found:
        raise AuditError(
            f"there is no archive in {folder}: name the folder that `paymesh audit export` wrote to"
        )
    return found


async def verify_archives(
    folder: Path,
    keys: Mapping[str, Ed25519PublicKey],
    progress: Progress = lambda what, done, of: None,
) -> TrailReport:
    """Verify the archive in a folder, or all in it. Raises AuditError when there is none."""
    started = time.monotonic()
    report = TrailReport()
    for archive in archives_in(folder):
        await _Verification(archive, keys, report, progress).carry_out()
    report.seconds = time.monotonic() - started
    return report


class _Verification:
    """Of one archive."""

    def __init__(
        self, archive: Path, keys: Mapping[str, Ed25519PublicKey], report: TrailReport, progress: Progress
    ) -> None:
        self._archive = archive
        self._keys = keys
        self._report = report
        self._progress = progress
        path = archive / MANIFEST
        self._manifest: Manifest = read_manifest(path.read_bytes(), str(path))

    async def carry_out(self) -> None:
        """Files first, then what is in them: a file that is not the one that was written may still tell which row."""
        manifest = self._manifest
        for what in manifest.faults(self._keys):
            self._offend(f"{self._archive.name}/{MANIFEST}", ARCHIVE, what)
        self._compare_files()
        with Spool(manifest.events) as spool:
            await self._read_rows(spool)
            folder = CheckpointFolder(self._archive / CHECKPOINTS)
            for _, of_month in read_sealed(
                folder, manifest.checkpoints, self._keys, manifest.of, spool, self._offend_checkpoint
            ):
                self._report.checkpoints += 1
                self._report.sealed += of_month
                self._progress("checkpoints", self._report.sealed, manifest.events)
            try:
                for apart in spool.compare():
                    judge_apart(apart, self._report, due_us=inf)
            except NoCheckpoint as error:
                self._offend("checkpoints", CHECKPOINT, str(error))

    def _compare_files(self) -> None:
        there = set(files_of(self._archive))
        due = self._manifest.files
        for name in sorted(there | due.keys()):
            shown = f"{self._archive.name}/{name}"
            if name not in there:
                self._offend(shown, ARCHIVE, "is missing")
            elif name not in due:
                self._offend(shown, ARCHIVE, "is not part of the archive")
            elif hash_of(self._archive / name) != due[name]:
                self._offend(shown, ARCHIVE, "is not the file that was written")

    async def _read_rows(self, spool: Spool) -> None:
        report, manifest = self._report, self._manifest
        before = (report.payments, report.events)
        ledger = _Ledger(self._archive / ENTRIES, report)
        try:
            async for found in read_histories(_nothing(), event_batches(self._archive / EVENTS)):
                for history in found:
                    self._read_payment(history, spool, ledger)
                self._progress("payments", report.payments - before[0], manifest.payments)
            ledger.finish()
        except OutOfOrder as error:
            fault = Fault(REORDERED, 0, "stands behind others that it was before")
            report.offend(error.merchant_id, error.payment_id, fault)
        except AuditError as error:
            self._offend(self._archive.name, ARCHIVE, str(error))
        counted = (report.payments - before[0], report.events - before[1], ledger.count)
        due = (manifest.payments, manifest.events, manifest.entries)
        for name, is_, wanted in zip(("payments", "events", "entries"), counted, due, strict=True):
            if is_ != wanted:
                self._offend(
                    self._archive.name, ARCHIVE, f"has {is_:,} {name} where its manifest says {wanted:,}"
                )

    def _read_payment(self, history: History, spool: Spool, ledger: _Ledger) -> None:
        report = self._report
        lines, faults = history.judge_alone()
        spool.put_present(lines)
        report.payments += 1
        report.events += len(history.events)
        report.unhashed += [event.hash for event in history.events].count(None)
        for fault in faults:
            report.offend(history.merchant_id, history.payment_id, fault)
        if not self._manifest.of.has(history.payment_id):
            what = f"does not belong to {self._manifest.month}"
            report.offend(history.merchant_id, history.payment_id, Fault(ARCHIVE, 0, what))
        ledger.compare(history, folded=not faults)

    def _offend(self, what: str, kind: str, fault: str) -> None:
        self._report.offend("", what, Fault(kind, 0, fault))

    def _offend_checkpoint(self, number: int, what: str) -> None:
        self._offend(f"checkpoint {number}", CHECKPOINT, what)


class _Ledger:
    """The entries of an archive, held against what the events book."""

    def __init__(self, path: Path, report: TrailReport) -> None:
        self._rows = entry_rows(path)
        self._report = report
        self._head: Row | None = None
        self._begun = False
        self.count = 0

    def compare(self, history: History, *, folded: bool) -> None:
        """The next payment's. What its events book is only known if nothing is wrong with them."""
        key = (history.merchant_id, history.payment_id)
        found: dict[tuple[str, int], Entry] = {}
        while (row := self._peek()) is not None and _payment_of(row) <= key:
            entry = Entry(row[0], row[1], row[2], row[3], Money(row[5], row[4]))
            if _payment_of(row) < key or (entry.journal_id, entry.line) in found:
                self._offend(
                    row, "belongs to no payment of the archive, or stands at another place than it did"
                )
            else:
                found[(entry.journal_id, entry.line)] = entry
            self._next()
        if not folded:
            return
        due = {(entry.journal_id, entry.line): entry for entry in booked_by(history)}
        for place in sorted(due.keys() | found.keys()):
            if due.get(place) != found.get(place):
                one = found.get(place) or due[place]
                what = "is missing" if place not in found else "is not what the events book"
                told = f"line {place[1]} of journal {place[0]} {what}"
                self._report.offend(one.merchant_id, history.payment_id, Fault(LEDGER, 0, told))

    def finish(self) -> None:
        """What is left belongs to nobody."""
        while (row := self._peek()) is not None:
            self._offend(row, "belongs to no payment of the archive, or stands at another place than it did")
            self._next()

    def _offend(self, row: Row, what: str) -> None:
        told = f"line {row[2]} of journal {row[1]} {what}"
        self._report.offend(row[0], _payment_of(row)[1], Fault(LEDGER, 0, told))

    def _peek(self) -> Row | None:
        if not self._begun:
            self._begun = True
            self._head = next(self._rows, None)
        return self._head

    def _next(self) -> None:
        self.count += 1
        self._head = next(self._rows, None)


def _payment_of(row: Row) -> tuple[str, str]:
    return row[0], row[1].partition("/")[0]


async def _nothing() -> AsyncIterator[list[Row]]:
    return
    yield
